"""One socket for IPv4 and IPv6: an IPv4 client is written as one everywhere, and belongs to its IPv4 networks."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from support import proxy_protocol
from support.certificates import Authority, Pair
from support.client import Address, Http1, connect, context
from support.gateway import Gateway, configuration, listener, to_app, upstream
from support.net import eventually
from support.servers import Loop, Reader, Server, Writer, echo

from .conftest import Start

LOOPBACK = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


class Told:
    """A relay's upstream that keeps the PROXY header of each connection."""

    def __init__(self, loop: Loop) -> None:
        self.headers: list[proxy_protocol.Header] = []
        self.server = Server(loop, self._serve)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        self.headers.append(await proxy_protocol.read(reader))
        await echo(reader, writer)


@pytest.fixture(scope="module")
def told(loop: Loop) -> Iterator[Told]:
    upstream = Told(loop)
    yield upstream
    upstream.server.stop()


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server, told: Told) -> Gateway:
    both: dict[str, Any] = {
        "bind": ":0",
        "protocols": ["http/1.1", {"alpn": "told", "relay": "told"}],
        "routes": [to_app()],
    }
    listeners = [
        listener(edge, **both),
        listener(edge, name="behind", proxy_protocol={"trusted": ["127.0.0.0/8"]}, **both),
        listener(edge, name="trusting", trusted_proxies=["127.0.0.0/8"], **both),
    ]
    upstreams = [upstream("app", app.endpoint), upstream("told", told.server.endpoint, proxy_protocol=True)]
    access = {"path": "access.log", "connections": True}
    return shared_gateway(configuration(listeners, *upstreams, logging={"access": access}))


def at(gateway: Gateway, host: str, name: str = "edge") -> Address:
    assert gateway.addresses()[name].startswith("[::]:"), "not a socket for both"
    return host, gateway.address(name)[1]


def named(stream: socket.socket) -> str:
    """The client's end, as the gateway must write it."""
    host, port = stream.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def forwarded(client: Http1, *headers: tuple[str, str]) -> list[str]:
    """X-Forwarded-For as the upstream gets it."""
    seen = json.loads(client.request("/", headers=headers).body)["headers"]
    return [value for name, value in seen if name.lower() == "x-forwarded-for"]


def logged(gateway: Gateway, client: str) -> list[dict[str, Any]]:
    """What the access log says of `client`, once its request and its connection have ended."""

    def found() -> list[dict[str, Any]]:
        return [line for line in gateway.logged() if line["client"] == client]

    eventually(lambda: len(found()) == 2)
    return found()


@LOOPBACK
def test_a_request(gateway: Gateway, authority: Authority, host: str) -> None:
    with connect(at(gateway, host), context(authority.certificate)) as stream:
        assert forwarded(Http1(stream)) == [host]
        name = named(stream)
        assert name in [one["client"] for one in gateway.json("/connections")]
    assert {line["event"] for line in logged(gateway, name)} == {"request", "connection"}


@LOOPBACK
def test_a_relay(gateway: Gateway, authority: Authority, told: Told, host: str) -> None:
    """The header's family is the client's, and so is the destination's."""
    address = at(gateway, host)
    with connect(address, context(authority.certificate, ["told"])) as stream:
        stream.sendall(b"bytes")
        assert Http1(stream).exactly(5) == b"bytes"
        header = told.headers[-1]
        assert header.source == stream.getsockname()[:2]
        assert header.destination == address


def test_a_handshake_that_failed(gateway: Gateway, authority: Authority) -> None:
    with socket.create_connection(at(gateway, "127.0.0.1"), timeout=10) as tcp:
        name = named(tcp)
        with pytest.raises(ssl.SSLError):
            context(authority.certificate, ["unheard-of"]).wrap_socket(tcp, server_hostname="localhost")

    def events() -> list[str]:
        return [line["event"] for line in gateway.logged() if line["client"] == name]

    assert eventually(events) == ["handshake_failed"]


def test_a_balancer_is_known_by_its_network(gateway: Gateway, authority: Authority) -> None:
    with socket.create_connection(at(gateway, "127.0.0.1", "behind"), timeout=10) as tcp:
        tcp.sendall(proxy_protocol.make(("192.0.2.7", 4711), ("192.0.2.1", 443)))
        with context(authority.certificate).wrap_socket(tcp, server_hostname="localhost") as stream:
            assert forwarded(Http1(stream)) == ["192.0.2.7"]


def test_a_client_that_a_balancer_maps(gateway: Gateway, authority: Authority) -> None:
    """It listens on both as well, and tells what its socket said."""
    with socket.create_connection(at(gateway, "127.0.0.1", "behind"), timeout=10) as tcp:
        tcp.sendall(proxy_protocol.make(("::ffff:192.0.2.8", 4712), ("::ffff:192.0.2.1", 443)))
        with context(authority.certificate).wrap_socket(tcp, server_hostname="localhost") as stream:
            assert forwarded(Http1(stream)) == ["192.0.2.8"]
    assert len(logged(gateway, "192.0.2.8:4712")) == 2


def test_nobody_else_is_a_balancer(gateway: Gateway, authority: Authority) -> None:
    # `::1` is in no IPv4 network: it needs no header, and nobody reads one.
    with connect(at(gateway, "::1", "behind"), context(authority.certificate)) as stream:
        assert forwarded(Http1(stream)) == ["::1"]


@pytest.mark.parametrize(("host", "kept"), [("127.0.0.1", ["192.0.2.9, 127.0.0.1"]), ("::1", ["::1"])])
def test_a_proxy_is_known_by_its_network(gateway: Gateway, authority: Authority, host: str, kept: list[str]) -> None:
    with connect(at(gateway, host, "trusting"), context(authority.certificate)) as stream:
        assert forwarded(Http1(stream), ("X-Forwarded-For", "192.0.2.9")) == kept
