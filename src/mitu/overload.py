"""Says in the log when a listener is overloaded, and when it is not any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from mitu.gateway import OverloadChange

log = logging.getLogger("mitu")

INTERVAL = 0.25
"""Seconds between two looks."""


async def overloads(changes: Callable[[], Sequence[OverloadChange]], interval: float = INTERVAL) -> None:
    """Ask for `changes` every `interval` seconds, until this is cancelled."""
    while True:
        for change in changes():
            log.warning("%s", describe(change))
        await asyncio.sleep(interval)


def describe(change: OverloadChange) -> str:
    """One line."""
    memory = "" if change.memory is None else f"memory at {change.memory:.0%} of its ceiling, "
    pressure = f"{memory}connections at {change.connections:.0%} of their limit"
    if change.step == "normal":
        return f"{change.listener} is not overloaded any more: {pressure}"
    return f"{change.listener} is overloaded, {change.step}: {pressure}"
