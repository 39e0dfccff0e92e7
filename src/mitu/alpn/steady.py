"""Keeps the order of protocols from following every twitch of an instance.

What becomes worse counts at once. What becomes better counts once `hold` has passed since it last became worse: an
instance that goes to and fro stays on the bad side, one that was bad for longer is believed at once. One that goes
altogether and comes back before that counts as unavailable for the rest of the time.

It is told of what comes into force. Changes that come within 10 ms are gathered before that, so one for the worse that
is taken back as soon holds nothing: no client has met it either.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from mitu.discovery.instance import Health

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Held:
    health: Health
    """What counts."""
    seen: Health
    """What it was when it was last looked at."""
    worse_at: float | None
    """When it last became worse; None: nobody has seen it do so."""


class Steady:
    """`hold`: seconds."""

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self._held: dict[Hashable, _Held] = {}

    def copy(self, hold: float) -> Self:
        """The same memory for another time to hold, which goes its own way from here on."""
        other = type(self)(hold)
        other._held = {key: replace(held) for key, held in self._held.items()}
        return other

    def update(self, now: Mapping[Key, Health], time: float) -> tuple[dict[Key, Health], float | None]:
        """What counts at `time` (monotonic seconds) of instances that are so `now`, by identifier; and when to look
        again without being told of a change (None: never)."""
        waiting: list[float] = []
        for key, health in now.items():
            held = self._held.get(key)
            if held is None:
                self._held[key] = _Held(health, health, None)
                continue
            if health > held.seen:
                held.worse_at = time
            held.seen = health
            due = time if held.worse_at is None else held.worse_at + self.hold
            if health > held.health or time >= due:
                held.health = health
            elif health < held.health:
                waiting.append(due)
        for gone in self._held.keys() - now.keys():
            self._leave(gone, time)
        return {key: self._held[key].health for key in now}, min(waiting, default=None)

    def _leave(self, key: Hashable, time: float) -> None:
        held = self._held[key]
        if held.seen is not Health.UNAVAILABLE or held.worse_at is None:
            held.health = held.seen = Health.UNAVAILABLE
            held.worse_at = time
        elif time >= held.worse_at + self.hold:
            del self._held[key]
