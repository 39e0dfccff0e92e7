"""WebSocket clients over HTTP/1.1, HTTP/2 (RFC 8441) and HTTP/3 (RFC 9220) that are alike to a test."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from support import h3
from support.client import Address, context
from support.websocket import MAX_SIZE

Message = str | bytes
Fields = list[tuple[str, str]]


class DeclinedError(Exception):
    """The answer was not yes."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


class Socket(ABC):
    """What clients of every protocol can do."""

    subprotocol: str | None
    code: int | None = None
    """The code that the server has closed with."""

    @abstractmethod
    async def send(self, message: Message) -> None: ...

    @abstractmethod
    async def receive(self) -> Message:
        """The next message. EOFError when there is none."""

    @abstractmethod
    async def ping(self) -> None:
        """Send a ping, and wait for its pong."""

    @abstractmethod
    async def close(self, code: int) -> None:
        """Close, and wait for the server to do so."""

    @abstractmethod
    def vanish(self) -> None:
        """Be gone, connection and all, from one moment to the next."""


class Http1Socket(Socket):
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.subprotocol = socket.subprotocol

    async def send(self, message: Message) -> None:
        await self._socket.send(message)

    async def receive(self) -> Message:
        try:
            return await self._socket.recv()
        except ConnectionClosed as closed:
            self.code = self._socket.close_code
            raise EOFError(str(closed)) from closed

    async def ping(self) -> None:
        await (await self._socket.ping())

    async def close(self, code: int) -> None:
        await self._socket.close(code)
        self.code = self._socket.close_code

    def vanish(self) -> None:
        self._socket.transport.abort()


class Tunnel(ABC):
    """A stream that carries the bytes of a connection."""

    headers: dict[str, str]

    @abstractmethod
    async def write(self, data: bytes, *, end: bool = False) -> None: ...

    @abstractmethod
    async def read(self) -> bytes:
        """What has come; b"" at the end. ConnectionError where it is not a good one."""

    @abstractmethod
    def cut(self) -> None:
        """Let go of the whole connection, without a word."""


class TunnelSocket(Socket):
    """WebSocket's frames in a tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.subprotocol = tunnel.headers.get("sec-websocket-protocol")
        self._frames = Connection(ConnectionType.CLIENT)
        self._message: list[bytes] = []
        self._pongs = 0

    async def _say(self, event: Event) -> None:
        await self._tunnel.write(self._frames.send(event))

    async def send(self, message: Message) -> None:
        await self._say(TextMessage(message) if isinstance(message, str) else BytesMessage(message))

    async def receive(self) -> Message:
        while (message := await self._next()) is None:
            await self._more()
        return message

    async def _more(self) -> None:
        data = await self._tunnel.read()
        if not data:
            raise EOFError("the stream has ended")
        self._frames.receive_data(data)

    async def _next(self) -> Message | None:
        """A message that is whole now. EOFError when the server has closed."""
        for event in self._frames.events():
            match event:
                case TextMessage() | BytesMessage():
                    self._message.append(event.data.encode() if isinstance(event.data, str) else bytes(event.data))
                    if event.message_finished:
                        whole, self._message = b"".join(self._message), []
                        return whole.decode() if isinstance(event, TextMessage) else whole
                case Pong():
                    self._pongs += 1
                case CloseConnection():
                    self.code = event.code
                    if self._frames.state is ConnectionState.REMOTE_CLOSING:
                        await self._say(event.response())
                    raise EOFError("the server has closed")
        return None

    async def ping(self) -> None:
        wanted = self._pongs + 1
        await self._say(Ping(b"here?"))
        while self._pongs < wanted:
            assert await self._next() is None
            if self._pongs < wanted:
                await self._more()

    async def close(self, code: int) -> None:
        await self._say(CloseConnection(code))
        with contextlib.suppress(EOFError):
            while True:
                await self.receive()
        # Behind its frame the server ends the connection, and so the stream ends.
        assert await self._tunnel.read() == b""
        await self._tunnel.write(b"", end=True)

    def vanish(self) -> None:
        self._tunnel.cut()


class Http2Tunnel(Tunnel, asyncio.Protocol):
    """The stream of one CONNECT on an HTTP/2 connection of its own."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._news = asyncio.Event()
        self._received = bytearray()
        self.headers: dict[str, str] = {}
        self.settled = self.ended = self.going = False
        self.failure: Exception | None = None
        self._stream = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._h2.initiate_connection()
        self._flush()

    def connection_lost(self, reason: Exception | None) -> None:
        self.failure = self.failure or reason or ConnectionError("the connection has ended")
        self._news.set()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            match event:
                case RemoteSettingsChanged():
                    self.settled |= SettingCodes.ENABLE_CONNECT_PROTOCOL in event.changed_settings
                case ResponseReceived():
                    self.headers = {str(name): str(value) for name, value in event.headers or ()}
                case DataReceived():
                    self._received += event.data or b""
                case StreamEnded():
                    self.ended = True
                case StreamReset():
                    self.failure = ConnectionResetError(f"reset with {event.error_code}")
                case ConnectionTerminated():
                    self.going = True
        self._flush()
        self._news.set()

    def _flush(self) -> None:
        self.transport.write(self._h2.data_to_send())

    async def wait(self) -> None:
        """Until something new has come."""
        self._news.clear()
        await asyncio.wait_for(self._news.wait(), 30)

    async def open(self, path: str, fields: Fields) -> None:
        """Begin, and wait for the answer, which is in `headers`."""
        while not self.settled:
            await self.wait()
        assert self._h2.remote_settings.enable_connect_protocol == 1
        self._stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(self._stream, _connect(path, fields))
        self._flush()
        while not self.headers and self.failure is None:
            await self.wait()

    async def write(self, data: bytes, *, end: bool = False) -> None:
        rest = memoryview(data)
        while rest and not self.failure:
            room = min(self._h2.local_flow_control_window(self._stream), self._h2.max_outbound_frame_size)
            if not room:
                await self.wait()
                continue
            self._h2.send_data(self._stream, bytes(rest[:room]))
            self._flush()
            rest = rest[room:]
        if self.failure:
            raise self.failure
        if end:
            self._h2.end_stream(self._stream)
            self._flush()

    async def read(self) -> bytes:
        while not self._received and not self.ended and not self.failure:
            await self.wait()
        taken = bytes(self._received)
        self._received.clear()
        if taken:
            with contextlib.suppress(Exception):
                self._h2.acknowledge_received_data(len(taken), self._stream)
                self._flush()
        elif self.failure and not self.ended:
            raise self.failure
        return taken

    def reset(self, code: int = 8) -> None:
        self._h2.reset_stream(self._stream, code)
        self._flush()

    def cut(self) -> None:
        self.transport.abort()


