"""Open connections through reloads: they keep the configuration they began with, and none is dropped."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse

from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Settings, configuration, listener, upstream
from support.h2 import Http2
from support.net import eventually, free_port
from support.servers import Loop, Server, echo
from support.websocket import WebSocketEcho

from .conftest import EDGE_NAMES, Start


def says(text: str, **match: str) -> Settings:
    return {"match": match or {"path_prefix": "/"}, "respond": {"status": 200, "body": text}}


@pytest.fixture(scope="module")
def mirror_of_bytes(loop: Loop) -> Iterator[Server]:
    with Server(loop, echo) as server:
        yield server


@pytest.fixture(scope="module")
def chat(loop: Loop) -> Iterator[WebSocketEcho]:
    with WebSocketEcho(loop) as server:
        yield server


def with_everything(edge: Pair, text: str, relay: str, chat: str, **settings: object) -> Settings:
    """HTTP that says `text`, a WebSocket at /chat, and a relay."""
    to_chat: Settings = {"match": {"path": "/chat"}, "upstream": "chat"}
    protocols = ["h2", "http/1.1", {"alpn": "echo", "relay": "relay"}]
    serving = listener(edge, protocols=protocols, routes=[to_chat, says(text)], **settings)
    return configuration([serving], upstream("relay", relay), upstream("chat", chat))


def test_open_connections_keep_their_configuration(
    gateway: Start, authority: Authority, edge: Pair, loop: Loop, mirror_of_bytes: Server, chat: WebSocketEcho
) -> None:
    running = gateway(with_everything(edge, "one", mirror_of_bytes.endpoint, chat.endpoint), flags=["--no-watch"])
    address, ca = running.address(), authority.certificate

    async def join() -> tuple[ClientSession, ClientWebSocketResponse]:
        session = ClientSession()
        url = f"https://localhost:{address[1]}/chat"
        return session, await session.ws_connect(url, ssl=context(ca))

    async def talk(text: str) -> str:
        await joined.send_str(text)
        return await joined.receive_str(timeout=5)

    session, joined = loop.run(join())
    with (
        Http1.open(address, ca) as h1,
        Http2.open(address, ca) as h2,
        connect(address, context(ca, ["echo"])) as relay,
    ):
        for text, target in (("one", mirror_of_bytes.endpoint), ("two", "127.0.0.1:1"), ("three", "127.0.0.1:2")):
            # Routes and upstreams that connections like these would meet now are others, or none at all.
            if text != "one":
                settings = with_everything(edge, text, target, target)
                running.apply(settings)
            assert h1.request("/").body == b"one"
            answer = h2.get("/")
            assert (answer.status, answer.body) == (200, b"one")
            relay.sendall(text.encode())
            assert Http1(relay).exactly(len(text)) == text.encode()
            assert loop.run(talk(text)) == text
            with Http1.open(address, ca) as fresh:
                assert fresh.request("/").body.decode() == text
        assert h2.last is None, "GOAWAY"
    loop.run(session.close())


def test_a_request_in_progress_is_finished(
    gateway: Start, authority: Authority, edge: Pair, app: Server, loop: Loop
) -> None:
    """Its upstream is gone from the configuration while its body is still on the way."""
    routed = [listener(edge, routes=[{"match": {"path_prefix": "/"}, "upstream": "app"}])]
    running = gateway(configuration(routed, upstream("app", app.endpoint)), flags=["--no-watch"])
    with Http1.open(running.address(), authority.certificate) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nfirst")
        eventually(lambda: app.open > 0)
        running.apply(configuration([listener(edge, routes=[says("two")])]))
        client.send(b"after")
        response = client.response("POST")
        assert response.status == 200
        assert '"body": "firstafter"' in response.body.decode()
        assert client.request("/").status == 200


def test_a_listener_comes_and_goes(gateway: Start, authority: Authority, edge: Pair) -> None:
    one = listener(edge, routes=[says("one")])
    running = gateway(configuration([one]), flags=["--no-watch"])
    second = listener(edge, name="second", routes=[says("second")])
    ca = authority.certificate
    running.apply(configuration([one, second]))
    address = running.address("second")
    with Http1.open(address, ca) as idle, Http1.open(address, ca) as h1, Http2.open(address, ca) as h2:
        for client in (idle, h1):
            assert client.request("/").body == b"second"
        assert h2.get("/").body == b"second"
        running.apply(configuration([one]))
        assert list(running.addresses()) == ["edge"]
        # Its connections are asked to end, and served until they do.
        last = h1.request("/")
        assert (last.body, last.header("connection")) == (b"second", "close")
        assert h1.closed()
        assert h2.closed()
        assert (h2.last, h2.goaway_error) == (1, 0)
        assert idle.closed()
    # What was dropped may still be retried by the kernel, but nobody is let in any more.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=5).close()
    with Http1.open(running.address(), ca) as client:
        assert client.request("/").body == b"one"
    running.apply(configuration([one, second]))
    with Http1.open(running.address("second"), ca) as client:
        assert client.request("/").body == b"second"


def test_a_relay_outlives_its_listener(
    gateway: Start, authority: Authority, edge: Pair, mirror_of_bytes: Server
) -> None:
    keep = listener(edge, routes=[says("one")])
    going = listener(edge, name="going", protocols=[{"alpn": "echo", "relay": "echo"}], no_alpn="refuse")
    to = upstream("echo", mirror_of_bytes.endpoint)
    running = gateway(configuration([keep, going], to), flags=["--no-watch"])
    with connect(running.address("going"), context(authority.certificate, ["echo"])) as relay:
        running.apply(configuration([keep]))
        # Longer than an idle HTTP connection would be left alone.
        time.sleep(1.5)
        relay.sendall(b"still here")
        assert Http1(relay).exactly(10) == b"still here"
        shown = running.json("/connections")
        assert [one["listener"] for one in shown] == ["going"]
        assert running.status()["connections"] == 1
    assert eventually(lambda: running.status()["connections"] == 0)


def test_a_listener_moves_to_another_port(gateway: Start, authority: Authority, edge: Pair) -> None:
    ca = authority.certificate

    def at(port: int, text: str) -> Settings:
        return configuration([listener(edge, bind=f"127.0.0.1:{port}", routes=[says(text)])])

    first, second = free_port(), free_port()
    running = gateway(at(first, "first"), flags=["--no-watch"])
    with Http1.open(("127.0.0.1", first), ca) as old:
        assert old.request("/").body == b"first"
        running.apply(at(second, "second"))
        assert running.address() == ("127.0.0.1", second)
        with Http1.open(("127.0.0.1", second), ca) as new:
            assert new.request("/").body == b"second"
        # Back at once, while the old socket may not even be closed.
        running.apply(at(first, "back"))
        # The kernel may try a dropped SYN again only after a second.
        with Http1.open(("127.0.0.1", first), ca) as again:
            assert again.request("/").body == b"back"


def test_listeners_swap_their_ports(gateway: Start, authority: Authority, edge: Pair) -> None:
    ports = free_port(), free_port()

    def named(*names: str) -> Settings:
        return configuration(
            [
                listener(edge, name=name, bind=f"127.0.0.1:{port}", routes=[says(name)])
                for name, port in zip(names, ports, strict=True)
            ]
        )

    running = gateway(named("left", "right"), flags=["--no-watch"])
    running.apply(named("right", "left"))
    for name, port in zip(("right", "left"), ports, strict=True):
        assert running.address(name) == ("127.0.0.1", port)
        with Http1.open(("127.0.0.1", port), authority.certificate) as client:
            assert client.request("/").body.decode() == name
    # A new name for the same port.
    running.apply(named("right", "middle"))
    with Http1.open(("127.0.0.1", ports[1]), authority.certificate) as client:
        assert client.request("/").body == b"middle"


def test_a_listener_narrows_to_one_address(gateway: Start, authority: Authority, edge: Pair) -> None:
    port = free_port()
    running = gateway(configuration([listener(edge, bind=f":{port}", routes=[says("all")])]), flags=["--no-watch"])
    running.apply(configuration([listener(edge, bind=f"127.0.0.1:{port}", routes=[says("one")])]))
    assert running.addresses() == {"edge": f"127.0.0.1:{port}"}
    with Http1.open(("127.0.0.1", port), authority.certificate) as client:
        assert client.request("/").body == b"one"


def test_the_order_of_protocols_changes(gateway: Start, authority: Authority, edge: Pair) -> None:
    def ordered(*protocols: str) -> Settings:
        return configuration([listener(edge, protocols=list(protocols), routes=[says("one")])])

    def chosen() -> str | None:
        # The client's own order counts for nothing.
        with connect(running.address(), context(authority.certificate, ["http/1.1", "h2"])) as stream:
            return stream.selected_alpn_protocol()

    running = gateway(ordered("h2", "http/1.1"), flags=["--no-watch"])
    with Http2.open(running.address(), authority.certificate) as before:
        assert chosen() == "h2"
        running.apply(ordered("http/1.1", "h2"))
        assert chosen() == "http/1.1"
        running.apply(ordered("http/1.1"))
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            connect(running.address(), context(authority.certificate, ["h2"])).close()
        assert before.get("/").body == b"one"


def test_a_certificate_changes_under_open_connections(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(configuration([listener(edge, routes=[says("one")])]), flags=["--no-watch"])
    with Http1.open(running.address(), authority.certificate) as old:
        new = authority.issue("reload-new", EDGE_NAMES)
        running.apply(configuration([listener(new, routes=[says("two")])]))
        assert old.request("/").body == b"one"
    with connect(running.address(), context(authority.certificate)) as stream:
        assert stream.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(new.certificate.read_text())
    assert running.json("/certificates")[0]["certificates"][0]["sha256"] == new.fingerprint


def test_limits_and_timeouts_change_for_new_connections(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(configuration([listener(edge, routes=[says("one")])]), flags=["--no-watch"])
    ca = authority.certificate
    with Http1.open(running.address(), ca) as old:
        old.request("/")
        short = listener(edge, routes=[says("one")], timeouts={"idle": "1s"}, limits={"connections": 2})
        running.apply(configuration([short]))
        with Http1.open(running.address(), ca) as new:
            new.request("/")
            # Two are open: the old one counts.
            with pytest.raises(OSError):
                Http1.open(running.address(), ca)
            assert new.closed()
        assert old.request("/").body == b"one"
    assert running.metric("mitu_connections_refused_total", reason="limit") == 1
