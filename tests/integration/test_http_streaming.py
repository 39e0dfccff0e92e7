"""Bodies in both directions, as large as they come, and what else HTTP/1.1 carries."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import aiohttp
import pytest

from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.process import run
from support.servers import Handler, Loop, Reader, Server, Writer, http_body, http_head, http_response
from support.websocket import WebSocketEcho

from .conftest import Serve, Start

LARGE = 100 << 20
PIECE = bytes(range(256)) * 256
# What a transfer may add to the gateway's memory: buffers, not bodies.
ROOM = 8 << 20


async def bulk(reader: Reader, writer: Writer) -> None:
    """GET: 100 MiB; anything else: the number of bytes taken and their SHA-256."""
    while (head := await http_head(reader)) is not None:
        line, headers = head
        known = {name.lower(): value for name, value in headers}
        if line.startswith("GET"):
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n".encode())
            for _ in range(LARGE // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
            continue
        left = int(known["content-length"])
        total, digest = left, hashlib.sha256()
        while left:
            piece = await reader.read(min(left, 1 << 20))
            if not piece:
                return
            digest.update(piece)
            left -= len(piece)
        writer.write(http_response("200 OK", f"{total} {digest.hexdigest()}".encode()))
        await writer.drain()


async def shapes(reader: Reader, writer: Writer) -> None:
    """Answers by path with every shape that a response can have."""
    while (head := await http_head(reader)) is not None:
        line, headers = head
        _, path, _ = line.split(" ")
        body, trailers = await http_body(reader, headers)
        if path == "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
            for text in (b"one ", b"two ", b"three"):
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(b"0\r\nX-Sum: 13\r\n\r\n")
        elif path == "/trailers":
            told = json.dumps({"body": body.decode(), "trailers": trailers}).encode()
            writer.write(http_response("200 OK", told))
        elif path == "/until-close":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"until the end")
            return
        elif path == "/old":
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
            return
        elif path == "/early":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + http_response("200 OK", b"late"))
        elif path == "/head":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-Shape: head\r\n\r\n")
        elif path == "/204":
            writer.write(b"HTTP/1.1 204 No Content\r\nX-Shape: empty\r\n\r\n")
        elif path == "/304":
            writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 99\r\n\r\n')
        else:
            writer.write(http_response("200 OK", b"plain"))
        await writer.drain()


def in_two(go_on: threading.Event) -> Handler:
    """Answers in two chunks, of which the second waits for the test."""

    async def serve(reader: Reader, writer: Writer) -> None:
        while await http_head(reader) is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n")
            await writer.drain()
            await asyncio.to_thread(go_on.wait, 30)
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            await writer.drain()

    return serve


@pytest.fixture(scope="module")
def go_on() -> threading.Event:
    return threading.Event()


@pytest.fixture(scope="module")
def websocket(loop: Loop) -> Iterator[WebSocketEcho]:
    with WebSocketEcho(loop) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(
    shared_gateway: Start, edge: Pair, loop: Loop, websocket: WebSocketEcho, go_on: threading.Event
) -> Gateway:
    def route(path: str, name: str, **settings: object) -> Settings:
        return {"match": {"path_prefix": path}, "upstream": name, **settings}

    routes = [health(), route("/bulk", "bulk"), route("/ws", "websocket"), route("/in-two", "in-two")]
    listeners = [listener(edge, routes=[*routes, to_app(upstream="shapes")])]
    upstreams = [
        upstream("bulk", Server(loop, bulk).endpoint),
        upstream("in-two", Server(loop, in_two(go_on)).endpoint),
        upstream("shapes", Server(loop, shapes).endpoint),
        upstream("websocket", websocket.endpoint),
    ]
    return shared_gateway(configuration(listeners, *upstreams))


@pytest.fixture
def client(gateway: Gateway, authority: Authority) -> Iterator[Http1]:
    with Http1.open(gateway.address(), authority.certificate) as client:
        yield client


def expected_digest() -> str:
    digest = hashlib.sha256()
    for _ in range(LARGE // len(PIECE)):
        digest.update(PIECE)
    return digest.hexdigest()


@pytest.mark.needs("curl")
@pytest.mark.parametrize("flag", ["--http1.1", "--http2"])
class TestLarge:
    def curl(self, gateway: Gateway, authority: Authority, flag: str, *more: str) -> bytes:
        url = f"https://localhost:{gateway.address()[1]}/bulk"
        words = ["curl", "-sS", flag, "--cacert", authority.certificate, *more, url]
        done = run(words, stdin=b"" if "-T" not in more else PIECE * (LARGE // len(PIECE)), timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_download(self, gateway: Gateway, authority: Authority, flag: str) -> None:
        before = gateway.program.resident()
        body = self.curl(gateway, authority, flag)
        assert hashlib.sha256(body).hexdigest() == expected_digest()
        assert gateway.program.resident() - before < ROOM

    def test_upload(self, gateway: Gateway, authority: Authority, flag: str) -> None:
        before = gateway.program.resident()
        sized = ("-H", f"Content-Length: {LARGE}", "-H", "Transfer-Encoding:", "-H", "Expect:")
        body = self.curl(gateway, authority, flag, "-T", "-", *sized)
        assert body.decode() == f"{LARGE} {expected_digest()}"
        assert gateway.program.resident() - before < ROOM


def test_a_slow_reader_slows_the_upstream(gateway: Gateway, authority: Authority, serve: Serve, edge: Pair) -> None:
    sent = 0

    async def endless(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await http_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(PIECE)
            await writer.drain()
            sent += len(PIECE)

    server = serve(endless)
    before = gateway.program.resident()
    settings = json.loads(gateway.file.read_text())
    settings["listeners"][0]["routes"].insert(0, {"match": {"path": "/endless"}, "upstream": "endless"})
    settings["upstreams"].append(upstream("endless", server.endpoint))
    code, text = gateway.reload(settings)
    assert code == 0, text
    with Http1.open(gateway.address(), authority.certificate) as client:
        client.send(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.head().status == 200
        # It flows until the buffers on the way are full, and then stands still.
        eventually(lambda: sent > 0)
        still = -1
        while still != sent:
            still = sent
            time.sleep(0.5)
        assert still < 32 << 20, "the kernel's buffers and ours do not hold that much"
        assert gateway.program.resident() - before < ROOM
        client.exactly(16 << 20)
        eventually(lambda: sent > still)


class TestShapes:
    def test_chunks_and_trailers_of_a_response(self, client: Http1) -> None:
        response = client.request("/chunked", headers=[("TE", "trailers")])
        assert (response.status, response.body) == (200, b"one two three")
        assert response.trailers == [("x-sum", "13")] or response.trailers == [("X-Sum", "13")]

    def test_chunks_are_passed_on_as_they_come(self, client: Http1, go_on: threading.Event) -> None:
        go_on.clear()
        client.send(b"GET /in-two HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.head().header("transfer-encoding") == "chunked"
        chunks = client.chunks()
        # Held back until more had come, it would never be here.
        assert next(chunks) == b"one "
        go_on.set()
        assert b"".join(chunks) == b"two"

    def test_chunks_and_trailers_of_a_request(self, client: Http1) -> None:
        client.send(
            b"POST /trailers HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3\r\nabc\r\n4;note=x\r\ndefg\r\n0\r\nX-Sum: 7\r\nX-Client-Verified: SUCCESS\r\n\r\n"
        )
        told = json.loads(client.response("POST").body)
        assert told["body"] == "abcdefg"
        trailers = [[name.lower(), value] for name, value in told["trailers"]]
        # A trailer is no way round what headers may claim.
        assert trailers == [["x-sum", "7"]]

    def test_a_body_that_ends_with_the_connection(self, client: Http1) -> None:
        assert client.request("/until-close").body == b"until the end"
        assert client.request("/plain").body == b"plain", "the client's connection outlives the upstream's"

    def test_http10_upstream(self, client: Http1) -> None:
        assert client.request("/old").body == b"old"
        assert client.request("/plain").body == b"plain"

    def test_early_hints(self, client: Http1) -> None:
        assert client.request("/early").body == b"late"
        assert client.request("/plain").body == b"plain"

    def test_head(self, client: Http1) -> None:
        response = client.request("/head", method="HEAD")
        assert (response.status, response.header("content-length")) == (200, "1234")
        assert response.header("x-shape") == "head"
        assert client.request("/health", method="HEAD").header("content-length") == "11"
        assert client.request("/plain").body == b"plain"

    @pytest.mark.parametrize(("path", "status"), [("/204", 204), ("/304", 304)])
    def test_responses_without_a_body(self, client: Http1, path: str, status: int) -> None:
        response = client.request(path)
        assert response.status == status
        assert response.header("transfer-encoding") is None
        if status == 204:
            assert response.header("content-length") is None
        assert client.request("/plain").body == b"plain"

    def test_pipelined_requests_are_answered_in_order(self, client: Http1) -> None:
        paths = (b"/chunked", b"/plain", b"/health")
        client.send(b"".join(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths))
        assert [client.response().body for _ in range(3)] == [b"one two three", b"plain", b'{"ok":true}']

    def test_connection_close(self, client: Http1) -> None:
        response = client.request("/plain", headers=[("Connection", "close")])
        assert (response.body, response.header("connection")) == (b"plain", "close")
        assert client.closed()

    def test_http10_client(self, client: Http1) -> None:
        client.send(b"GET /chunked HTTP/1.0\r\nHost: localhost\r\n\r\n")
        head = client.head()
        assert (head.status, head.header("transfer-encoding")) == (200, None)
        assert client.rest() == b"one two three"


class TestExpectContinue:
    def test_the_body_is_asked_for(self, client: Http1) -> None:
        client.send(b"POST /trailers HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert client.head().status == 100
        client.send(b"hello")
        assert json.loads(client.response("POST").body)["body"] == "hello"

    def test_the_body_is_not_asked_for_when_nobody_wants_it(self, client: Http1) -> None:
        client.send(b"POST /health HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        head = client.head()
        assert head.status == 200
        assert client.exactly(11) == b'{"ok":true}'
        # The body may come or not: the connection cannot go on.
        assert head.header("connection") == "close"
        assert client.closed()


def tls(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


class TestWebSocket:
    # The client runs on the servers' event loop: what it closes is gone only once the peer has answered, after the
    # test has ended.

    def test_echo(self, gateway: Gateway, authority: Authority, loop: Loop, websocket: WebSocketEcho) -> None:
        url = f"https://localhost:{gateway.address()[1]}/ws/room?x=1"

        async def talk() -> None:
            connector = aiohttp.TCPConnector(ssl=tls(authority))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.ws_connect(url, protocols=("chat",), max_msg_size=1 << 24) as socket,
            ):
                assert socket.protocol == "chat"
                await socket.send_str("hello")
                assert (await socket.receive_str()) == "hello"
                content = PIECE * 64
                await socket.send_bytes(content)
                assert (await socket.receive_bytes()) == content
                for number in range(200):
                    await socket.send_str(str(number))
                assert [await socket.receive_str() for _ in range(200)] == [str(number) for number in range(200)]
                await socket.ping()

        loop.run(talk())
        assert websocket.requests[-1]["x-forwarded-for"] == "127.0.0.1"

    def test_many_at_once(self, gateway: Gateway, authority: Authority, loop: Loop) -> None:
        url = f"https://localhost:{gateway.address()[1]}/ws"

        async def talk(session: aiohttp.ClientSession, number: int) -> None:
            async with session.ws_connect(url) as socket:
                for turn in range(10):
                    await socket.send_str(f"{number} {turn}")
                    assert (await socket.receive_str()) == f"{number} {turn}"

        async def many() -> None:
            connector = aiohttp.TCPConnector(ssl=tls(authority), limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                await asyncio.gather(*(talk(session, number) for number in range(60)))

        loop.run(many())

    def test_bytes_behind_the_request_are_not_lost(self, client: Http1) -> None:
        """A client may send its first frame with the request, before it has the 101."""
        frame = b"\x81\x82\x00\x00\x00\x00hi"
        client.send(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + frame
        )
        response = client.response()
        assert (response.status, response.header("upgrade")) == (101, "websocket")
        assert response.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert client.exactly(4) == b"\x81\x02hi"

    def test_the_end_of_one_side_is_the_end_of_the_other(self, gateway: Gateway, client: Http1) -> None:
        client.send(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert client.response().status == 101
        client.stream.shutdown(socket.SHUT_RDWR)
        eventually(lambda: gateway.metric("mitu_upstream_requests_active", upstream="websocket") == 0)
