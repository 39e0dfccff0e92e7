"""Says in the log when a handshake storm begins, when it costs clients their connection, and when it is over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from mitu.gateway import Handshakes

log = logging.getLogger("mitu")

INTERVAL = 1.0
"""Seconds between two looks."""

LOOKS = 2
"""Looks in a row that begin a storm, or end it: a burst is no storm yet, nor a gap its end."""


async def storms(handshakes: Callable[[], Handshakes], interval: float = INTERVAL) -> None:
    """Look at `handshakes` every `interval` seconds, until this is cancelled.

    In a storm, handshakes wait for their turns at every look: there are more than the workers have time for.
    """
    while True:
        shed = handshakes().shed
        first = await _until(handshakes, interval, stormy=True)
        begun = time.monotonic()
        log.warning("handshake storm: %d handshakes wait for their turns", first.waiting)
        last = await _until(handshakes, interval, stormy=False)
        lasted, shed = time.monotonic() - begun, last.shed - shed
        log.warning("the handshake storm is over after %.0f s: %d handshakes were shed", lasted, shed)


async def _until(handshakes: Callable[[], Handshakes], interval: float, *, stormy: bool) -> Handshakes:
    """How it stands when it has been `stormy`, or not, at `LOOKS` looks in a row."""
    looks, now, warned = 0, handshakes(), stormy
    while looks < LOOKS:
        await asyncio.sleep(interval)
        before, now = now, handshakes()
        sheds = now.shed > before.shed
        looks = looks + 1 if bool(now.waiting or sheds) is stormy else 0
        if sheds and not warned:
            warned = True
            log.warning("handshakes are shed: their clients would have given up before their turn")
    return now
