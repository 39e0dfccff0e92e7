"""Instances from a real name server, whose zones change."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import pytest

from attack.test_exhaustion import unshared
from mitu.discovery.instance import Health, Snapshot
from mitu.discovery.provider import ProviderError
from support.name_server import NameServer
from support.process import output

from . import system_servers
from .dns_watch import SOON, asking, refused

pytestmark = pytest.mark.needs("nsd")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NameServer]:
    with NameServer(tmp_path_factory.mktemp("nsd"), ("api.test", "other.test", "broken.test")) as running:
        yield running
        print(running.program.log[-20_000:])


async def test_addresses_of_both_kinds(server: NameServer) -> None:
    server.write("api.test", "www A 10.0.0.1\nwww A 10.0.0.2\nwww AAAA 2001:db8::1")
    async with asking([server.address], "www.api.test", "8080") as watch:
        found = await watch.next()
    assert [one.address for one in found.instances] == ["10.0.0.1:8080", "10.0.0.2:8080", "[2001:db8::1]:8080"]
    assert {(one.health, one.weight, one.reason) for one in found.instances} == {(Health.HEALTHY, 1, "")}
    assert [one.id for one in found.instances] == [one.address for one in found.instances]


async def test_an_alias(server: NameServer) -> None:
    server.write("other.test", "t A 10.0.0.9")
    server.write("api.test", "www CNAME t.other.test.")
    async with asking([server.address], "www.api.test", "80") as watch:
        assert await watch.addresses() == ["10.0.0.9:80"]


async def test_a_change_once_the_time_to_live_is_over(server: NameServer) -> None:
    server.write("api.test", "www 2 A 10.0.0.1\nwww 2 A 10.0.0.2", negative=2)
    begun = time.monotonic()
    async with asking([server.address], "www.api.test", "80") as watch:
        assert await watch.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
        server.write("api.test", "www 2 A 10.0.0.2\nwww 2 A 10.0.0.3", negative=2)
        assert await watch.addresses() == ["10.0.0.2:80", "10.0.0.3:80"]
        assert time.monotonic() - begun >= 2


async def test_min_ttl_and_max_ttl(server: NameServer) -> None:
    server.write("api.test", "short 0 A 10.0.0.1\nlong 86400 A 10.0.0.1")
    begun = time.monotonic()
    bounds = {"min_ttl": "1500ms", "max_ttl": "3s"}
    async with (
        asking([server.address], "short.api.test", "80", **bounds) as short,
        asking([server.address], "long.api.test", "80", **bounds) as long,
    ):
        assert await short.addresses() == await long.addresses() == ["10.0.0.1:80"]
        server.write("api.test", "short 0 A 10.0.0.2\nlong 86400 A 10.0.0.2")
        assert await short.addresses() == ["10.0.0.2:80"]
        assert time.monotonic() - begun >= 1.5
        assert await long.addresses() == ["10.0.0.2:80"]


async def test_a_name_comes_and_goes(server: NameServer) -> None:
    """A denial holds as long as the zone's SOA says."""
    server.write("api.test", "", negative=2)
    begun = time.monotonic()
    async with asking([server.address], "www.api.test", "80") as watch:
        assert await watch.next() == Snapshot(())
        server.write("api.test", "www 0 A 10.0.0.1", negative=2)
        assert await watch.addresses() == ["10.0.0.1:80"]
        assert time.monotonic() - begun >= 2
        # The name stays, without addresses.
        server.write("api.test", "www 0 TXT moved", negative=2)
        assert await watch.next() == Snapshot(())


async def test_nothing_new_is_no_news(server: NameServer) -> None:
    server.write("api.test", "www 0 A 10.0.0.1\nwww 0 A 10.0.0.2", negative=0)
    async with asking([server.address], "www.api.test", "80") as watch:
        await watch.next()
        # In another order, with another time to live.
        server.write("api.test", "www 1 A 10.0.0.2\nwww 1 A 10.0.0.1", negative=0)
        with pytest.raises(TimeoutError):
            await watch.next(1.5)