class Http3Tunnel(Tunnel):
    """The stream of one CONNECT on an HTTP/3 connection of its own."""

    def __init__(self, client: h3.Http3) -> None:
        self.client = client
        self.headers: dict[str, str] = {}
        self.stream = 0
        self._read = 0

    async def open(self, path: str, fields: Fields) -> None:
        protocol = (":protocol", "websocket")
        self.stream = self.client.begin(path, method="CONNECT", headers=[protocol, *fields], end=False)
        answer = self.client.answers[self.stream]
        await self.client.until(lambda: answer.headers or answer.reset is not None)
        self.headers = dict(answer.headers)

    async def write(self, data: bytes, *, end: bool = False) -> None:
        answer = self.client.answers[self.stream]
        if answer.reset is not None or answer.stopped is not None or self.client.ended:
            raise ConnectionResetError(f"reset with {answer.reset}")
        self.client.data(self.stream, data, end=end)

    async def read(self) -> bytes:
        answer = self.client.answers[self.stream]
        await self.client.until(lambda: len(answer.body) > self._read or answer.ended or answer.reset is not None, 30)
        taken = answer.body[self._read :]
        self._read = len(answer.body)
        if not taken and not answer.ended:
            raise ConnectionResetError(f"reset with {answer.reset}; {self.client.ended}")
        return taken

    def reset(self, code: int = h3.REQUEST_CANCELLED) -> None:
        self.client.cancel(self.stream, code)

    def cut(self) -> None:
        # Its goodbye would be a word.
        self.client.quic.close = lambda **_: None
        assert self.client._transport is not None
        self.client._transport.abort()


def _connect(path: str, fields: Fields) -> Fields:
    pseudo = [(":method", "CONNECT"), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
    return [*pseudo, (":protocol", "websocket"), *fields]


@contextlib.asynccontextmanager
async def tunnel(protocol: str, address: Address, ca: Path, path: str) -> AsyncIterator[Http2Tunnel | Http3Tunnel]:
    """A tunnel over h2 or h3. DeclinedError when the answer is another than 200."""
    fields = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat")]
    async with contextlib.AsyncExitStack() as stack:
        made: Http2Tunnel | Http3Tunnel
        if protocol == "h2":
            loop = asyncio.get_running_loop()
            tls = context(ca, ["h2"])
            _, made = await loop.create_connection(Http2Tunnel, *address, ssl=tls, server_hostname="localhost")
            stack.callback(made.cut)
        else:
            made = Http3Tunnel(await stack.enter_async_context(h3.connected(address, ca)))
        await made.open(path, fields)
        status = int(made.headers.get(":status", 0))
        if status != 200:
            body = b""
            with contextlib.suppress(ConnectionError):
                while piece := await made.read():
                    body += piece
            raise DeclinedError(status, body)
        yield made


@contextlib.asynccontextmanager
async def websocket(protocol: str, address: Address, ca: Path, path: str) -> AsyncIterator[Socket]:
    """A WebSocket over http/1.1, h2 or h3."""
    if protocol == "http/1.1":
        tls = context(ca, ["http/1.1"])
        uri = f"wss://localhost:{address[1]}{path}"
        async with connect(uri, ssl=tls, subprotocols=["chat"], max_size=MAX_SIZE, proxy=None) as socket:  # type: ignore[list-item]
            yield Http1Socket(socket)
        return
    async with tunnel(protocol, address, ca, path) as made:
        yield TunnelSocket(made)
