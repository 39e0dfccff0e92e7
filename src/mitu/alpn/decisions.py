"""The decision log: every change of an order of protocols, with what it was before, why, and how long it took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_KEPT = 1000
_CAUSES = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """One change."""

    at: float
    """Unix time at which new handshakes had it."""
    ranking: str
    """The listener's name, or `LISTENER/SITE`."""
    before: tuple[str, ...]
    after: tuple[str, ...]
    causes: tuple[str, ...]
    """What became of which instance; the first ones, where there are many."""
    took: float
    """Seconds from the first of its causes being known to it being in force."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        orders = f"{', '.join(self.before)} -> {', '.join(self.after)}"
        return f"{self.ranking} offers {orders} since {'; '.join(self.causes)} ({self.took * 1e3:.1f} ms)"


class Decisions:
    """The last changes, oldest first."""

    def __init__(self) -> None:
        self._last: deque[Decision] = deque(maxlen=_KEPT)
        self.total = 0

    def add(
        self, ranking: str, before: Sequence[str], after: Sequence[str], causes: Sequence[str], took: float
    ) -> Decision:
        told = list(causes[:_CAUSES])
        if len(causes) > _CAUSES:
            told.append(f"{len(causes) - _CAUSES} more")
        decision = Decision(time.time(), ranking, tuple(before), tuple(after), tuple(told), took)
        self._last.append(decision)
        self.total += 1
        return decision

    def of(self, ranking: str, limit: int) -> list[Decision]:
        """The last ones of a ranking."""
        return [one for one in self._last if one.ranking == ranking][-limit:]
