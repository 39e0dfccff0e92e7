"""Instances in Consul: a query for each service, which is answered once there is something new."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence

from mitu.config.discovery import ConsulProvider, Discover
from mitu.discovery.consul_query import connected
from mitu.discovery.instance import Snapshot

log = logging.getLogger("mitu")

_MARGIN = 15.0
"""Seconds."""

_PAUSE = 0.05
"""Seconds from an answer to the next query, at least: what changes in quick succession comes together."""
_LONGEST_PAUSE = 5.0
_DOUBLINGS = 3
"""Of `_PAUSE`, while answers come that have nothing new."""
_SHARE = 2.0
"""A pause, in times of what the answer has cost: a third of a core at most goes to a service, whatever happens."""

_NAMED = 3
"""Instances, in a line of the log."""


class Consul:
    """`margin`: seconds that Consul may take to answer, beyond what a query waits for a change."""

    kind = "consul"

    def __init__(self, settings: ConsulProvider, *, margin: float = _MARGIN) -> None:
        self._settings = settings
        self._margin = margin

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        wait = self._settings.wait.total_seconds()
        known: Snapshot | None = None
        left_out: tuple[str, ...] = ()
        index, vain = 0, 0
        async with connected(self._settings, discover, self._margin) as query:
            while True:
                asked = time.monotonic()
                answer = await query.ask(index)
                waited = time.monotonic() - asked
                snapshot = Snapshot.of(answer.found.instances)
                if index and snapshot != known and not snapshot.instances:
                    # Its ACLs may hide them all from now on, which only an answer without an index tells.
                    answer = await query.ask(0)
                    snapshot = Snapshot.of(answer.found.instances)
                if answer.hidden:
                    log.warning("consul: service '%s': its ACLs hide some instances from the token", discover.service)
                if answer.found.left_out != left_out:
                    left_out = answer.found.left_out
                    _tell(discover.service, left_out)
                # Backwards: it has begun anew, from a backup perhaps. With 0 it does not wait.
                index = 0 if answer.index < index else max(answer.index, 1)
                vain = min(vain + 1, _DOUBLINGS) if snapshot == known and waited < wait else 0
                if snapshot != known:
                    known = snapshot
                    yield snapshot
                await asyncio.sleep(min(max(_PAUSE * 2**vain, _SHARE * answer.spent), _LONGEST_PAUSE))

    async def close(self) -> None:
        """Connections end with their watches."""


def _tell(service: str, left_out: Sequence[str]) -> None:
    if left_out:
        more = f", and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        log.warning("consul: service '%s': left out: %s%s", service, ", ".join(left_out[:_NAMED]), more)
