"""Services in a real Consul: what is registered, checked, maintained and deregistered there."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from mitu.config.discovery import Discover
from mitu.discovery.consul import Consul as Provider
from mitu.discovery.instance import Health, Instance
from support.consul import TTL_CHECK, Consul, Json

from .consul_watch import provider, watched

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consul]:
    with Consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture
def service(server: Consul) -> Iterator[str]:
    """One that no other test has used. Identifiers are the agent's, and so those are free again afterwards."""
    yield f"svc-{next(_numbers)}"
    for id in server.get("/v1/agent/services"):
        server.deregister(id)


@pytest.fixture
def asked(server: Consul) -> Provider:
    return provider(server.url)


async def test_an_instance_comes_worsens_recovers_and_goes(server: Consul, asked: Provider, service: str) -> None:
    async with watched(asked, service) as watch:
        assert await watch.next() == {}
        server.register(service, "a", 8080)
        assert await watch.next() == {"a": Instance("a", "127.0.0.1:8080")}
        server.warning("a", "disk is slow\nand more")
        degraded = (await watch.next())["a"]
        assert (degraded.health, degraded.reason) == (
            Health.DEGRADED,
            f"Service '{service}' check is warning: disk is slow",
        )
        server.critical("a", "disk is\tfull")
        critical = (await watch.next())["a"]
        assert (critical.health, critical.reason) == (
            Health.UNAVAILABLE,
            f"Service '{service}' check is critical: disk is full",
        )
        server.passing("a")
        assert await watch.next() == {"a": Instance("a", "127.0.0.1:8080")}
        server.register(service, "b", 8081)
        assert set(await watch.next()) == {"a", "b"}
        server.deregister("a")
        assert await watch.next() == {"b": Instance("b", "127.0.0.1:8081")}
        server.deregister("b")
        assert await watch.next() == {}


async def test_the_worst_check_counts(server: Consul, asked: Provider, service: str) -> None:
    checks = [{**TTL_CHECK, "CheckID": f"{service}-{name}", "Name": name} for name in ("disk", "load", "memory")]
    server.register(service, "a", 80, checks=checks)
    server.update(f"{service}-disk", "warning")
    server.update(f"{service}-load", "critical", "x" * 3000)
    server.update(f"{service}-memory", "warning", "little")
    async with watched(asked, service) as watch:
        worst = (await watch.until(lambda now: now["a"].health is Health.UNAVAILABLE))["a"]
        assert worst.reason.startswith("load is critical: xxx")
        assert worst.reason.endswith("x…")
        assert len(worst.reason) < 300
        server.update(f"{service}-load", "passing")
        assert (await watch.next())["a"].reason == "disk is warning"


@pytest.mark.parametrize("whole_node", [False, True])
async def test_maintenance_takes_it_out(server: Consul, asked: Provider, service: str, whole_node: bool) -> None:
    server.register(service, "a", 80)
    server.critical("a", "stopped")
    what = None if whole_node else "a"
    async with watched(asked, service) as watch:
        await watch.until(lambda now: now["a"].health is Health.UNAVAILABLE)
        server.maintenance(what, True, "new disks")
        try:
            maintained = (await watch.next())["a"]
        finally:
            server.maintenance(what, False)
        assert maintained.health is Health.UNAVAILABLE
        assert maintained.reason == f"the {'node' if whole_node else 'instance'} is in maintenance: new disks"
        assert "is critical: stopped" in (await watch.next())["a"].reason
        server.passing("a")
        assert (await watch.next())["a"].health is Health.HEALTHY


async def test_a_tag_chooses_instances(server: Consul, asked: Provider, service: str) -> None:
    server.register(service, "a", 80, tags=["blue & green", "v1"])
    server.register(service, "b", 81, tags=["Blue & Green"])
    server.register(service, "c", 82)
    async with watched(asked, service, "blue & green") as watch:
        assert set(await watch.next()) == {"a"}
        server.register(service, "c", 82, tags=["v2", "blue & green"])
        assert set(await watch.until(lambda now: "c" in now)) == {"a", "c"}
        server.register(service, "a", 80, tags=["v1"])
        assert set(await watch.next()) == {"c"}


