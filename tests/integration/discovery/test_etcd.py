"""Services in a real etcd: what is put, changed and deleted there, and how much of it at a time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitu.discovery.etcd import Etcd as Provider
from mitu.discovery.etcd_gateway import HistoryLostError, Login, connected, encoded
from mitu.discovery.instance import Health, Instance
from mitu.discovery.provider import ProviderError
from support.etcd import Etcd, configured, key, provider, watched
from support.net import eventually

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd"), flags=["--max-txn-ops=20000"]) as server:
        yield server


@pytest.fixture
def service() -> str:
    """One that no other test has used."""
    return f"svc{next(_numbers)}-"


@pytest.fixture
def asked(server: Etcd) -> Provider:
    return provider(server)


def many(service: str, count: int, first: int = 0) -> dict[str, str]:
    """Values of that many instances, by key."""
    numbers = range(first, first + count)
    return {key(service, f"i{number:05}"): f"10.0.{number // 250}.{number % 250 + 1}:80" for number in numbers}


async def test_an_instance_registers_changes_and_goes(server: Etcd, asked: Provider, service: str) -> None:
    a = key(service, "a")
    async with watched(asked, service) as watch:
        assert await watch.next() == {}
        server.put(a, "10.0.0.1:8080")
        assert await watch.next() == {"a": Instance("a", "10.0.0.1:8080")}
        server.put(a, {"address": "10.0.0.1:8080", "weight": 7, "zone": "eu-1", "protocols": ["h2"]})
        assert await watch.next() == {"a": Instance("a", "10.0.0.1:8080", 7, ("h2",), zone="eu-1")}
        server.put(a, {"address": "10.0.0.1:8080", "status": "warning", "reason": "disk is slow"})
        degraded = Instance("a", "10.0.0.1:8080", health=Health.DEGRADED, reason="disk is slow")
        assert await watch.next() == {"a": degraded}
        server.put(a, {"host": "10.0.0.1", "port": 8080, "metadata": {"alpn.supported": "h2,http/1.1"}})
        metadata = {"alpn.supported": "h2,http/1.1"}
        assert await watch.next() == {
            "a": Instance("a", "10.0.0.1:8080", protocols=("h2", "http/1.1"), metadata=metadata)
        }
        server.put(key(service, "b"), "[::1]:80")
        assert (await watch.next()).keys() == {"a", "b"}
        server.delete(a)
        assert await watch.next() == {"b": Instance("b", "[::1]:80")}
        server.delete(key(service, "b"))
        assert await watch.next() == {}


async def test_a_prefix_may_end_with_a_slash_or_not(server: Etcd, service: str) -> None:
    server.put(key(service, "a"), "10.0.0.1:80")
    for prefix in ("/mitu/services", "/mitu/services/"):
        async with watched(provider(server, prefix=prefix), service) as watch:
            assert (await watch.next()).keys() == {"a"}


async def test_other_services_are_no_news(server: Etcd, asked: Provider, service: str) -> None:
    def noise(value: str) -> None:
        for other in (f"{service}2", service[:-1], f"{service}/deeper", f"{service}0"):
            server.put(key(other, "a"), value)
        server.put(key(service, ""), value)

    noise("10.0.0.1:80")
    async with watched(asked, service) as watch:
        assert await watch.next() == {}
        noise("10.0.0.2:80")
        server.put(key(service, "mine"), "10.0.0.3:80")
        assert await watch.next() == {"mine": Instance("mine", "10.0.0.3:80")}
        noise("10.0.0.4:80")
        server.put(key(service, "mine"), "10.0.0.3:80")
        server.put(key(service, "mine"), "10.0.0.5:80")
        assert await watch.next() == {"mine": Instance("mine", "10.0.0.5:80")}
    async with watched(asked, f"{service}/deeper") as watch:
        assert await watch.next() == {"a": Instance("a", "10.0.0.4:80")}


async def test_a_transaction_is_one_change(server: Etcd, asked: Provider, service: str) -> None:
    server.put(key(service, "old"), "10.0.0.1:80")
    async with watched(asked, service) as watch:
        assert (await watch.next()).keys() == {"old"}
        server.at_once(many(service, 50), deletes=[key(service, "old")])
        assert (await watch.next()).keys() == {f"i{number:05}" for number in range(50)}


async def test_a_lease_that_ends_takes_its_instance_out(server: Etcd, asked: Provider, service: str) -> None:
    server.put(key(service, "stays"), "10.0.0.1:80")
    lease = server.lease_grant(2)
    server.put(key(service, "leased"), "10.0.0.2:80", lease)
    async with watched(asked, service) as watch:
        assert (await watch.next()).keys() == {"leased", "stays"}
        server.keepalive(lease)
        kept = time.monotonic()
        assert (await watch.next()).keys() == {"stays"}
        assert time.monotonic() - kept > 1.5


async def test_history_that_is_compacted_before_the_watch_begins(server: Etcd, asked: Provider, service: str) -> None:
    server.at_once(many(service, 3))
    async with watched(asked, service) as watch:
        # What has been yielded is the range; the watch begins when more is asked for.
        assert len(await watch.next()) == 3
        server.delete(key(service, "i00000"))
        server.put(key(service, "new"), "10.0.0.9:80")
        server.compact()
        assert (await watch.next()).keys() == {"i00001", "i00002", "new"}
        # A watch that is up to date does not care.
        server.put(key(f"{service}2", "other"), "10.0.0.1:80")
        server.compact()
        server.delete(key(service, "new"))
        assert (await watch.next()).keys() == {"i00001", "i00002"}


async def test_compacted_history_is_told_from_other_trouble(server: Etcd, service: str) -> None:
    server.put(key(service, "a"), "10.0.0.1:80")
    old = server.revision()
    server.put(key(service, "a"), "10.0.0.2:80")
    server.put(key(service, "a"), "10.0.0.3:80")
    server.compact()
    settings = configured(server)
    a = encoded(key(service, "a").encode())
    async with connected(settings, Login(settings), 10) as gateway:
        with pytest.raises(HistoryLostError):
            await gateway.ask("kv/range", {"key": a, "revision": str(old)})
        with pytest.raises(HistoryLostError):
            async with gateway.watch({"key": a, "start_revision": str(old)}) as watch:
                await watch.messages()


async def test_a_range_of_several_pages(server: Etcd, asked: Provider, service: str) -> None:
    server.at_once(many(service, 1_200))
    async with watched(asked, service) as watch:
        found = await watch.next()
        assert {one.address for one in found.values()} == set(many(service, 1_200).values())
        server.delete(key(service, "i00777"))
        assert (await watch.next()).keys() == found.keys() - {"i00777"}


async def test_a_change_in_fragments_is_one_change(server: Etcd, asked: Provider, service: str) -> None:
    async with watched(asked, service) as watch:
        assert await watch.next() == {}
        # Together more than a message of etcd may hold, and waiting when the watch begins.
        for batch in range(4):
            values = many(service, 400, first=400 * batch)
            padded = {one: json.dumps({"address": value, "": "x" * 2_000}) for one, value in values.items()}
            server.at_once(padded)
        assert len(await watch.next()) == 1_600


async def test_more_keys_than_a_service_may_have(server: Etcd, asked: Provider, service: str) -> None:
    values = list(many(service, 10_000).items())
    server.at_once(dict(values[:5_000]))
    server.at_once(dict(values[5_000:]))
    async with watched(asked, service) as watch:
        assert len(await watch.next()) == 10_000
        server.put(key(service, "more"), "10.0.0.1:80")
        with pytest.raises(ProviderError, match="more than 10000 keys"):
            await watch.next()
    async with watched(asked, service) as watch:
        with pytest.raises(ProviderError, match="more than 10000 keys"):
            await watch.next()


async def test_values_that_cannot_be_read_are_left_out_and_told_once(
    server: Etcd, asked: Provider, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = key(service, "bad")

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    server.put(key(service, "good"), "10.0.0.1:80")
    server.put(bad, "hunter2")
    async with watched(asked, service) as watch:
        assert (await watch.next()).keys() == {"good"}
        assert told() == [f"etcd: '{bad}' is left out: neither host:port nor a JSON object"]
        server.put(bad, b"\xff\xfe")
        server.put(key(service, "good"), "10.0.0.2:80")
        assert (await watch.next())["good"].address == "10.0.0.2:80"
        assert told()[1:] == [f"etcd: '{bad}' is left out: not UTF-8"]
        server.put(bad, "10.0.0.3:80")
        assert (await watch.next())["bad"].address == "10.0.0.3:80"
        server.put(bad, '{"address": 5}')
        assert (await watch.next()).keys() == {"good"}
        assert len(told()) == 3
    async with watched(asked, service) as watch:
        assert (await watch.next()).keys() == {"good"}
    assert len(told()) == 3


async def test_silence_makes_it_look_and_is_no_news(server: Etcd, service: str) -> None:
    server.put(key(service, "a"), "10.0.0.1:80")

    def looked(times: int) -> bool:
        return server.metric("etcd_mvcc_range_total") >= before + times

    async with watched(provider(server, silence=0.1), service) as watch:
        assert (await watch.next()).keys() == {"a"}
        before = server.metric("etcd_mvcc_range_total")
        following = asyncio.ensure_future(watch.next())
        await asyncio.to_thread(eventually, lambda: looked(5), 30)
        # Those that were given up are gone from the server too.
        await server.watchers(1)
        assert not following.done()
        server.put(key(service, "a"), "10.0.0.2:80")
        assert (await following)["a"].address == "10.0.0.2:80"
    await server.watchers(0)


async def test_a_server_that_tells_of_progress_is_not_asked_again(tmp_path: Path) -> None:
    with Etcd(tmp_path, flags=["--watch-progress-notify-interval=200ms"]) as server:
        async with watched(provider(server, silence=2), "svc") as watch:
            assert await watch.next() == {}
            following = asyncio.ensure_future(watch.next())
            await server.watchers(1)
            # There is no progress until there is a revision later than the one that was read.
            server.put("/elsewhere", "")
            before = server.metric("etcd_mvcc_range_total")
            await asyncio.sleep(5)
            assert server.metric("etcd_mvcc_range_total") == before
            server.put(key("svc", "a"), "10.0.0.1:80")
            assert (await following).keys() == {"a"}
