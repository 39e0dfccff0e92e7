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

    In a storm, handshakes wait or are shed at every look: there are more than the workers have time for.
    """
    while True:
        before, first = await _until(handshakes, interval, stormy=True)
        begun = time.monotonic()
        log.warning("handshake storm: %d handshakes wait for their turns", first.waiting)
        _, last = await _until(handshakes, interval, stormy=False)
        lasted, shed = time.monotonic() - begun, last.shed - before.shed
        log.warning("the handshake storm is over after %.0f s: %d handshakes were shed", lasted, shed)


async def _until(
    handshakes: Callable[[], Handshakes], interval: float, *, stormy: bool
) -> tuple[Handshakes, Handshakes]:
    """How it stood before it was `stormy`, or not, at `LOOKS` looks in a row, and how it stands then."""
    looks, warned = 0, stormy
    start = now = handshakes()
    while looks < LOOKS:
        await asyncio.sleep(interval)
        before, now = now, handshakes()
        sheds = now.shed > before.shed
        if bool(now.waiting or sheds) is stormy:
            start, looks = (start if looks else before), looks + 1
        else:
            looks = 0
        if sheds and not warned:
            warned = True
            log.warning("handshakes are shed: their clients would have given up before their turn")
    return start, now
