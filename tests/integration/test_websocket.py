"""WebSocket over HTTP/1.1, HTTP/2 and HTTP/3: to its server all are the same."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientWebSocketResponse

from support.build import CLIENTS
from support.certificates import Authority, Pair
from support.gateway import Gateway, Settings, configuration, health, listener, upstream
from support.net import eventually
from support.process import output
from support.real_clients import Chromium, Ports, Said
from support.servers import Loop
from support.websocket import PIECE, WebSocketServer
from support.websocket_clients import DeclinedError, Http2Tunnel, Http3Tunnel, Socket, tunnel, websocket

from .conftest import Start

PROTOCOLS = ("http/1.1", "h2", "h3")
BUFFER = 65536
PAGE = {"status": 200, "content_type": "text/html", "body": "<!doctype html><title>chat</title>"}


@pytest.fixture(scope="module")
def server(loop: Loop) -> Iterator[WebSocketServer]:
    with WebSocketServer(loop) as server:
        yield server


def serving(edge: Pair, server: WebSocketServer, **settings: object) -> Settings:
    routes = [
        health(),
        {"match": {"path": "/page"}, "respond": PAGE},
        {"match": {"path_prefix": "/"}, "upstream": "chat"},
    ]
    form = {"protocols": ["h3", "h2", "http/1.1"], "routes": routes, "limits": {"buffer_size": BUFFER}, **settings}
    access = {"path": "access.log", "connections": True}
    return configuration([listener(edge, **form)], upstream("chat", server.endpoint), logging={"access": access})


@pytest.fixture(scope="module")
def running(shared_gateway: Start, edge: Pair, server: WebSocketServer) -> Gateway:
    return shared_gateway(serving(edge, server), flags=["--no-watch"])


Talk = Callable[[Socket], Awaitable[None]]


@pytest.fixture
def talk(authority: Authority) -> Callable[..., None]:
    """Runs a conversation on a WebSocket of its own."""

    def run(gateway: Gateway, protocol: str, path: str, conversation: Talk) -> None:
        async def whole() -> None:
            async with asyncio.timeout(60):
                async with websocket(protocol, gateway.address(), authority.certificate, path) as socket:
                    await conversation(socket)

        asyncio.run(whole())

    return run


def idle(gateway: Gateway) -> None:
    """Until no upstream is in use any more."""
    eventually(lambda: gateway.metric("mitu_upstream_requests_active") == 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestEach:
    def test_messages(
        self, running: Gateway, server: WebSocketServer, protocol: str, talk: Callable[..., None]
    ) -> None:
        async def conversation(socket: Socket) -> None:
            assert socket.subprotocol == "chat"
            await socket.send("hello")
            assert await socket.receive() == "hello"
            for number in range(200):
                await socket.send(f"{number}")
            assert [await socket.receive() for _ in range(200)] == [f"{number}" for number in range(200)]
            await socket.ping()
            await socket.close(4002)
            assert socket.code == 4002

        closed = len(server.closed)
        talk(running, protocol, "/echo?x=1", conversation)
        asked = server.requests[-1]
        assert (asked.path, asked.headers["host"], asked.headers["x-forwarded-for"]) == ("/echo?x=1", "localhost" + (
            f":{running.address()[1]}" if protocol == "http/1.1" else ""), "127.0.0.1")  # fmt: skip
        eventually(lambda: server.closed[closed:] == [4002])
        idle(running)

    def test_large_messages(self, running: Gateway, protocol: str, talk: Callable[..., None]) -> None:
        # aioquic's bytes are counted by Python, one by one.
        content = PIECE * (16 if protocol == "h3" else 128)

        async def conversation(socket: Socket) -> None:
            for _ in range(2):
                # The server reads a message whole before it answers.
                await socket.send(content)
                assert await socket.receive() == content
            await socket.close(1000)

        talk(running, protocol, "/echo", conversation)

    def test_a_close_by_the_server(self, running: Gateway, protocol: str, talk: Callable[..., None]) -> None:
        async def conversation(socket: Socket) -> None:
            with pytest.raises(EOFError):
                await socket.receive()
            assert socket.code == 4001

        talk(running, protocol, "/close", conversation)
        idle(running)

    def test_a_server_that_does_not_read(
        self, running: Gateway, server: WebSocketServer, protocol: str, talk: Callable[..., None]
    ) -> None:
        sent = 0

        async def conversation(socket: Socket) -> None:
            nonlocal sent
            with pytest.raises(TimeoutError):
                while sent < 1 << 30:
                    await asyncio.wait_for(socket.send(PIECE), 2)
                    sent += len(PIECE)

        if protocol == "h3":
            pytest.skip("aioquic takes all that it is given to send")
        talk(running, protocol, "/deaf", conversation)
        # Windows, buffers of the gateway, and what the kernel keeps of two connections on loopback.
        assert len(PIECE) <= sent < 32 << 20
        if protocol == "http/1.1":
            # Nothing is read of a client whose bytes nobody takes, its end neither.
            server.wake()
        idle(running)

    def test_a_client_that_vanishes(
        self, running: Gateway, server: WebSocketServer, protocol: str, talk: Callable[..., None]
    ) -> None:
        async def conversation(socket: Socket) -> None:
            await socket.send("hello")
            assert await socket.receive() == "hello"
            socket.vanish()
            await asyncio.sleep(0)

        if protocol == "h3":
            pytest.skip("without a word over QUIC it is there until `timeouts.relay_idle`; see the reset below")
        closed = len(server.closed)
        talk(running, protocol, "/echo", conversation)
        eventually(lambda: server.closed[closed:] == [1006])
        idle(running)

    def test_an_open_one_outlives_a_reload(
        self, gateway: Start, edge: Pair, server: WebSocketServer, protocol: str, talk: Callable[..., None]
    ) -> None:
        mine = gateway(serving(edge, server), flags=["--no-watch"])

        async def conversation(socket: Socket) -> None:
            await socket.send("one")
            assert await socket.receive() == "one"
            without = serving(edge, server, routes=[health()])
            await asyncio.to_thread(mine.apply, without)
            await socket.send("two")
            assert await socket.receive() == "two"
            await socket.close(1000)

        talk(mine, protocol, "/echo", conversation)

    def test_an_open_one_goes_on_in_a_drain(
        self, gateway: Start, edge: Pair, server: WebSocketServer, protocol: str, talk: Callable[..., None]
    ) -> None:
        if protocol == "h2":
            pytest.skip("this client takes GOAWAY for the end of all: see `crates/mitu-proxy/tests/http/tunnel.rs`")
        mine = gateway(serving(edge, server), flags=["--no-watch", "--drain-timeout", "7200"])

        async def conversation(socket: Socket) -> None:
            await socket.send("one")
            assert await socket.receive() == "one"
            mine.program.signal(signal.SIGTERM)
            await asyncio.sleep(1)
            await socket.send("two")
            assert await socket.receive() == "two"
            assert mine.program.alive()
            await socket.close(1000)

        talk(mine, protocol, "/echo", conversation)
        assert mine.program.process.wait(30) == 0, mine.program.log


@pytest.mark.parametrize("protocol", ["h2", "h3"])
class TestTunnels:
    """What only streams do."""

    def test_a_server_that_declines(self, running: Gateway, authority: Authority, protocol: str) -> None:
        async def ask() -> None:
            async with tunnel(protocol, running.address(), authority.certificate, "/no"):
                pass

        with pytest.raises(DeclinedError) as declined:
            asyncio.run(ask())
        assert (declined.value.status, declined.value.body) == (403, b"not here\n")
        idle(running)

    def test_what_is_no_websocket(self, running: Gateway, authority: Authority, protocol: str) -> None:
        async def ask() -> None:
            async with tunnel(protocol, running.address(), authority.certificate, "/health"):
                pass

        with pytest.raises(DeclinedError) as declined:
            asyncio.run(ask())
        assert (declined.value.status, declined.value.body.split()[0]) == (501, b"501")

    @pytest.mark.parametrize("path", ["/echo", "/deaf"])
    def test_a_reset(
        self, running: Gateway, server: WebSocketServer, authority: Authority, protocol: str, path: str
    ) -> None:
        async def ask() -> None:
            async with tunnel(protocol, running.address(), authority.certificate, path) as made:
                assert running.metric("mitu_upstream_requests_active") == 1
                made.reset()
                await asyncio.to_thread(idle, running)

        asyncio.run(ask())

    def test_a_client_that_does_not_read(
        self, running: Gateway, server: WebSocketServer, authority: Authority, protocol: str
    ) -> None:
        async def ask() -> None:
            async with tunnel(protocol, running.address(), authority.certificate, "/flood") as made:
                pause(made)
                before = -1
                while before != server.sent:
                    before = server.sent
                    await asyncio.sleep(1)
                assert before < 32 << 20
                resume(made)
                read = 0
                while read < before + (1 << 20):
                    read += len(await made.read())
                made.reset()

        server.sent = 0
        asyncio.run(ask())
        idle(running)

    def test_the_log_tells_of_both_directions(
        self, running: Gateway, authority: Authority, protocol: str, talk: Callable[..., None]
    ) -> None:
        async def conversation(socket: Socket) -> None:
            await socket.send(PIECE)
            assert await socket.receive() == PIECE
            await socket.close(1000)

        path = f"/echo?log={protocol}"
        talk(running, protocol, path, conversation)
        line = eventually(lambda: [one for one in running.logged() if one.get("path") == path])[0]
        assert (line["method"], line["alpn"], line["status"], line["upstream"]) == ("CONNECT", protocol, 200, "chat")
        # A message and a frame that closes each way; the client's are masked.
        assert (line["bytes_received"], line["bytes_sent"]) == (len(PIECE) + 14 + 8, len(PIECE) + 10 + 4)
        assert "reason" not in line or line["reason"] is None


LIMITS_OF_AIOQUIC = ("_write_connection_limits", "_write_stream_limits")


def pause(made: Http2Tunnel | Http3Tunnel) -> None:
    """Take nothing more, or allow nothing more to be sent."""
    if isinstance(made, Http2Tunnel):
        made.transport.pause_reading()
    else:
        for limits in LIMITS_OF_AIOQUIC:
            setattr(made.client.quic, limits, lambda *_, **__: None)


def resume(made: Http2Tunnel | Http3Tunnel) -> None:
    if isinstance(made, Http2Tunnel):
        made.transport.resume_reading()
    else:
        for limits in LIMITS_OF_AIOQUIC:
            delattr(made.client.quic, limits)
        made.client.transmit()


class Page(Chromium):
    """Goes to /page, and says there what `script` promises."""

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = script

    async def _look(self, tools: ClientWebSocketResponse, url: str) -> Said:
        await self._call(tools, "Page.navigate", url=url)
        settings = {"awaitPromise": True, "returnByValue": True}
        got = await self._call(tools, "Runtime.evaluate", expression=self._script, **settings)
        return Said("exceptionDetails" not in got, str(got["result"]))


class TestBrowsers:
    def test_chromium_over_h2(self, running: Gateway, authority: Authority, tmp_path: Path) -> None:
        """It uses the connection that the page has come over, without being asked."""
        port = running.address()[1]
        script = f"""new Promise((done, failed) => {{
            const socket = new WebSocket('wss://localhost:{port}/echo?chromium');
            let text = '';
            socket.onopen = () => {{ socket.send('hello'); socket.send('x'.repeat(1 << 20)); }};
            socket.onmessage = (message) => {{
                text += message.data;
                if (text.length === 5 + (1 << 20)) socket.close(4003);
            }};
            socket.onclose = (closed) => done([text.slice(0, 5), text.length, closed.code, closed.wasClean].join(" "));
        }})"""
        said = Page(script)(Ports(authority.certificate, {"edge": port}, tmp_path, "/page"))["edge"]
        assert said.ok and f"'hello {5 + (1 << 20)} 4003 true'" in said.words, said
        path = "/echo?chromium"
        line = eventually(lambda: [one for one in running.logged() if one.get("path") == path])[0]
        page = next(one for one in running.logged() if one.get("path") == "/page")
        assert (line["method"], line["alpn"], line["status"]) == ("CONNECT", "h2", 200)
        assert line["connection"] == page["connection"]

    def test_node_over_h2(self, running: Gateway, authority: Authority) -> None:
        address = f"https://localhost:{running.address()[1]}"
        said = json.loads(output(["node", CLIENTS / "node" / "websocket.js", authority.certificate, address, "/echo"]))
        assert said == {"status": 200, "echoed": "hello", "ended": True}
