"""The order of protocols follows a real registry, step by step, and no client notices anything but the order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitu.discovery.instance import Health
from support.certificates import Authority, Pair
from support.client import Http1
from support.cut import Cut
from support.following import Requests, becomes, decisions, discovered, explained, healths, negotiated, service
from support.gateway import Gateway
from support.h2 import Http2
from support.net import eventually
from support.registries import REGISTRIES, AnyRegistry
from support.servers import Loop, Server, mirror

from ..conftest import Start
from .followed_servers import Fleet, ServerAt

LONG = 60.0
"""Seconds, until a gateway knows that its registry has come back: it pauses for half as long between attempts."""


@pytest.fixture(scope="module", params=REGISTRIES)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyRegistry]:
    with REGISTRIES[request.param](tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture
def fleet(registry: AnyRegistry, loop: Loop) -> Iterator[Fleet]:
    with ServerAt(loop, mirror, registry.host) as new, ServerAt(loop, mirror, registry.host) as old:
        fleet = Fleet(registry, new, old)
        fleet.put_new()
        registry.put("old", old.port, ["http/1.1"])
        yield fleet
        registry.remove("new", "old", "third")


def test_every_step_reaches_new_handshakes_and_no_request_fails(
    fleet: Fleet, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    registry, new, ca = fleet.registry, fleet.new, authority.certificate
    running = gateway(fleet.settings(edge, tmp_path))
    assert negotiated(running, ca) == "h2", "from the first handshake on"
    with (
        Requests(running.address(), ca) as requests,
        Http2.open(running.address(), ca) as h2,
        Http1.open(running.address(), ca) as h1,
    ):
        assert h2.get("/").status == h1.request("/").status == 200
        fleet.put_new(Health.DEGRADED, "slow disk")
        eventually(lambda: healths(running) == {"new": "degraded", "old": "healthy"}, 30)
        assert negotiated(running, ca) == "h2", "(10 - 2) / 2 is more than 6 / 2"
        fleet.put_new(Health.UNAVAILABLE, "disk failed")
        becomes(running, ca, "http/1.1", within=30)  # (10 - 5) / 2 is less.
        _stops_unnoticed(new, running, requests)
        before = new.accepted
        fleet.put_new()
        becomes(running, ca, "h2", within=30)
        eventually(lambda: new.accepted > before, 30)
        _agree(running)
        registry.remove("new")
        becomes(running, ca, "http/1.1", within=30)
        assert negotiated(running, ca, "h2") is None, "offered by nobody"
        assert h2.get("/").status == h1.request("/").status == 200, "open connections keep their protocol"
        _stops_unnoticed(new, running, requests)
        fleet.put_third(["h2", "mqtt"])
        becomes(running, ca, "h2", within=30)
        fleet.put_third(["http/1.1"])
        becomes(running, ca, "http/1.1", within=30)
        requests.go_on()
    said = decisions(running)
    assert [one["after"][0] for one in said] == ["http/1.1", "h2", "http/1.1", "h2", "http/1.1"]
    for one, cause in zip(
        said,
        (
            "app/new is unavailable, was degraded",
            "app/new is healthy, was unavailable",
            "app/new is gone",
            "app/third is new",
            "app/third speaks http/1.1, spoke h2, mqtt",
        ),
        strict=True,
    ):
        assert len(one["causes"]) == 1 and one["causes"][0].startswith(cause), said
        assert 0 < one["took"] < 5
    assert registry.reason("disk failed") in said[0]["causes"][0]
    assert running.metric("mitu_alpn_order_changes_total") == len(said)


def _stops_unnoticed(server: Server, gateway: Gateway, requests: Requests) -> None:
    """The server is gone for a while, and nobody tries it: a request sent once more elsewhere would not show that."""
    requests.go_on()
    server.stop()
    requests.go_on()
    assert gateway.metric("mitu_upstream_connect_errors_total", upstream="app") == 0
    server.start()


def _agree(gateway: Gateway) -> None:
    """The commands say what the admin API says, and clients get."""
    code, shown = discovered(gateway)
    assert (code, shown["rankings"]) == (0, gateway.json("/alpn"))
    (app,) = shown["upstreams"]
    assert {one["name"]: (one["health"], one["protocols"]) for one in app["instances"]} == {
        "new": ("healthy", ["h2"]),
        "old": ("healthy", ["http/1.1"]),
    }
    (ranking,) = explained(gateway)["rankings"]
    assert [(one["alpn"], one["score"]) for one in ranking["protocols"]] == [("h2", 5), ("http/1.1", 3)]
    assert ranking == shown["rankings"][0]


def test_what_was_known_outlives_the_registry_and_a_restart(
    fleet: Fleet, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    ca, registry = authority.certificate, fleet.registry
    running = gateway(fleet.settings(edge, tmp_path))
    known = {"new": "unavailable", "old": "healthy"}
    with Requests(running.address(), ca) as requests:
        fleet.put_new(Health.UNAVAILABLE)
        becomes(running, ca, "http/1.1", within=30)
        registry.kill()
        eventually(lambda: service(running)["stale"], 30)
        requests.go_on()
        assert negotiated(running, ca) == "http/1.1" and healths(running) == known
    running.stop()
    running.restart()
    assert negotiated(running, ca) == "http/1.1" and healths(running) == known, "from the state on disk"
    assert service(running)["stale"] and service(running)["error"]
    assert discovered(running)[0] == 1
    with Requests(running.address(), ca):
        registry.restart()
        fleet.put_new()
        becomes(running, ca, "h2", within=LONG)
        assert not service(running)["stale"]


def test_a_network_that_is_cut(fleet: Fleet, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path) -> None:
    """For less than it takes to be noticed."""
    # What came through would be known many times over.
    _cut(fleet, authority.certificate, edge, gateway, tmp_path, lambda _: threading.Event().wait(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_network_that_is_cut_for_a_minute(
    fleet: Fleet, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path
) -> None:
    """Or until it is noticed, where that takes longer."""

    def silent(running: Gateway) -> None:
        begun = time.monotonic()
        eventually(lambda: service(running)["stale"], fleet.registry.silence + 10)
        print(f"noticed after {time.monotonic() - begun:.1f} s: {service(running)['error']}")
        eventually(lambda: time.monotonic() - begun > 60, 60)
        assert service(running)["stale"] and discovered(running)[0] == 1

    _cut(fleet, authority.certificate, edge, gateway, tmp_path, silent)


def _cut(
    fleet: Fleet, ca: Path, edge: Pair, gateway: Start, state: Path, meanwhile: Callable[[Gateway], object]
) -> None:
    with Cut(fleet.registry.port) as way:
        running = gateway(fleet.settings(edge, state, by=way.port))
        assert negotiated(running, ca) == "h2"
        with Requests(running.address(), ca) as requests:
            way.cut()
            fleet.put_new(Health.UNAVAILABLE)
            meanwhile(running)
            requests.go_on()
            assert negotiated(running, ca) == "h2" and healths(running)["new"] == "healthy", "what was known last"
            way.mend()
            mended = time.monotonic()
            becomes(running, ca, "http/1.1", within=LONG)
            print(f"caught up after {time.monotonic() - mended:.1f} s")
            assert healths(running)["new"] == "unavailable" and not service(running)["stale"]
