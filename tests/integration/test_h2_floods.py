"""HTTP/2 clients that open, reset or continue without end: theirs is refused or closed, and nobody else notices."""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Iterator

import pytest

from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.h2 import END_HEADERS, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE, Answer, Http2
from support.servers import Loop, Reader, Server, Writer, http_head

from .conftest import Start

STREAMS = 16
CONTINUATION = 9
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11

# By RFC 7541's static table: :method GET, :scheme https, :path / or /health, and :authority localhost.
METHOD_AND_SCHEME, AUTHORITY = b"\x82\x87", b"\x01\x09localhost"
SLOW = METHOD_AND_SCHEME + b"\x84" + AUTHORITY
QUICK = METHOD_AND_SCHEME + b"\x04\x07/health" + AUTHORITY


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def opened(stream: int) -> bytes:
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, SLOW)


def reset(stream: int) -> bytes:
    return opened(stream) + frame(RST_STREAM, 0, stream, struct.pack("!I", CANCEL))


def overflown(stream: int) -> bytes:
    """A window beyond what RFC 9113 allows makes the server reset the stream (CVE-2025-8671)."""
    return opened(stream) + frame(WINDOW_UPDATE, 0, stream, struct.pack("!I", 0x7FFFFFFF))


@pytest.fixture
def asked() -> list[str]:
    """What the upstream was asked for."""
    return []


@pytest.fixture
def running(gateway: Start, edge: Pair, loop: Loop, asked: list[str]) -> Iterator[Gateway]:
    """In front of an upstream that never answers."""

    async def silent(reader: Reader, writer: Writer) -> None:
        while (head := await http_head(reader)) is not None:
            asked.append(head[0])

    with Server(loop, silent) as app:
        limits = {"concurrent_streams": STREAMS}
        routes = [health(), to_app()]
        yield gateway(configuration([listener(edge, routes=routes, limits=limits)], upstream("app", app.endpoint)))


@pytest.fixture
def other(running: Gateway, authority: Authority) -> Iterator[Http2]:
    """Somebody else, who is connected all the while."""
    with Http2.open(running.address(), authority.certificate) as other:
        assert other.get("/health").status == 200
        yield other
        assert other.get("/health").status == 200


@pytest.fixture
def client(running: Gateway, authority: Authority, other: Http2) -> Iterator[Http2]:
    with Http2.open(running.address(), authority.certificate) as client:
        assert client.get("/health").status == 200
        client.answers = collections.defaultdict(Answer)
        yield client


def test_streams_over_the_limit_are_refused(client: Http2, asked: list[str]) -> None:
    streams = range(3, 8 * STREAMS, 2)
    client.stream.sendall(b"".join(map(opened, streams)))
    over = streams[STREAMS:]
    for stream in over:
        assert client.finish(stream).reset == REFUSED_STREAM
    assert {stream for stream, answer in client.answers.items() if answer.ended} == set(over)
    assert len(asked) <= STREAMS


@pytest.mark.parametrize("flood", [reset, overflown])
def test_resets_end_the_connection(client: Http2, asked: list[str], flood: Callable[[int], bytes]) -> None:
    # All in one TLS record, so that they are there at once, and no byte is left to be reset for.
    client.stream.sendall(b"".join(map(flood, range(3, 803, 2))))
    assert client.closed()
    assert client.goaway_error == ENHANCE_YOUR_CALM
    # It costs the upstream no more than an honest client could.
    assert len(asked) <= STREAMS


def test_a_header_block_may_be_continued(client: Http2) -> None:
    client.stream.sendall(frame(HEADERS, END_STREAM, 3, QUICK[:3]))
    client.stream.sendall(frame(CONTINUATION, 0, 3, QUICK[3:9]) + frame(CONTINUATION, END_HEADERS, 3, QUICK[9:]))
    assert client.finish(3).status == 200


@pytest.mark.parametrize("piece", [b"", (b"\x00\x01a\x7e" + b"b" * 126) * 120], ids=["empty", "full"])
def test_a_header_block_without_end_ends_the_connection(
    running: Gateway, client: Http2, asked: list[str], piece: bytes
) -> None:
    before = running.program.resident()
    client.stream.sendall(frame(HEADERS, END_STREAM, 3, SLOW))
    with pytest.raises(OSError, match=r"EOF|reset|[Bb]roken pipe") as ended:
        for _ in range(100_000):
            client.stream.sendall(frame(CONTINUATION, 0, 3, piece))
    assert not isinstance(ended.value, TimeoutError)
    assert running.program.resident() - before < 16 << 20
    assert asked == []
