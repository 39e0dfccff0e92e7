"""A gateway that follows its upstreams: endpoints that come and go, checks, reloads, and what commands say of it."""

from __future__ import annotations

import itertools
import json
import re
import socket
import ssl
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from integration import conftest
from support.certificates import Authority, Pair
from support.client import Http1
from support.following import Requests, becomes, negotiated
from support.gateway import Gateway, Settings, configuration, listener, to_app, upstream
from support.net import eventually, free_port
from support.servers import Reader, Server, Writer, http_head, http_response, mirror

Entry = str | dict[str, Any]


def named(name: str) -> Any:
    """A handler that answers with its name."""

    async def answer(reader: Reader, writer: Writer) -> None:
        while await http_head(reader) is not None:
            writer.write(http_response("200 OK", name.encode()))
            await writer.drain()

    return answer


class Services:
    """The file of a `file` provider."""

    def __init__(self, folder: Path, **services: list[Entry]) -> None:
        self.file = folder / "services.json"
        self.write(**services)

    def write(self, **services: list[Entry]) -> None:
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps({"services": services}))
        aside.replace(self.file)

    def settings(self, edge: Pair, *, serving: Settings | None = None, **app: Any) -> Settings:
        found = {
            "state": str(self.file.parent / "state"),
            "providers": [{"name": "f", "file": {"path": str(self.file)}}],
        }
        discovered = {"name": "app", "discover": {"provider": "f", "service": "api"}, **app}
        return configuration([listener(edge, routes=[to_app()], **(serving or {}))], discovered, discovery=found)


def answers(gateway: Gateway, ca: Path, number: int = 40) -> Counter[str]:
    """Who answers so many requests, each on a connection of its own."""
    found = Counter[str]()
    for _ in range(number):
        with Http1.open(gateway.address(), ca) as client:
            response = client.request("/")
            found[response.body.decode() if response.status == 200 else str(response.status)] += 1
    return found


def service(gateway: Gateway) -> dict[str, Any]:
    (found,) = gateway.json("/discovery")
    known: dict[str, Any] = found
    return known