async def test_srv(server: NameServer) -> None:
    """Those with the lowest priority are healthy, the others stand by; targets are found where they are."""
    server.write("other.test", "far A 10.0.0.3")
    server.write(
        "api.test",
        "_http._tcp SRV 10 60 8080 one\n_http._tcp SRV 10 0 8081 two\n_http._tcp SRV 20 7 8080 far.other.test.\n"
        "one A 10.0.0.1\none AAAA 2001:db8::1\ntwo A 10.0.0.2",
    )
    async with asking([server.address], "_http._tcp.api.test") as watch:
        found = {one.address: one for one in (await watch.next()).instances}
    assert sorted(found) == ["10.0.0.1:8080", "10.0.0.2:8081", "10.0.0.3:8080", "[2001:db8::1]:8080"]
    assert [found[key].weight for key in sorted(found)] == [60, 1, 7, 60]
    assert found["10.0.0.2:8081"].health == Health.HEALTHY
    standby = found["10.0.0.3:8080"]
    assert (standby.health, standby.reason) == (Health.DEGRADED, "priority 20")
    assert standby.metadata == {"target": "far.other.test"}


async def test_srv_weights_keep_their_shares(server: NameServer) -> None:
    server.write(
        "api.test", "_http._tcp SRV 0 50000 80 one\n_http._tcp SRV 0 5000 80 two\none A 10.0.0.1\ntwo A 10.0.0.2"
    )
    async with asking([server.address], "_http._tcp.api.test") as watch:
        assert [one.weight for one in (await watch.next()).instances] == [1000, 100]


async def test_srv_of_a_service_that_is_not_there(server: NameServer) -> None:
    server.write("api.test", "_http._tcp SRV 0 0 0 .")
    for service in ("_http._tcp.api.test", "_https._tcp.api.test"):
        async with asking([server.address], service) as watch:
            assert await watch.next() == Snapshot(())


async def test_srv_targets_without_addresses_are_not_there(server: NameServer) -> None:
    """The best of those that are there is healthy."""
    server.write("api.test", "_http._tcp SRV 1 1 80 gone\n_http._tcp SRV 2 1 80 here\nhere A 10.0.0.1")
    async with asking([server.address], "_http._tcp.api.test") as watch:
        found = await watch.next()
    assert [(one.address, one.health) for one in found.instances] == [("10.0.0.1:80", Health.HEALTHY)]


async def test_srv_targets_that_move(server: NameServer) -> None:
    """Their addresses have a time to live of their own, shorter than that of the SRV records."""
    server.write("api.test", "_http._tcp 3600 SRV 1 1 80 one\none 1 A 10.0.0.1", negative=1)
    async with asking([server.address], "_http._tcp.api.test") as watch:
        assert await watch.addresses() == ["10.0.0.1:80"]
        server.write("api.test", "_http._tcp 3600 SRV 1 1 80 one\none 1 A 10.0.0.2", negative=1)
        assert await watch.addresses() == ["10.0.0.2:80"]


async def test_more_than_a_datagram_holds(server: NameServer) -> None:
    many = [f"10.0.{at // 250}.{at % 250 + 1}" for at in range(600)]
    server.write(
        "api.test",
        "\n".join(f"many A {one}\n_http._tcp SRV 1 1 80 t{at}\nt{at} A {one}" for at, one in enumerate(many)),
    )
    for service, kind in (("many.api.test", "A"), ("_http._tcp.api.test", "SRV")):
        cut = server.ask(service, kind)
        assert cut is not None
        assert cut.flags & dns.flags.TC
        async with asking([server.address], service, "80") as watch:
            assert sorted(await watch.addresses()) == sorted(f"{one}:80" for one in many)


async def test_no_answer_is_no_state(server: NameServer) -> None:
    server.write("api.test", "sub NS ns.elsewhere.example.\nout CNAME www.elsewhere.example.")
    told = [
        ("www.broken.test", "answered SERVFAIL"),
        ("www.elsewhere.example", "answered REFUSED"),
        ("www.sub.api.test", "only refers to other servers"),
        ("out.api.test", "only refers to other servers"),
    ]
    for service, why in told:
        assert why in await refused(asking([server.address], service, "80"))


