"""Relayed protocols: bytes both ways, each end passed on, and what upstreams are told of the client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from support import proxy_protocol
from support.certificates import Authority, Pair
from support.client import Http1, client_hello, connect, context
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.net import eventually, free_port
from support.servers import Loop, Reader, Server, Writer, echo

from .conftest import Start

SIZE = 50 << 20


class Relayed:
    """Upstreams for relays, and what they have seen."""

    def __init__(self, loop: Loop, authority: Authority, edge: Pair) -> None:
        self.headers: list[proxy_protocol.Header] = []
        self.ended: list[str] = []
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
        server_tls.load_cert_chain(edge.certificate, edge.key)
        server_tls.verify_mode = ssl.CERT_OPTIONAL
        # Unix sockets have short paths: not under pytest's folders.
        self.unix = Path(f"/tmp/mitu-relay-{os.getpid()}.sock")  # noqa: S108 - the test's own name
        self.servers = {
            "echo": Server(loop, echo),
            "unix": Server(loop, echo, unix=self.unix),
            "tls": Server(loop, self.identify, tls=server_tls),
            "talk-first": Server(loop, self.talk_first),
            "finish-first": Server(loop, self.finish_first),
            "sink": Server(loop, self.sink),
            "source": Server(loop, self.source),
            "stuck": Server(loop, self.stuck),
            "told": Server(loop, self.told),
        }

    async def identify(self, reader: Reader, writer: Writer) -> None:
        certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
        names = [value for item in certificate.get("subject", ()) for key, value in item if key == "commonName"]
        writer.write(f"you are {','.join(names) or 'nobody'}\n".encode())
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()

    async def talk_first(self, reader: Reader, writer: Writer) -> None:
        writer.write(b"220 hello\n")
        await reader.read()

    async def finish_first(self, reader: Reader, writer: Writer) -> None:
        """Says all it has to say, ends its side, and listens on."""
        writer.write(b"all I have\n")
        writer.write_eof()
        heard = await reader.read()
        self.ended.append(f"heard {heard.decode()}")

    async def sink(self, reader: Reader, writer: Writer) -> None:
        """Takes everything, and answers once the client has ended its side."""
        digest, total = hashlib.sha256(), 0
        while piece := await reader.read(1 << 20):
            digest.update(piece)
            total += len(piece)
        writer.write(f"{total} {digest.hexdigest()}\n".encode())
        await writer.drain()

    async def source(self, reader: Reader, writer: Writer) -> None:
        piece = bytes(range(256)) * 256
        for _ in range(SIZE // len(piece)):
            writer.write(piece)
            await writer.drain()

    async def stuck(self, reader: Reader, writer: Writer) -> None:
        """Reads nothing for as long as the test lasts."""
        await asyncio.sleep(60)

    async def told(self, reader: Reader, writer: Writer) -> None:
        self.headers.append(await proxy_protocol.read(reader))
        await echo(reader, writer)


@pytest.fixture(scope="module")
def relayed(loop: Loop, authority: Authority, edge: Pair) -> Relayed:
    return Relayed(loop, authority, edge)


@pytest.fixture(scope="module")
def device(authority: Authority) -> Pair:
    return authority.issue("relayed-device", common_name="relayed-device", client=True)


@pytest.fixture(scope="module")
def gateway(
    shared_gateway: Start, edge: Pair, app: Server, relayed: Relayed, authority: Authority, device: Pair
) -> Gateway:
    ca = str(authority.certificate)
    identified = {"server_name": "edge.test", "ca": ca} | device.configured()
    more: dict[str, dict[str, object]] = {"tls": {"tls": identified}, "told": {"proxy_protocol": True}}
    names = relayed.servers
    upstreams = [upstream(name, server.endpoint, **more.get(name, {})) for name, server in names.items()]
    wrong = {"server_name": "elsewhere.test", "ca": ca}
    upstreams += [
        upstream("app", app.endpoint),
        upstream("refused", f"127.0.0.1:{free_port()}"),
        upstream("tls-wrong", names["tls"].endpoint, tls=wrong),
    ]
    protocols: list[Any] = [{"alpn": name, "relay": name} for name in (*names, "refused", "tls-wrong")]
    asks = {"client_auth": "optional", "client_ca": ca}
    listeners = [
        listener(edge, protocols=["http/1.1", *protocols], routes=[health()], tls=asks, timeouts={"relay_idle": "1h"}),
        listener(edge, name="brief", protocols=[protocols[0]], timeouts={"relay_idle": "3s"}),
        listener(
            edge,
            name="behind",
            protocols=["http/1.1", {"alpn": "told", "relay": "told"}],
            routes=[to_app()],
            proxy_protocol={"trusted": ["127.0.0.0/8"]},
            timeouts={"handshake": "1s"},
        ),
        listener(
            edge,
            name="elsewhere",
            protocols=["http/1.1"],
            routes=[to_app()],
            proxy_protocol={"trusted": ["192.0.2.0/24"]},
        ),
    ]
    return shared_gateway(configuration(listeners, *upstreams))


def open_relay(gateway: Gateway, authority: Authority, name: str, identity: Pair | None = None) -> ssl.SSLSocket:
    return connect(gateway.address(), context(authority.certificate, [name], identity=identity))


@pytest.mark.parametrize("name", ["echo", "unix"])
def test_bytes_go_both_ways(gateway: Gateway, authority: Authority, name: str) -> None:
    with open_relay(gateway, authority, name) as stream:
        for size in (1, 100, 16_384, 16_385, 200_000):
            data = os.urandom(size)
            stream.sendall(data)
            assert Http1(stream).exactly(size) == data


def test_the_upstream_may_talk_first(gateway: Gateway, authority: Authority) -> None:
    with open_relay(gateway, authority, "talk-first") as stream:
        assert Http1(stream).exactly(10) == b"220 hello\n"


def test_a_large_upload_ends_with_an_answer(gateway: Gateway, authority: Authority) -> None:
    """The client's end reaches the upstream, whose answer comes after it."""
    before = gateway.program.resident()
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with open_relay(gateway, authority, "sink") as stream:
        for _ in range(SIZE // len(piece)):
            stream.sendall(piece)
            digest.update(piece)
        half_close(stream)
        assert read_all(stream) == f"{SIZE} {digest.hexdigest()}\n".encode()
    assert gateway.program.resident() - before < 8 << 20


def test_a_large_download(gateway: Gateway, authority: Authority) -> None:
    before = gateway.program.resident()
    with open_relay(gateway, authority, "source") as stream:
        total = 0
        while piece := stream.recv(1 << 20):
            total += len(piece)
    assert total == SIZE
    assert gateway.program.resident() - before < 8 << 20


def test_the_upstream_may_finish_first(gateway: Gateway, authority: Authority, relayed: Relayed) -> None:
    with open_relay(gateway, authority, "finish-first") as stream:
        assert read_all(stream) == b"all I have\n"
        stream.sendall(b"but I go on")
        half_close(stream)
        eventually(lambda: relayed.ended == ["heard but I go on"])


def test_a_stuck_upstream_stops_the_client(gateway: Gateway, authority: Authority, relayed: Relayed) -> None:
    before = gateway.program.resident()
    with open_relay(gateway, authority, "stuck") as stream:
        stream.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                sent += stream.send(b"x" * 65536)
        assert sent < 64 << 20
        assert gateway.program.resident() - before < 8 << 20
        # A client that goes away behind what is not taken stays unseen until something moves.
        relayed.servers["stuck"].stop()


def test_an_upstream_that_cannot_be_reached_ends_the_connection(gateway: Gateway, authority: Authority) -> None:
    for name in ("refused", "tls-wrong"):
        with open_relay(gateway, authority, name) as stream:
            assert Http1(stream).closed(), name
    errors = gateway.metric("mitu_upstream_connect_errors_total", upstream="refused", reason="connect_refused")
    assert errors == 1
    assert gateway.metric("mitu_upstream_connect_errors_total", upstream="tls-wrong", reason="tls_failed") == 1


def test_tls_to_the_upstream(gateway: Gateway, authority: Authority) -> None:
    with open_relay(gateway, authority, "tls") as stream:
        assert Http1(stream).exactly(23) == b"you are relayed-device\n"
        stream.sendall(b"hello")
        assert Http1(stream).exactly(5) == b"hello"


def test_an_idle_relay_ends_and_a_busy_one_does_not(gateway: Gateway, authority: Authority) -> None:
    tls = context(authority.certificate, ["echo"])
    with connect(gateway.address("brief"), tls) as idle, connect(gateway.address("brief"), tls) as busy:
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            busy.sendall(b"x")
            assert busy.recv(1) == b"x"
            time.sleep(0.3)
        assert Http1(idle).closed(1)
        busy.sendall(b"still")
        assert Http1(busy).exactly(5) == b"still"


def test_the_bytes_are_counted(gateway: Gateway, authority: Authority) -> None:
    def moved(direction: str) -> float:
        return gateway.metric("mitu_relay_bytes_total", listener="edge", alpn="echo", direction=direction)

    before = moved("sent"), moved("received")
    with open_relay(gateway, authority, "echo") as stream:
        stream.sendall(b"x" * 1000)
        assert Http1(stream).exactly(1000)
    eventually(lambda: (moved("sent"), moved("received")) == (before[0] + 1000, before[1] + 1000))


class TestProxyProtocolToTheUpstream:
    def test_a_client_without_a_certificate(self, gateway: Gateway, authority: Authority, relayed: Relayed) -> None:
        with connect(gateway.address(), context(authority.certificate, ["told"]), name="edge.test") as stream:
            stream.sendall(b"hello")
            assert Http1(stream).exactly(5) == b"hello"
            mine, cipher = stream.getsockname(), stream.cipher()
        header = relayed.headers[-1]
        assert header.command == 1
        assert header.source == mine
        assert header.destination == gateway.address()
        assert header.tlvs[proxy_protocol.PP2_TYPE_ALPN] == b"told"
        assert header.tlvs[proxy_protocol.PP2_TYPE_AUTHORITY] == b"edge.test"
        assert header.client == proxy_protocol.PP2_CLIENT_SSL
        assert header.verify != 0
        assert header.ssl[proxy_protocol.PP2_SUBTYPE_SSL_VERSION] == b"TLSv1.3"
        assert cipher is not None
        assert header.ssl[proxy_protocol.PP2_SUBTYPE_SSL_CIPHER] == cipher[0].encode()
        assert proxy_protocol.PP2_SUBTYPE_SSL_CN not in header.ssl

    def test_a_client_with_a_certificate(
        self, gateway: Gateway, authority: Authority, relayed: Relayed, device: Pair
    ) -> None:
        with open_relay(gateway, authority, "told", device) as stream:
            stream.sendall(b"hello")
            assert Http1(stream).exactly(5) == b"hello"
        header = relayed.headers[-1]
        both = proxy_protocol.PP2_CLIENT_CERT_CONN | proxy_protocol.PP2_CLIENT_CERT_SESS
        assert header.client == proxy_protocol.PP2_CLIENT_SSL | both
        assert header.verify == 0
        assert header.ssl[proxy_protocol.PP2_SUBTYPE_SSL_CN] == b"relayed-device"


class TestProxyProtocolFromTheClient:
    SOURCE, DESTINATION = ("203.0.113.7", 40_000), ("198.51.100.1", 443)

    def open(
        self, gateway: Gateway, authority: Authority, header: bytes, alpn: str, name: str = "behind"
    ) -> ssl.SSLSocket:
        tcp = socket.create_connection(gateway.address(name), timeout=5)
        tcp.sendall(header)
        return context(authority.certificate, [alpn]).wrap_socket(tcp, server_hostname="localhost")

    @pytest.mark.parametrize("source", [("203.0.113.7", 40_000), ("2001:db8::7", 40_000)])
    def test_a_trusted_peer_is_believed(self, gateway: Gateway, authority: Authority, source: tuple[str, int]) -> None:
        destination = self.DESTINATION if "." in source[0] else ("2001:db8::1", 443)
        # Entries that are not understood are skipped.
        header = proxy_protocol.make(source, destination, tail=b"\xee\x00\x03abc")
        with self.open(gateway, authority, header, "http/1.1") as stream:
            body = Http1(stream).request("/").body.decode()
        assert f'["x-forwarded-for", "{source[0]}"]' in body

    def test_it_is_passed_on(self, gateway: Gateway, authority: Authority, relayed: Relayed) -> None:
        header = proxy_protocol.make(self.SOURCE, self.DESTINATION)
        with self.open(gateway, authority, header, "told") as stream:
            stream.sendall(b"hello")
            assert Http1(stream).exactly(5) == b"hello"
        assert (relayed.headers[-1].source, relayed.headers[-1].destination) == (self.SOURCE, self.DESTINATION)

    def test_a_health_check_keeps_its_own_address(self, gateway: Gateway, authority: Authority) -> None:
        header = proxy_protocol.SIGNATURE + b"\x20\x00\x00\x00"
        with self.open(gateway, authority, header, "http/1.1") as stream:
            assert '["x-forwarded-for", "127.0.0.1"]' in Http1(stream).request("/").body.decode()

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n",
            proxy_protocol.SIGNATURE + b"\x21\x11\x00\x04" + b"\x00" * 64,
            proxy_protocol.make(SOURCE, DESTINATION, command=7),
            proxy_protocol.SIGNATURE + b"\x21\x11\xff\xff" + b"\x00" * 64,
        ],
        ids=["none", "version 1", "cut short", "unknown command", "endless"],
    )
    def test_without_a_proper_header_there_is_no_handshake(
        self, gateway: Gateway, authority: Authority, header: bytes
    ) -> None:
        counted = {"listener": "behind", "reason": "proxy_protocol"}
        before = gateway.metric("mitu_tls_handshake_failures_total", **counted)
        with socket.create_connection(gateway.address("behind"), timeout=5) as stream:
            stream.sendall(header + client_hello(context(authority.certificate)))
            assert Http1(stream).closed(), "something was answered"
        assert eventually(lambda: gateway.metric("mitu_tls_handshake_failures_total", **counted) == before + 1)

    def test_nobody_elses_header_is_read(self, gateway: Gateway, authority: Authority) -> None:
        header = proxy_protocol.make(self.SOURCE, self.DESTINATION)
        with socket.create_connection(gateway.address("elsewhere"), timeout=5) as stream:
            stream.sendall(header + client_hello(context(authority.certificate)))
            # An alert in the clear at most: the header was taken for a TLS record, and is none.
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := stream.recv(100):
                    answer += piece
            assert answer[:1] in (b"", b"\x15")
        with connect(gateway.address("elsewhere"), context(authority.certificate)) as stream:
            assert '["x-forwarded-for", "127.0.0.1"]' in Http1(stream).request("/").body.decode()


def half_close(stream: ssl.SSLSocket) -> None:
    """Ends this side with close_notify; reading goes on."""
    timeout = stream.gettimeout()
    stream.settimeout(0)
    # It would wait for the peer's close_notify, which may be long in coming.
    with contextlib.suppress(ssl.SSLWantReadError):
        stream.unwrap()
    stream.settimeout(timeout)


def read_all(stream: ssl.SSLSocket) -> bytes:
    """All until the peer's close_notify; SSLError when the connection ends without it."""
    pieces = []
    with contextlib.suppress(ssl.SSLZeroReturnError):  # What recv says of the end once this side has ended.
        while piece := stream.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)
