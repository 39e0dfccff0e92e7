"""What clients get of rankings besides the order: that it is steady, whom it concerns, and what is said of h3."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import etcd, h3
from support.certificates import Authority, Pair
from support.client import Http1, context, until_alert
from support.etcd import Etcd
from support.following import becomes, decisions, explained, healths, negotiated
from support.gateway import Settings, configuration, listener, to_app
from support.mqtt import Session
from support.net import eventually
from support.servers import Loop, Server

from ..conftest import Start

HOLD = 5.0
"""Seconds, where nothing is configured."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as started:
        yield started


class Service:
    """One service in etcd, which no other test uses."""

    def __init__(self, registry: Etcd, name: str) -> None:
        self.name = name
        self._registry = registry

    def put(self, id: str, port: int, **said: object) -> None:
        self._registry.put(etcd.key(self.name, id), {"address": f"127.0.0.1:{port}", **said})

    def remove(self, id: str) -> None:
        self._registry.delete(etcd.key(self.name, id))

    def upstream(self, name: str) -> Settings:
        return {"name": name, "discover": {"provider": "main", "service": self.name}}


@pytest.fixture
def service(registry: Etcd, request: pytest.FixtureRequest) -> Service:
    return Service(registry, request.node.name)


def _settings(registry: Etcd, state: Path, edge: Pair, *upstreams: Settings, **serving: Any) -> Settings:
    found = {"providers": [{"name": "main", "etcd": {"addresses": [registry.address]}}], "state": str(state)}
    ranked = listener(edge, **{"routes": [to_app()], "alpn_ranking": {"hold": "0s"}, **serving})
    return configuration([ranked], *upstreams, discovery=found)


def test_an_instance_that_goes_to_and_fro_changes_the_order_once(
    registry: Etcd, service: Service, app: Server, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    """For as long as it does, and then until it has been well for the default time."""

    def put(status: str, health: str) -> None:
        service.put("new", app.port, protocols=["h2"], status=status)
        eventually(lambda: healths(running)["new"] == health, 30)

    service.put("new", app.port, protocols=["h2"])
    service.put("old", app.port, protocols=["http/1.1"])
    running = gateway(_settings(registry, tmp_path, edge, service.upstream("app"), alpn_ranking=True))
    assert negotiated(running, authority.certificate) == "h2"
    begun = worse = time.monotonic()
    flaps = 0
    while worse - begun < HOLD + 1:
        worse = time.monotonic()
        put("critical", "unavailable")
        becomes(running, authority.certificate, "http/1.1", within=30)
        assert len(decisions(running)) == 1
        put("passing", "healthy")
        assert len(decisions(running)) == 1
        assert negotiated(running, authority.certificate) == "http/1.1"
        flaps += 1
    assert flaps > 1
    becomes(running, authority.certificate, "h2", within=30)
    assert time.monotonic() - worse >= HOLD
    assert [one["after"][0] for one in decisions(running)] == ["http/1.1", "h2"]


def test_how_long_the_worse_holds_can_be_changed(
    registry: Etcd, service: Service, app: Server, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    ca = authority.certificate
    service.put("new", app.port, protocols=["h2"])
    service.put("old", app.port, protocols=["http/1.1"])

    def holding(hold: str) -> Settings:
        return _settings(registry, tmp_path, edge, service.upstream("app"), alpn_ranking={"hold": hold})

    running = gateway(holding("1h"))
    service.put("new", app.port, protocols=["h2"], status="critical")
    becomes(running, ca, "http/1.1", within=30)
    service.put("new", app.port, protocols=["h2"])
    eventually(lambda: healths(running)["new"] == "healthy", 30)
    assert negotiated(running, ca) == "http/1.1"
    running.apply(holding("0s"))
    becomes(running, ca, "h2", within=30)


def test_the_order_of_a_server_name_can_be_pinned(
    registry: Etcd, service: Service, app: Server, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    ca = authority.certificate
    service.put("new", app.port, protocols=["h2"])
    service.put("old", app.port, protocols=["http/1.1"])
    pinned = {"names": ["edge.test"], "alpn_order": ["h2", "http/1.1"]}
    running = gateway(_settings(registry, tmp_path, edge, service.upstream("app"), sites=[pinned]))
    assert negotiated(running, ca) == negotiated(running, ca, name="edge.test") == "h2"
    service.remove("new")
    becomes(running, ca, "http/1.1", within=30)
    assert negotiated(running, ca, "h2") is None
    assert negotiated(running, ca, name="edge.test") == negotiated(running, ca, "h2", name="edge.test") == "h2"
    assert explained(running)["rankings"][0]["order"] == ["http/1.1"]
    stays = explained(running, "edge.test")
    assert stays["fixed"] == {"order": ["h2", "http/1.1"], "why": "alpn_order pins it"} and not stays["rankings"]


def test_h3_is_advertised_while_it_is_first(
    registry: Etcd, service: Service, app: Server, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    """Responses on connections that were there before say it too."""
    service.put("one", app.port)
    protocols = ["h3", "h2", "http/1.1"]
    running = gateway(_settings(registry, tmp_path, edge, service.upstream("app"), protocols=protocols))
    address = running.address()
    with Http1.open(address, authority.certificate) as kept:

        def told() -> str | None:
            return kept.request("/").header("alt-svc")

        assert told() == f'h3=":{address[1]}"; ma=86400'
        assert h3.get(address, authority.certificate, "/").status == 200
        service.put("one", app.port, protocols=["h2"])
        becomes(running, authority.certificate, None, offered="http/1.1", within=30)
        assert negotiated(running, authority.certificate) == "h2"
        assert told() == "clear"
        with pytest.raises(ConnectionError):
            h3.get(address, authority.certificate, "/")
        # It is there and not the best: nobody is led to it.
        service.put("one", app.port, protocols=protocols, status="warning")
        service.put("two", app.port, protocols=["h2"])
        becomes(running, authority.certificate, "http/1.1", offered="http/1.1", within=30)
        assert told() == "clear"
        assert h3.get(address, authority.certificate, "/").status == 200
        service.put("one", app.port, protocols=protocols)
        service.remove("two")
        eventually(lambda: told() == f'h3=":{address[1]}"; ma=86400', 30)


def test_a_relayed_protocol_without_instances_is_refused(
    registry: Etcd,
    service: Service,
    app: Server,
    mosquitto: int,
    authority: Authority,
    edge: Pair,
    gateway: Start,
    clients: Loop,
    tmp_path: Path,
) -> None:
    ca = authority.certificate
    service.put("one", mosquitto)
    upstreams = ({"name": "app", "endpoints": [app.endpoint]}, service.upstream("broker"))
    protocols: list[object] = ["h2", "http/1.1", {"alpn": "mqtt", "relay": "broker"}]
    running = gateway(_settings(registry, tmp_path, edge, *upstreams, protocols=protocols))
    tls = context(ca, ["mqtt"])

    def session(name: str) -> Session:
        return clients.run(Session.open(running.address(), tls, name))

    before = session("before")
    service.remove("one")
    becomes(running, ca, None, offered="mqtt", within=30)
    assert until_alert(running.address(), tls) == "no application protocol"
    assert negotiated(running, ca, "mqtt,h2") == "h2"
    clients.run(before.ping())
    with pytest.raises(ssl.SSLError):
        session("refused")
    service.put("two", mosquitto)
    becomes(running, ca, "mqtt", offered="mqtt", within=30)
    after = session("after")
    clients.run(after.subscribe("news"))
    clients.run(after.publish("news", b"again"))
    assert clients.run(after.inbox.get()) == ("news", b"again")
    for one in (before, after):
        clients.run(one.close())