def test_endpoints_come_and_go_without_a_request_failing(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    blue, green = serve(named("blue")), serve(named("green"))
    services = Services(tmp_path, api=[f"127.0.0.1:{blue.port}"])
    edge_gateway = gateway(services.settings(edge))
    assert answers(edge_gateway, authority.certificate, 5).keys() == {"blue"}
    with Requests(edge_gateway.address(), authority.certificate):
        services.write(api=[f"127.0.0.1:{blue.port}", {"address": f"127.0.0.1:{green.port}", "weight": 3}])
        eventually(lambda: answers(edge_gateway, authority.certificate, 4).keys() >= {"green"})
        services.write(api=[{"address": f"127.0.0.1:{green.port}"}])
        eventually(lambda: answers(edge_gateway, authority.certificate, 4).keys() == {"green"})
    labels = {"upstream": "app", "endpoint": f"127.0.0.1:{blue.port}"}
    services.write(api=[{"address": f"127.0.0.1:{green.port}", "weight": 2}])
    # Its series go with it, as soon as nothing is under way there and something else changes.
    eventually(lambda: edge_gateway.metric("mitu_upstream_connects_total", **labels) == 0)
    services.write(api=[f"127.0.0.1:{blue.port}", {"address": f"127.0.0.1:{green.port}", "weight": 3}])
    eventually(lambda: answers(edge_gateway, authority.certificate, 4).keys() >= {"blue"})
    assert answers(edge_gateway, authority.certificate) == {"blue": 10, "green": 30}
    services.write(api=[])
    eventually(lambda: answers(edge_gateway, authority.certificate, 1) == {"503": 1})


def test_a_file_that_is_no_good_changes_nothing(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    blue = serve(named("blue"))
    services = Services(tmp_path, api=[f"127.0.0.1:{blue.port}"])
    edge_gateway = gateway(services.settings(edge))
    services.write(api=[{"adress": "127.0.0.1:1"}])
    eventually(lambda: service(edge_gateway)["stale"])
    assert "adress" in service(edge_gateway)["error"]
    assert answers(edge_gateway, authority.certificate, 5) == {"blue": 5}
    assert edge_gateway.metric("mitu_discovery_stale", upstream="app") == 1
    done = edge_gateway.mitu("discover")
    assert done.returncode == 1 and "adress" in done.stdout


def test_a_reload_keeps_what_it_does_not_change(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    blue = serve(named("blue"))
    services = Services(tmp_path, api=[f"127.0.0.1:{blue.port}"])
    edge_gateway = gateway(services.settings(edge))
    with Requests(edge_gateway.address(), authority.certificate):
        for timeout in ("1s", "2s", "3s"):
            # The upstream itself, so that it is made anew, and has its endpoints from the first request on.
            edge_gateway.apply(services.settings(edge, timeouts={"connect": timeout}))
        edge_gateway.apply(services.settings(edge, health_check={"interval": "100ms"}))
        eventually(lambda: len(service(edge_gateway)["instances"][0]["evidence"]) == 2)
    other = services.settings(edge)
    other["upstreams"][0]["discover"]["service"] = "nobody"
    edge_gateway.apply(other)
    eventually(lambda: service(edge_gateway)["instances"] == [])
    status, body = edge_gateway.admin("/reload", "POST")
    assert status == 200 and json.loads(body)["changed"] is False


def test_reloads_while_instances_come_and_go(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    addresses: list[Entry] = [f"127.0.0.1:{serve(named(name)).port}" for name in ("a", "b", "c")]
    services = Services(tmp_path, api=addresses)
    edge_gateway = gateway(services.settings(edge))
    over = threading.Event()

    def churn() -> None:
        for gone in itertools.cycle(addresses):
            services.write(api=[one for one in addresses if one != gone])
            if over.wait(0.05):
                return

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        with Requests(edge_gateway.address(), authority.certificate):
            for seconds in range(1, 9):
                # The upstream and the ranking both made anew.
                serving = {"alpn_ranking": {"hold": f"{seconds}s"}}
                edge_gateway.apply(services.settings(edge, serving=serving, timeouts={"connect": f"{seconds}s"}))
                over.wait(0.3)
    finally:
        over.set()
        churning.join()


def test_connections_from_before_a_reload_follow_too(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    blue, green = serve(named("blue")), serve(named("green"))
    services = Services(tmp_path, api=[f"127.0.0.1:{blue.port}"])
    edge_gateway = gateway(services.settings(edge))
    with Http1.open(edge_gateway.address(), authority.certificate) as kept:
        assert kept.request("/").body == b"blue"
        for timeout in ("1s", "2s"):
            edge_gateway.apply(services.settings(edge, timeouts={"connect": timeout}))
        services.write(api=[f"127.0.0.1:{green.port}"])
        eventually(lambda: answers(edge_gateway, authority.certificate, 1) == {"green": 1})
        eventually(lambda: kept.request("/").body == b"green")


def test_a_reload_forgets_no_verdict_but_that_of_a_check_that_is_no_more(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair
) -> None:
    blue, nobody = serve(named("blue")), f"127.0.0.1:{free_port()}"
    check = {"interval": "100ms", "unhealthy_after": 1}

    def settings(**app: Any) -> Settings:
        # Nothing but the check shows that one of them is down.
        alone = {"outlier_detection": False, "retries": {"attempts": 0}}
        listed = upstream("app", f"127.0.0.1:{blue.port}", nobody, **alone, **app)
        return configuration([listener(edge, routes=[to_app()])], listed)

    edge_gateway = gateway(settings(health_check=check))
    eventually(lambda: "unavailable" in [one["health"] for one in service(edge_gateway)["instances"]])
    with Requests(edge_gateway.address(), authority.certificate):
        for timeout in ("1s", "2s", "3s"):
            edge_gateway.apply(settings(health_check=check, timeouts={"connect": timeout}))
    edge_gateway.apply(settings())
    assert edge_gateway.json("/discovery") == []
    assert answers(edge_gateway, authority.certificate, 10).keys() == {"blue", "502"}, "both are asked again"


def test_a_refused_reload_follows_what_it_did(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    blue = serve(named("blue"))
    services = Services(tmp_path, api=[f"127.0.0.1:{blue.port}"])
    good = services.settings(edge)
    edge_gateway = gateway(good)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = services.settings(edge, serving={"bind": f"127.0.0.1:{taken.getsockname()[1]}"})
        bad["upstreams"][0]["discover"]["service"] = "nobody"
        edge_gateway.write(bad)
        status, _ = edge_gateway.admin("/reload", "POST")
        assert status == 422
        assert service(edge_gateway)["service"] == "api"
        # The port stays taken meanwhile: the file is looked at again whenever it changes.
        green = serve(named("green"))
        services.write(api=[f"127.0.0.1:{green.port}"])
        eventually(lambda: answers(edge_gateway, authority.certificate, 2) == {"green": 2})


def test_checks_take_listed_endpoints_out_and_back(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair
) -> None:
    blue, port = serve(named("blue")), free_port()
    checked = upstream(
        "app",
        f"127.0.0.1:{blue.port}",
        f"127.0.0.1:{port}",
        health_check={"kind": "http", "interval": "100ms", "unhealthy_after": 1, "healthy_after": 1},
    )
    edge_gateway = gateway(configuration([listener(edge, routes=[to_app()])], checked))

    def health() -> list[str]:
        return [
            one["health"]
            for one in sorted(
                service(edge_gateway)["instances"], key=lambda one: one["address"] != f"127.0.0.1:{blue.port}"
            )
        ]

    eventually(lambda: health() == ["healthy", "unavailable"])
    assert answers(edge_gateway, authority.certificate, 10) == {"blue": 10}
    (gone,) = [one for one in service(edge_gateway)["instances"] if one["health"] == "unavailable"]
    assert gone["reason"] == "check: connection refused" and not gone["used"]
    green = serve(named("green"), port=port)
    eventually(lambda: health() == ["healthy", "healthy"])
    eventually(lambda: answers(edge_gateway, authority.certificate, 10).keys() == {"blue", "green"})
    green.stop()
    eventually(lambda: health() == ["healthy", "unavailable"])


def test_what_instances_speak_is_found_out(
    gateway: conftest.Start, serve: conftest.Serve, authority: Authority, edge: Pair
) -> None:
    """Its instance says nothing of that, but speaks http/1.1 alone."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(edge.certificate, edge.key)
    context.set_alpn_protocols(["http/1.1"])
    server = serve(mirror, tls=context)
    probed = upstream(
        "app",
        f"localhost:{server.port}",
        tls={"ca": str(authority.certificate)},
        protocol="auto",
        probe_alpn=True,
    )
    edge_gateway = gateway(configuration([listener(edge, routes=[to_app()], alpn_ranking=True)], probed))
    becomes(edge_gateway, authority.certificate, "http/1.1")
    assert service(edge_gateway)["instances"][0]["protocols"] == ["http/1.1"]
    assert negotiated(edge_gateway, authority.certificate, "h2") is None


class TestTheCommands:
    @pytest.fixture
    def running(
        self, gateway: conftest.Start, serve: conftest.Serve, edge: Pair, tmp_path: Path
    ) -> tuple[Gateway, Server]:
        blue = serve(named("blue"))
        entries: list[Entry] = [
            {"address": f"127.0.0.1:{blue.port}", "id": "blue", "protocols": ["h2"]},
            {"address": "127.0.0.1:9", "id": "[red]", "status": "critical", "reason": "[bold]on fire", "zone": "a"},
        ]
        services = Services(tmp_path, api=entries)
        pinned = {"names": ["edge.test"], "alpn_order": ["http/1.1", "h2"]}
        return gateway(services.settings(edge, serving={"alpn_ranking": True, "sites": [pinned]})), blue

    def test_discover(self, running: tuple[Gateway, Server]) -> None:
        edge_gateway, blue = running
        done = edge_gateway.mitu("discover")
        assert done.returncode == 0, done.stderr
        assert "app  api in f" in done.stdout
        assert re.search(rf"^blue +127\.0\.0\.1:{blue.port} +1 +yes +healthy +h2 *$", done.stdout, re.MULTILINE)
        assert "[red]" in done.stdout and "file: [bold]on fire" in done.stdout
        assert "edge offers h2 (7.5), http/1.1 (1.5)" in done.stdout
        found = json.loads(edge_gateway.mitu("discover", "--json").stdout)
        assert [one["health"] for one in found["upstreams"][0]["instances"]] == ["unavailable", "healthy"]
        assert found["rankings"][0]["order"] == ["h2", "http/1.1"]
        done = edge_gateway.mitu("discover", "ap")
        assert done.returncode == 2 and "did you mean 'app'?" in done.stderr
        assert edge_gateway.mitu("discover", "app").returncode == 0

    def test_alpn_explain(self, running: tuple[Gateway, Server]) -> None:
        edge_gateway, _ = running
        done = edge_gateway.mitu("alpn", "explain", "localhost")
        assert done.returncode == 0, done.stderr
        assert "edge offers h2 (7.5), http/1.1 (1.5)" in done.stdout
        assert "2 of 2 instances speak it; 1 unavailable (app/[red])" in done.stdout
        done = edge_gateway.mitu("alpn", "explain", "EDGE.test")
        assert "edge offers http/1.1, h2, always: alpn_order pins it" in done.stdout
        (told,) = json.loads(edge_gateway.mitu("alpn", "explain", "--json").stdout)
        assert [one["ranking"] for one in told["rankings"]] == ["edge"]

    def test_nothing_to_show(self, gateway: conftest.Start, edge: Pair, serve: conftest.Serve) -> None:
        edge_gateway = gateway(
            configuration([listener(edge, routes=[to_app()])], upstream("app", f"127.0.0.1:{serve(mirror).port}"))
        )
        done = edge_gateway.mitu("discover")
        assert done.returncode == 0 and "nothing is discovered" in done.stdout
        done = edge_gateway.mitu("alpn", "explain", "localhost")
        assert "edge offers h2, http/1.1, always: the listener has no alpn_ranking" in done.stdout


def test_an_upstream_of_which_nothing_is_known_is_waited_for_and_no_longer(
    gateway: conftest.Start, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    found = {
        "state": str(tmp_path / "state"),
        "start_timeout": "300ms",
        "providers": [{"name": "main", "consul": {"address": f"http://127.0.0.1:{free_port()}"}}],
    }
    discovered = {"name": "app", "discover": {"provider": "main", "service": "api"}}
    edge_gateway = gateway(
        configuration([listener(edge, routes=[to_app()], alpn_ranking=True)], discovered, discovery=found)
    )
    assert negotiated(edge_gateway, authority.certificate) == "h2", "the configured order"
    assert answers(edge_gateway, authority.certificate, 2) == {"503": 2}
    known = service(edge_gateway)
    assert known["stale"] and known["known_at"] is None
    assert edge_gateway.mitu("discover").returncode == 1