@pytest.mark.parametrize("key", ["alpn_supported", "alpn-supported"])
async def test_protocols_are_in_its_metadata(server: Consul, asked: Provider, service: str, key: str) -> None:
    server.register(service, "a", 80, meta={key: "h2, http/1.1", "zone": "eu-1"})
    async with watched(asked, service) as watch:
        a = (await watch.next())["a"]
    assert (a.protocols, a.zone, a.metadata) == (("h2", "http/1.1"), "eu-1", {key: "h2, http/1.1", "zone": "eu-1"})


@pytest.mark.parametrize("key", ["alpn.supported", "alpn_supported"])
async def test_protocols_are_a_tag(server: Consul, asked: Provider, service: str, key: str) -> None:
    server.register(service, "a", 80, tags=["v1", f"{key}=mqtt,x-private"])
    async with watched(asked, service) as watch:
        assert (await watch.next())["a"].protocols == ("mqtt", "x-private")
        server.register(service, "a", 80, tags=["v1", f"{key}="])
        assert (await watch.next())["a"].protocols == ()


@pytest.mark.parametrize("key", ["alpn.supported", "mitu.dev/alpn-supported"])
def test_a_key_with_a_dot_is_refused_by_consul_itself(server: Consul, service: str, key: str) -> None:
    status, answer = server.request("PUT", "/v1/agent/service/register", {"Name": service, "Meta": {key: "h2"}})
    assert status == 400
    assert b"invalid characters" in answer


async def test_weights_are_those_of_its_health(server: Consul, asked: Provider, service: str) -> None:
    server.register(service, "a", 80, weights={"Passing": 20, "Warning": 3})
    server.register(service, "b", 81, weights={"Passing": 60_000, "Warning": 1})
    async with watched(asked, service) as watch:
        assert {id: one.weight for id, one in (await watch.next()).items()} == {"a": 20, "b": 1000}
        server.warning("a")
        assert (await watch.next())["a"].weight == 3
        server.passing("a")
        assert (await watch.next())["a"].weight == 20


async def test_addresses_are_the_services_own_or_the_nodes(server: Consul, asked: Provider, service: str) -> None:
    def place(name: str, id: str, node_address: str, address: str) -> None:
        node = {"Node": f"{service}-{name}", "Address": node_address, "NodeMeta": {"zone": f"zone-{name}"}}
        placed = {"Service": service, "ID": id, "Port": 80, "Address": address}
        server.put("/v1/catalog/register", {**node, "Service": placed})

    place("n1", "same", "10.0.0.1", "")
    place("n2", "same", "10.0.0.2", "app.test")
    place("n3", "own", "fd00::3", "")
    place("n4", "named", "10.0.0.4", "fd00::4")
    async with watched(asked, service) as watch:
        found = await watch.next()
        assert {id: (one.address, one.zone) for id, one in found.items()} == {
            f"same@{service}-n1": ("10.0.0.1:80", "zone-n1"),
            f"same@{service}-n2": ("app.test:80", "zone-n2"),
            "own": ("[fd00::3]:80", "zone-n3"),
            "named": ("[fd00::4]:80", "zone-n4"),
        }


