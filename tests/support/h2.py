"""An HTTP/2 client that shows what a peer does with the connection: GOAWAY, resets, and how it ends.

It keeps to the parts of RFC 9113 and RFC 7541 that GET requests need: no dynamic table, no continuation frames.
"""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from support.client import Address, connect, context

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITY = 4, 8, 0x20
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4

_WINDOW = 1 << 30
_STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
# RFC 7541, appendix B: the digits 0 to 2 take five bits, the others six.
_DIGITS = {"00000": "0", "00001": "1", "00010": "2"} | {f"{0b011001 + at:06b}": str(at + 3) for at in range(7)}


@dataclass
class Answer:
    """What has come on one stream."""

    status: int = 0
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    """The error code of a RST_STREAM."""


@dataclass
class Http2:
    """One connection over TLS. `last`: the last stream that a GOAWAY promises to serve."""

    stream: socket.socket
    host: str = "localhost"
    answers: dict[int, Answer] = field(default_factory=dict)
    last: int | None = None
    goaway_error: int | None = None
    _next: int = 1
    _kept: bytes = b""

    @classmethod
    def open(cls, address: Address, ca: Path, *, timeout: float = 10) -> Self:
        return cls.begin(connect(address, context(ca, ["h2"]), timeout=timeout))

    @classmethod
    def begin(cls, stream: ssl.SSLSocket) -> Self:
        """On a connection whose handshake is done."""
        assert stream.selected_alpn_protocol() == "h2"
        # Without a dynamic table a header block can be read by itself.
        settings = struct.pack("!HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, _WINDOW)
        window = struct.pack("!I", _WINDOW)
        stream.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, window))
        return cls(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def send(self, path: str) -> int:
        """Begin a GET request; its stream."""
        fields = {":method": "GET", ":scheme": "https", ":authority": self.host, ":path": path}
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields.items())
        number, self._next = self._next, self._next + 2
        self.answers[number] = Answer()
        self.stream.sendall(_frame(HEADERS, END_STREAM | END_HEADERS, number, block))
        return number

    def get(self, path: str) -> Answer:
        """One whole exchange. EOFError when the connection ends first."""
        return self.finish(self.send(path))

    def finish(self, number: int) -> Answer:
        answer = self.answers[number]
        while not answer.ended and not self.refused(number):
            self.read()
        return answer

    def refused(self, number: int) -> bool:
        """Whether the peer has said that it will not look at this stream: it may be sent again elsewhere."""
        return self.last is not None and number > self.last

    def read(self) -> None:
        """Read one frame and do what it asks for. EOFError at the connection's end."""
        length, kind, flags, number = struct.unpack("!IBBI", b"\0" + self._exactly(9))
        payload = self._exactly(length)
        if kind == SETTINGS and not flags & ACK:
            self.stream.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.stream.sendall(_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.last, self.goaway_error = struct.unpack("!II", payload[:8])
        elif kind == RST_STREAM:
            answer = self.answers[number]
            answer.reset, answer.ended = struct.unpack("!I", payload)[0], True
        elif kind in (HEADERS, DATA):
            assert not flags & (PADDED | PRIORITY)
            answer = self.answers[number]
            if kind == DATA:
                answer.body += payload
            elif not answer.status:
                answer.status = _status(payload)
            answer.ended = bool(flags & END_STREAM)

    def closed(self, within: float = 5) -> bool:
        """Whether the peer ends the connection, in good order, within so many seconds of silence."""
        self.stream.settimeout(within)
        try:
            while True:
                self.read()
        except EOFError:
            return True
        except TimeoutError:
            return False

    def _exactly(self, count: int) -> bytes:
        while len(self._kept) < count:
            piece = self.stream.recv(65536)
            if not piece:
                raise EOFError(f"the connection ended, {len(self._kept)} bytes into a frame")
            self._kept += piece
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, number) + payload


def _string(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode("ascii")


def _status(block: bytes) -> int:
    """The status, which comes first: an entry of the static table, or a literal with the name of one."""
    while block[0] >> 5 == 1:  # The dynamic table's size, which is none.
        block = block[1:]
    if block[0] & 0x80:
        return _STATUSES[block[0] & 0x7F]
    assert block[0] & 0x0F in _STATUSES, block
    length = block[1] & 0x7F
    value = block[2 : 2 + length]
    return int(_digits(value) if block[1] & 0x80 else value)


def _digits(coded: bytes) -> str:
    bits = "".join(f"{byte:08b}" for byte in coded)
    text = ""
    while len(text) < 3:
        size = 5 if bits[:5] in _DIGITS else 6
        text, bits = text + _DIGITS[bits[:size]], bits[size:]
    return text
