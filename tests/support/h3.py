"""An HTTP/3 client, and one that says on its streams whatever a test wants. The QUIC is aioquic's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.tls import SessionTicket

from support.certificates import Pair
from support.client import Address

Headers = Sequence[tuple[str, str]]

DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0, 1, 3, 4, 5, 7, 13

NO_ERROR, INTERNAL_ERROR, STREAM_CREATION_ERROR, CLOSED_CRITICAL_STREAM = 0x100, 0x102, 0x103, 0x104
FRAME_UNEXPECTED, FRAME_ERROR, EXCESSIVE_LOAD, ID_ERROR, SETTINGS_ERROR = 0x105, 0x106, 0x107, 0x108, 0x109
MISSING_SETTINGS, REQUEST_REJECTED, REQUEST_CANCELLED, REQUEST_INCOMPLETE = 0x10A, 0x10B, 0x10C, 0x10D
MESSAGE_ERROR, QPACK_DECOMPRESSION_FAILED, QPACK_ENCODER_ERROR, QPACK_DECODER_ERROR = 0x10E, 0x200, 0x201, 0x202


@dataclass
class Answer:
    """What has come on one stream."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    stream: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    stopped: int | None = None
    """The code with which the gateway has asked for no more of the request."""

    @property
    def body(self) -> bytes:
        return bytes(self.data)

    @property
    def raw(self) -> bytes:
        """Every byte, frames and all."""
        return bytes(self.stream)

    @property
    def status(self) -> int:
        return int(dict(self.headers)[":status"])

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Http3(QuicConnectionProtocol):
    """One connection. `raw`: no HTTP/3 is spoken but what the test sends."""

    path_takes = 1 << 16
    """Bytes of the largest datagram that comes through to it."""

    def __init__(self, *args: Any, raw: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.http = None if raw else H3Connection(self._quic)
        self.answers: dict[int, Answer] = {}
        self.ended: ConnectionTerminated | None = None
        self.heard = False
        """Whether anything has come."""
        self.sizes: list[int] = []
        """Of the datagrams that have, in bytes."""
        self._news = asyncio.Event()

    @property
    def quic(self) -> Any:
        return self._quic

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if len(data) > self.path_takes:
            return
        self.heard = True
        self.sizes.append(len(data))
        super().datagram_received(data, addr)
        self._news.set()

    @property
    def goaway(self) -> int | None:
        """The first stream that the gateway takes no more, once it has said so on its control stream."""
        for stream, answer in self.answers.items():
            if stream % 4 == 3 and answer.stream.startswith(b"\0"):
                told = [payload for kind, payload in frames(answer.raw[1:], whole=False) if kind == GOAWAY]
                return _varint(told[-1])[0] if told else None
        return None

    def refused(self, stream: int) -> bool:
        """Whether the gateway has not looked at this request, and never will: it may be sent again elsewhere."""
        last = self.goaway
        return last is not None and stream >= last

    def quic_event_received(self, event: QuicEvent) -> None:
        match event:
            case StreamDataReceived():
                answer = self._answer(event.stream_id)
                answer.stream += event.data
                answer.ended |= event.end_stream
            case StreamReset():
                self._answer(event.stream_id).reset = event.error_code
            case StopSendingReceived():
                self._answer(event.stream_id).stopped = event.error_code
            case ConnectionTerminated():
                self.ended = event
        if self.http is not None:
            for told in self.http.handle_event(event):
                self._http_event(told)
        self._news.set()

    def _http_event(self, event: H3Event) -> None:
        match event:
            case HeadersReceived():
                answer = self._answer(event.stream_id)
                fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                if answer.headers:
                    answer.trailers = fields
                else:
                    answer.headers = fields
            case DataReceived():
                self._answer(event.stream_id).data += event.data

    def _answer(self, stream: int) -> Answer:
        return self.answers.setdefault(stream, Answer())

    def begin(
        self,
        path: str,
        *,
        method: str = "GET",
        host: str = "localhost",
        headers: Headers = (),
        body: bytes | None = None,
        end: bool = True,
    ) -> int:
        """Begin a request; its stream. `end`: whether it ends with `body`."""
        assert self.http is not None
        stream: int = self._quic.get_next_available_stream_id()
        self._answer(stream)
        fields = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *headers]
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream, encoded, end_stream=end and body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=end)
        self.transmit()
        return stream

    def data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        assert self.http is not None
        self.http.send_data(stream, body, end_stream=end)
        self.transmit()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Bytes on a stream, whatever they are."""
        self._answer(stream)
        self._quic.send_stream_data(stream, data, end)
        self.transmit()

    def open(self, data: bytes, *, end: bool = False, one_way: bool = False) -> int:
        """A new stream that begins with `data`."""
        stream: int = self._quic.get_next_available_stream_id(is_unidirectional=one_way)
        self.send(stream, data, end=end)
        return stream

    def cancel(self, stream: int, code: int = REQUEST_CANCELLED) -> None:
        """Takes a request back, and wants no answer."""
        self._quic.reset_stream(stream, code)
        self._quic.stop_stream(stream, code)
        self.transmit()

    async def move(self) -> None:
        """Goes on from another port, as a client behind a NAT that forgets."""
        old = self._transport
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)
        if old is not None:
            old.close()

    async def until(self, done: Any, seconds: float = 10) -> None:
        """Waits until `done()`, or the connection has ended."""
        async with asyncio.timeout(seconds):
            while not done() and self.ended is None:
                self._news.clear()
                await self._news.wait()

    async def answer(self, stream: int, seconds: float = 10) -> Answer:
        """The whole of an answer, however it ends."""
        answer = self._answer(stream)
        await self.until(lambda: answer.ended or answer.reset is not None, seconds)
        if not answer.ended and answer.reset is None:
            raise ConnectionError(f"the connection ended: {self.ended}")
        return answer

    async def get(self, path: str, **settings: Any) -> Answer:
        return await self.answer(self.begin(path, **settings))

    async def closed(self, seconds: float = 10) -> ConnectionTerminated:
        """How the gateway has ended the connection."""
        await self.until(lambda: False, seconds)
        assert self.ended is not None
        return self.ended


def configuration(
    ca: Path, *, alpn: Sequence[str] = ("h3",), identity: Pair | None = None, **settings: Any
) -> QuicConfiguration:
    made = QuicConfiguration(alpn_protocols=list(alpn), is_client=True, **settings)
    made.load_verify_locations(str(ca))
    made.verify_mode = ssl.CERT_REQUIRED
    if identity is not None:
        made.load_cert_chain(str(identity.certificate), str(identity.key))
    return made


@contextlib.asynccontextmanager
async def connected(
    address: Address,
    ca: Path,
    *,
    name: str = "localhost",
    raw: bool = False,
    tickets: list[SessionTicket] | None = None,
    tokens: list[bytes] | None = None,
    wait_connected: bool = True,
    seconds: float = 60,
    **settings: Any,
) -> AsyncIterator[Http3]:
    """A connection with its handshake done, unless `wait_connected` is false.

    `tickets` and `tokens`: where the session's go; `seconds`: for which it may be used.
    """
    made = configuration(ca, server_name=name, **settings)
    client = connect(
        *address,
        configuration=made,
        create_protocol=lambda *args, **more: Http3(*args, raw=raw, **more),
        session_ticket_handler=None if tickets is None else tickets.append,
        token_handler=None if tokens is None else tokens.append,
        wait_connected=wait_connected,
    )
    async with asyncio.timeout(seconds):
        async with client as protocol:
            assert isinstance(protocol, Http3)
            try:
                yield protocol
            finally:
                protocol.close()
                if protocol._transport is not None:
                    protocol._transport.close()


def get(
    address: Address, ca: Path, path: str, *, name: str = "localhost", idle_timeout: float = 60, **settings: Any
) -> Answer:
    """One request on a connection of its own."""

    async def fetch() -> Answer:
        async with connected(address, ca, name=name, idle_timeout=idle_timeout) as client:
            return await client.get(path, **settings)

    return asyncio.run(fetch())


def varint(value: int) -> bytes:
    """An integer of QUIC (RFC 9000, section 16)."""
    for size, limit in ((1, 1 << 6), (2, 1 << 14), (4, 1 << 30), (8, 1 << 62)):
        if value < limit:
            return (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(f"{value} is too large")


def frame(kind: int, payload: bytes = b"") -> bytes:
    return varint(kind) + varint(len(payload)) + payload


def frames(data: bytes, *, whole: bool = True) -> list[tuple[int, bytes]]:
    """The frames that `data` consists of, the last of them whole if `whole`."""
    found = []
    while data:
        kind, data = _varint(data)
        length, data = _varint(data)
        assert len(data) >= length or not whole, "a frame is cut off"
        found.append((kind, data[:length]))
        data = data[length:]
    return found


def _varint(data: bytes) -> tuple[int, bytes]:
    size = 1 << (data[0] >> 6)
    return int.from_bytes(data[:size], "big") & (1 << 8 * size - 2) - 1, data[size:]


def status(block: bytes) -> int:
    """The status that the gateway begins its field sections with."""
    known = {24: 103, 25: 200, 26: 304, 27: 404, 28: 503, 67: 400, 68: 403, 69: 421, 70: 425, 71: 500}
    if block[2] & 0xC0 == 0xC0:
        index = block[2] & 0x3F
        return known[index if index < 63 else 63 + block[3]]
    assert block[2] == 0x5F and block[3] == 9, "no :status at the beginning"
    return int(block[5 : 5 + block[4]])


def section(fields: Headers) -> bytes:
    """A field section in which every field is a literal."""
    return section_of([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])


def section_of(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The same for fields whose bytes are no text."""
    return b"\x00\x00" + b"".join(_string(name, 0x20, 3) + _string(value, 0, 7) for name, value in fields)


def _string(text: bytes, pattern: int, prefix: int) -> bytes:
    most = (1 << prefix) - 1
    if len(text) < most:
        return bytes([pattern | len(text)]) + text
    length, rest = bytes([pattern | most]), len(text) - most
    while rest >= 0x80:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return length + bytes([rest]) + text
