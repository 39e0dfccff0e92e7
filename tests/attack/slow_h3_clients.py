"""Slow clients of HTTP/3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from support import h3
from support.h3 import Http3, frame, section
from support.quic_raw import withhold

Tick = Callable[[Http3, int], bool]
"""Is called again and again, and told how often before. Whether the client is gone."""


def nothing(client: Http3) -> None:
    pass


def waits(client: Http3, number: int) -> bool:
    return False


@dataclass(frozen=True)
class H3Case:
    """`begin` opens streams. The rest is as in `Case`."""

    name: str
    begin: Callable[[Http3], None]
    tick: Tick = waits
    status: int | None = None
    reason: str | None = None
    event: ClassVar[str] = "connection"
    why: ClassVar[None] = None
    soon: ClassVar[bool] = False


def settings() -> bytes:
    """The beginning of a control stream."""
    return b"\0" + frame(h3.SETTINGS)


def ask(path: str, method: str = "GET") -> bytes:
    return frame(
        h3.HEADERS, section([(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)])
    )


def opens(sent: bytes, *, end: bool = False, count: int = 1, one_way: bool = False) -> Callable[[Http3], None]:
    def begin(client: Http3) -> None:
        for _ in range(count):
            client.open(sent, end=end, one_way=one_way)

    return begin


def says(pieces: Callable[[int], bytes]) -> Tick:
    """One more piece on the first stream."""

    def tick(client: Http3, number: int) -> bool:
        if 0 in client.quic._streams and client.answers[0].stopped is None:
            client.send(0, pieces(number))
        return False

    return tick


def pings(client: Http3, number: int) -> bool:
    client.quic.send_ping(number)
    client.transmit()
    return False


def unread(client: Http3) -> None:
    withhold(client)
    opens(ask("/endless"), end=True, count=8)(client)


def vanishes(client: Http3, _: int) -> bool:
    """Without a word, in the midst of a response."""
    if not client.answers[0].raw:
        return False
    client.transmit = client.quic.receive_datagram = mute  # type: ignore[method-assign]
    client._closed.set()
    return True


def mute(*_: Any, **__: Any) -> None:
    pass


HEALTH, UPLOAD = ask("/health"), ask("/upload", "POST")
H3_CASES = (
    H3Case("no request", nothing),
    H3Case("no second request", opens(HEALTH, end=True), status=200),
    H3Case("pings alone", nothing, pings),
    H3Case("a stream of no kind", opens(b"\x40", one_way=True)),
    H3Case("half a head", opens(HEALTH[:-9]), status=408, reason="header_timeout"),
    H3Case("half the head of a frame", opens(b"\x40"), status=408, reason="header_timeout"),
    H3Case(
        "a head byte by byte", opens(b""), says(lambda at: HEALTH[at : at + 1]), status=408, reason="header_timeout"
    ),
    H3Case("unknown frames alone", opens(b""), says(lambda _: b"\x21\0"), status=408, reason="header_timeout"),
    H3Case("half a frame of a body", opens(UPLOAD + b"\0\x09half"), status=408, reason="body_timeout"),
    H3Case("a body byte by byte", opens(UPLOAD), says(lambda _: b"\0\1x"), status=408, reason="body_timeout"),
    H3Case("responses that are not read", unread, status=200, reason="client_closed"),
    H3Case(
        "gone in the midst of a response",
        opens(ask("/endless"), end=True),
        vanishes,
        status=200,
        reason="client_closed",
    ),
)
