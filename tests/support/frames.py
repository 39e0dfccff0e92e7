"""Frames of HTTP/2 (RFC 9113) as a test wants them, and as a peer sent them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from support import hpack
from support.h2 import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITY

CONTINUATION = 9
INITIAL_WINDOW_SIZE = 4
WINDOW = 1 << 20
"""What either side lets the other send ahead."""

_NAMES = (
    *("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE"),
    "CONTINUATION",
)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    def __str__(self) -> str:
        name = _NAMES[self.kind] if self.kind < len(_NAMES) else self.kind
        return f"{name} flags={self.flags:#x} stream={self.stream} {self.payload!r}"

    @property
    def content(self) -> bytes:
        """The payload of a DATA or HEADERS frame without padding and priority."""
        payload, padding = self.payload, 0
        if self.flags & PADDED:
            padding, payload = payload[0], payload[1:]
        if self.kind == HEADERS and self.flags & PRIORITY:
            payload = payload[5:]
        return payload[: len(payload) - padding]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def take(wire: bytearray) -> Frame | None:
    """Take the first frame off; None while it is incomplete."""
    if len(wire) < 9:
        return None
    length, kind, flags, stream = struct.unpack("!IBBI", b"\0" + wire[:9])
    if len(wire) < 9 + length:
        return None
    payload = bytes(wire[9 : 9 + length])
    del wire[: 9 + length]
    return Frame(kind, flags, stream, payload)


def headers(stream: int, block: bytes, *, end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def data(stream: int, content: bytes, *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, content)


def request(
    stream: int,
    fields: tuple[hpack.Field, ...],
    body: tuple[bytes, ...] = (),
    trailers: tuple[hpack.Field, ...] | None = None,
    *,
    end: bool = True,
) -> bytes:
    """A whole request, one DATA frame for each piece of the body. `end`: whether the last frame ends the stream."""
    pieces = [headers(stream, hpack.block(fields), end=end and not body and trailers is None)]
    for number, piece in enumerate(body, 1):
        pieces.append(data(stream, piece, end=end and number == len(body) and trailers is None))
    if trailers is not None:
        pieces.append(headers(stream, hpack.block(trailers), end=end))
    return b"".join(pieces)
