"""Checks the instances of one upstream, each again and again, and says how they are when that changes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mitu.config.discovery import HealthCheck
from mitu.discovery.check.connection import NotCheckedError
from mitu.discovery.checks import Check, Verdict
from mitu.discovery.instance import Evidence, Health

log = logging.getLogger("mitu")

MOST_AT_ONCE = 64
"""Checks of one checker that are under way at a time: each is a socket, and perhaps a handshake."""

_PACE = 0.001
"""Seconds between the first checks of instances that are new at one time."""
_JITTER = 0.1

Changed = Callable[[str, Evidence], None]


@dataclass(slots=True)
class Tally:
    """What the checks of an instance amount to.

    The first one decides by itself, as it does in Envoy and HAProxy: an instance of which nothing is known need not
    fail three times before it is left alone. After that only so many in a row turn it, and one the other way begins
    their count anew (HAProxy's rise and fall).
    """

    settings: HealthCheck
    evidence: Evidence | None = None
    """None: it has not been checked."""
    contrary: int = 0
    """Checks in a row that said otherwise."""

    def take(self, verdict: Verdict) -> Evidence | None:
        """Count one more check. The evidence, if that has changed, be it only its reason."""
        found = Evidence(Health.HEALTHY if verdict.good else Health.UNAVAILABLE, "check", verdict.reason)
        if self.evidence is not None and found.health != self.evidence.health:
            self.contrary += 1
            if self.contrary < (self.settings.healthy_after if verdict.good else self.settings.unhealthy_after):
                return None
        self.contrary = 0
        if found == self.evidence:
            return None
        self.evidence = found
        return found


class Checker:
    """Checks instances from `async with` to its end.

    `changed` is called with an instance's identifier and the evidence on it, first after its first check; never for
    one that is no target any more. A check starts an interval, give or take a tenth, after the one before it did; when
    more than `most` want to, or one takes longer than that, later. One that could not be made counts for nothing.
    """

    def __init__(self, settings: HealthCheck, check: Check, changed: Changed, most: int = MOST_AT_ONCE) -> None:
        self._settings, self._check, self._changed = settings, check, changed
        self._interval = settings.interval.total_seconds()
        self._slots = asyncio.Semaphore(most)
        self._targets: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._short = self._faulty = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Returns when nothing of it is left, no task and no socket."""
        self.set_targets({})
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Check these from now on: addresses by instance.

        What is known of an instance stays, unless its address is another: that one counts as new.
        """
        for name, (address, task) in list(self._targets.items()):
            if targets.get(name) != address:
                task.cancel()
                del self._targets[name]
        new = {name: address for name, address in targets.items() if name not in self._targets}
        pace = min(_PACE, self._interval / max(len(new), 1))
        for position, (name, address) in enumerate(new.items()):
            task = asyncio.create_task(self._watch(name, address, position * pace))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._targets[name] = (address, task)

    async def _watch(self, name: str, address: str, delay: float) -> None:
        tally = Tally(self._settings)
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(delay)
            async with self._slots:
                begun = clock()
                verdict = await self._verdict(address)
            evidence = tally.take(verdict) if verdict is not None else None
            if evidence is not None:
                self._changed(name, evidence)
            pause = self._interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
            delay = max(begun + pause - clock(), 0)

    async def _verdict(self, address: str) -> Verdict | None:
        """None: it could not be checked."""
        try:
            verdict = await self._check.run(address)
        except NotCheckedError as error:
            if not self._short:
                log.warning("instances are not checked for now, and stay as they are: %s", error)
            self._short = True
            return None
        except Exception:  # A fault here is the instance's in no way, and no reason not to check it again.
            if not self._faulty:
                log.exception("the check of %s failed, and perhaps others: they stay as they are", address)
            self._faulty = True
            return None
        self._short = self._faulty = False
        return verdict