async def test_a_target_that_nobody_knows_of_leaves_no_half_state(server: NameServer) -> None:
    server.write("api.test", "_http._tcp SRV 1 1 80 one\n_http._tcp SRV 1 1 80 www.broken.test.\none A 10.0.0.1")
    assert "www.broken.test. A" in await refused(asking([server.address], "_http._tcp.api.test"))


async def test_a_server_that_stops(server: NameServer) -> None:
    server.write("api.test", "www 0 A 10.0.0.1", negative=0)
    async with asking([server.address], "www.api.test", "80", timeout="1s") as watch:
        assert await watch.addresses() == ["10.0.0.1:80"]
        server.stop()
        try:
            with pytest.raises(ProviderError, match=f"127.0.0.1@{server.port}"):
                await watch.next()
        finally:
            server.start()
    async with asking([server.address], "www.api.test", "80") as watch:
        assert await watch.addresses() == ["10.0.0.1:80"]


async def test_servers_that_are_silent(server: NameServer) -> None:
    """The next one is asked; if there is none, the time is bounded, and everything else goes on meanwhile."""
    server.write("api.test", "www A 10.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        deaf = f"localhost:{silent.getsockname()[1]}"
        async with asking([deaf, server.address], "www.api.test", "80", timeout="3s") as watch:
            assert await watch.addresses() == ["10.0.0.1:80"]
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        begun = time.monotonic()
        assert "lifetime expired" in await refused(asking([deaf], "www.api.test", "80", timeout="500ms"))
        assert 0.5 <= time.monotonic() - begun < SOON
        assert ticks > 5
        ticking.cancel()


@pytest.mark.parametrize(
    ("service", "port", "why"),
    [
        ("www.api.test", None, "set 'discover.port', or name SRV records, such as '_http._tcp.www.api.test'"),
        ("www.api.test", "http", "'http' is not a port that DNS has"),
        ("www.api.test", "65536", "a number from 1 to 65535"),
        ("www..test", "80", "'www..test' is not a domain name"),
        ("", "80", "it has no label"),
    ],
)
async def test_what_cannot_be_asked(service: str, port: str | None, why: str) -> None:
    assert why in await refused(asking(["127.0.0.1:9"], service, port))


async def test_a_server_whose_name_has_no_address(server: NameServer) -> None:
    assert "ns.invalid:53 has no address" in await refused(asking(["ns.invalid:53"], "www.api.test", "80"))
    server.write("api.test", "www A 10.0.0.1")
    async with asking(["ns.invalid:53", server.address], "www.api.test", "80") as watch:
        assert await watch.addresses() == ["10.0.0.1:80"]


def test_the_system_s_servers(tmp_path: Path) -> None:
    """A headless service of Kubernetes by its name alone: with the system's name server, search list and ndots."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\nsearch shop.svc.cluster.test svc.cluster.test\noptions ndots:5\n")
    mounted = f'mount --bind {resolv} "$(readlink -f /etc/resolv.conf)" && exec "$@"'
    command = [
        *unshared("--net", "--mount"),
        "sh",
        "-c",
        mounted,
        "sh",
        "env",
        f"PYTHONPATH={Path(__file__).parents[2]}",
    ]
    told = json.loads(output([*command, sys.executable, "-m", system_servers.__name__, tmp_path]).splitlines()[-1])
    # Nobody denies the last name that is tried, so that it is not known to be missing.
    assert told.pop("nowhere").endswith("answered REFUSED")
    assert told.pop("no servers").startswith("the system names no DNS servers")
    assert told == {
        "api": ["10.0.0.1:8080", "10.0.0.2:8080"],
        "pay.money": ["10.0.0.3:8080"],
        "_http._tcp.api": ["10.0.0.1:80", "10.0.0.2:80"],
        "www.other.test": ["10.0.0.4:8080"],
    }
