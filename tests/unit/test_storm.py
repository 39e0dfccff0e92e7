"""What the log says of a handshake storm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from mitu.gateway import Handshakes
from mitu.storm import storms


def told(caplog: pytest.LogCaptureFixture, looks: Iterable[tuple[int, int]]) -> list[str]:
    """The messages for these (waiting, shed) at one look after the other."""
    left = iter(looks)

    async def watch() -> None:
        def look() -> Handshakes:
            if (now := next(left, None)) is None:
                raise EOFError
            return Handshakes(*now)

        with pytest.raises(EOFError):
            await storms(look, interval=0)

    with caplog.at_level(logging.INFO, "mitu"):
        asyncio.run(watch())
    return [record.getMessage() for record in caplog.records]


def test_a_storm_has_a_begin_and_an_end(caplog: pytest.LogCaptureFixture) -> None:
    looks = [(0, 5), (0, 7), (0, 7), (3, 7), (40, 7), (50, 7), (50, 9), (50, 12), (0, 12), (2, 12), (0, 12), (0, 12)]
    assert told(caplog, looks) == [
        "handshake storm: 40 handshakes wait for their turns",
        "handshakes are shed: their clients would have given up before their turn",
        "the handshake storm is over after 0 s: 5 handshakes were shed",
    ]


def test_a_burst_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, [(0, 0), (9, 0), (0, 0), (9, 0), (0, 0)] * 5) == []


def test_what_is_shed_at_once_is_one_too(caplog: pytest.LogCaptureFixture) -> None:
    """With `queue: 0` nobody waits."""
    begun, over = told(caplog, [(0, 0), (0, 5), (0, 9), (0, 9), (0, 9), (0, 9)])
    assert "storm" in begun
    assert over.endswith("9 handshakes were shed")
