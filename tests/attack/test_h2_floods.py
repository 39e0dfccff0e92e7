"""HTTP/2 clients that flood: with streams, resets, header blocks, settings, pings, or frames that say nothing.

Each flood comes twice. It costs a bounded amount of memory, computing and work upstream, nobody else notices, and
nothing of it is left. Where it is more than any client could mean, its connection is ended. The floods are in
`h2_floods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from attack.h2_floods import FLOODS, GET, STREAMS, Flood, block, under_way
from support.ground import Ground, endure, ground, nothing_is_left, others_hardly_notice
from support.h2_raw import ENHANCE_YOUR_CALM, NO_ERROR, Raw, get, reset

PACK = "h2 floods"

LAST = 2_000_001
"""A stream behind all others."""


@pytest.fixture(scope="module")
def flooded() -> Iterator[Ground]:
    # To be idle is no reason to end a connection here.
    with ground(limits={"concurrent_streams": STREAMS}) as made:
        yield made


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
def test_flood(flooded: Ground, flood: Flood, record_property: Callable[[str, object], None]) -> None:
    def run() -> None:
        with Raw(flooded.address, flooded.ca, flood.first) as client:
            flood.run(client, flooded)
            if flood.ends in ("calm", "error"):
                assert client.closed(10)
                assert client.goaway != NO_ERROR
            if flood.ends == "calm":
                assert client.goaway == ENHANCE_YOUR_CALM
            if flood.ends == "open":
                client.push(get(LAST, b"/health"))
                client.pull(10, LAST)
                assert LAST in client.answered

    endure(flooded, run, flood.begun, record_property)


@pytest.mark.xfail(strict=True, reason="a connection that is ended for requests reset under way has no GOAWAY")
def test_who_resets_too_much_is_told(flooded: Ground) -> None:
    with Raw(flooded.address, flooded.ca) as client:
        under_way(reset)(client, flooded)
        assert client.closed(10)
        assert client.goaway == ENHANCE_YOUR_CALM


def test_a_header_block_may_be_continued(flooded: Ground) -> None:
    with Raw(flooded.address, flooded.ca) as client:
        client.push(block(1, GET[:3], GET[3:9], GET[9:]))
        client.pull(10, 1)
        assert client.answered == {1}


def test_others_hardly_notice(flooded: Ground, record_property: Callable[[str, object], None]) -> None:
    others_hardly_notice(flooded, record_property)


def test_nothing_is_left(flooded: Ground, record_property: Callable[[str, object], None]) -> None:
    nothing_is_left(flooded, record_property)
