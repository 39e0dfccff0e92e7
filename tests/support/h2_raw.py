"""An HTTP/2 client that says what it is told to, whatever the peer makes of it, and reads only when it wants."""

from __future__ import annotations

import select
import ssl
import struct
import time
from pathlib import Path
from typing import Self

from support import hpack
from support.client import Address, connect, context
from support.frames import Frame, frame, headers, take
from support.h2 import GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE

NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 7, 8, 11

READY = PREFACE + frame(SETTINGS, 0, 0)
PATIENCE = 0.5
"""Seconds after which a peer that takes nothing more is left alone."""


class Raw:
    """One connection over TLS. `ended`: how the peer has ended it, as soon as that was noticed."""

    def __init__(self, address: Address, ca: Path, first: bytes = READY) -> None:
        self.stream: ssl.SSLSocket = connect(address, context(ca, ["h2"]))
        self.stream.setblocking(False)
        self.ended: str | None = None
        self.goaway: int | None = None
        """The last error code that a GOAWAY has told."""
        self.resets: dict[int, int] = {}
        """Error codes by stream."""
        self.answered: set[int] = set()
        """Streams with a response, or the beginning of one."""
        self._kept = bytearray()
        self.push(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def push(self, sent: bytes, *, reading: bool = True) -> None:
        """Sends everything, unless the connection ends first, or the peer takes no more."""
        left, deadline = memoryview(sent), time.monotonic() + PATIENCE
        while left and self.ended is None and time.monotonic() < deadline:
            try:
                left = left[self.stream.send(left) :]
                deadline = time.monotonic() + PATIENCE
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                select.select([self.stream] if reading else [], [self.stream], [], 0.05)
            except OSError as error:
                self.ended = str(error)
            if reading:
                self._read()

    def pull(self, seconds: float, until: int | None = None) -> None:
        """Reads until the connection ends, or a stream has an answer or a reset, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        self._read()
        while self.ended is None and until not in self.answered and until not in self.resets:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            select.select([self.stream], [], [], left)
            self._read()

    def closed(self, seconds: float = 5) -> bool:
        """Whether the peer ends the connection within so many seconds."""
        self.pull(seconds)
        return self.ended is not None

    def _read(self) -> None:
        """What is there, without waiting."""
        try:
            while piece := self.stream.recv(1 << 16):
                self._kept += piece
                while (came := take(self._kept)) is not None:
                    self._note(came)
            self.ended = "closed"
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.ended = str(error)

    def _note(self, came: Frame) -> None:
        if came.kind == GOAWAY:
            self.goaway = struct.unpack("!I", came.payload[4:8])[0]
        elif came.kind == RST_STREAM:
            self.resets[came.stream] = struct.unpack("!I", came.payload)[0]
        elif came.kind == HEADERS:
            self.answered.add(came.stream)


def fields(path: bytes, method: bytes = b"GET", *more: hpack.Field) -> tuple[hpack.Field, ...]:
    return (
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", path),
        *more,
    )


def get(stream: int, path: bytes) -> bytes:
    return headers(stream, hpack.block(fields(path)), end=True)


def post(stream: int, path: bytes, *more: hpack.Field) -> bytes:
    """A request whose body is to come."""
    return headers(stream, hpack.block(fields(path, b"POST", *more)))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack("!I", code))


def window(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack("!I", more))


def setting(number: int, value: int) -> bytes:
    return struct.pack("!HI", number, value)