async def test_what_nobody_can_connect_to_is_left_out(
    server: Consul, asked: Provider, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.register(service, "good", 80)
    server.register(service, "portless", 0)
    server.register(service, "odd", 80, address="http://odd/")
    with caplog.at_level(logging.WARNING, "mitu"):
        async with watched(asked, service) as watch:
            assert set(await watch.next()) == {"good"}
            server.register(service, "odd", 80, address="odd.test")
            assert set(await watch.next()) == {"good", "odd"}
    first, second = [message for message in caplog.messages if f"'{service}'" in message]
    assert "'odd' has an address that nobody can connect to, 'portless' has no port" in first
    assert "'portless' has no port" in second
    assert "'odd'" not in second


async def test_what_changes_nothing_is_no_news(server: Consul, service: str) -> None:
    # So short a wait that several end during the test.
    asked = provider(server.url, wait="1s")
    server.register(service, "a", 80)
    async with watched(asked, service) as watch, watched(asked, f"{service}-not") as nothing:
        assert await watch.next() == {"a": Instance("a", "127.0.0.1:80")}
        assert await nothing.next() == {}
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            server.register(f"{service}-other", "other", next(_numbers) + 1000)
            server.register(service, "a", 80)
            server.passing("a", f"an output that nobody sees: {next(_numbers)}")
            await asyncio.sleep(0.1)
        server.register(service, "a", 81)
        assert await watch.next() == {"a": Instance("a", "127.0.0.1:81")}
        server.register(f"{service}-not", "b", 82)
        assert await nothing.next() == {"b": Instance("b", "127.0.0.1:82")}


async def test_a_storm_of_changes_comes_in_few_answers(server: Consul, asked: Provider, service: str) -> None:
    count, changes = 100, 300
    # Of the agent's own node Consul would take back what the agent does not know.
    server.put("/v1/catalog/register", {"Node": f"{service}-node", "Address": "10.9.9.9"})
    # A transaction has 64 operations at most.
    for first in range(0, count, 50):
        server.put("/v1/txn", [_placed(service, number, 0) for number in range(first, first + 50)])
    async with watched(asked, service) as watch:
        assert len(await watch.next()) == count
        seen: list[int] = []
        latencies: list[float] = []
        changed: dict[int, float] = {}

        async def see() -> None:
            while not seen or seen[-1] < changes:
                newest = max(int(one.metadata["change"]) for one in (await watch.next()).values())
                now = time.monotonic()
                latencies.extend(now - changed[change] for change in range(seen[-1] + 1 if seen else 1, newest + 1))
                seen.append(newest)

        seeing = asyncio.create_task(see())
        begun = time.monotonic()
        for change in range(1, changes + 1):
            changed[change] = time.monotonic()
            await asyncio.to_thread(server.put, "/v1/txn", [_placed(service, change % count, change)])
            await asyncio.sleep(max(0.0, begun + change / 100 - time.monotonic()))
        await seeing
        latencies.sort()
        print(
            f"{len(seen)} answers for {changes} changes; P50 {latencies[changes // 2]:.3f} s,"
            f" P99 {latencies[changes * 99 // 100]:.3f} s"
        )
    # Each query costs Consul and the gateway the whole list.
    assert len(seen) < changes / 3
    assert seen == sorted(set(seen))


def _placed(service: str, number: int, change: int) -> Json:
    meta = {"change": str(change)}
    placed = {"Service": service, "ID": f"{service}-{number}", "Port": number + 1, "Meta": meta}
    return {"Service": {"Verb": "set", "Node": f"{service}-node", "Service": placed}}


async def test_an_instance_stays_itself_when_another_node_has_its_identifier(server: Consul, service: str) -> None:
    server.register(service, "same", 80)
    asked = provider(server.url)
    other = {"Service": service, "ID": "same", "Port": 81}
    async with aclosing(asked.watch(Discover(provider="consul", service=service))) as snapshots:
        (alone,) = (await anext(snapshots)).instances
        assert (alone.id, alone.name) == (f"{server.node}/same", "same")
        server.put("/v1/catalog/register", {"Node": "another", "Address": "10.0.0.2", "Service": other})
        both = {one.id: one for one in (await anext(snapshots)).instances}
        assert both.keys() == {alone.id, "another/same"}
        assert both[alone.id] == alone
        assert {one.name for one in both.values()} == {f"same@{server.node}", "same@another"}
        server.put("/v1/catalog/deregister", {"Node": "another", "ServiceID": "same"})
        (again,) = (await anext(snapshots)).instances
        assert (again, again.name) == (alone, "same")
