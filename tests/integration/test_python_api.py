"""`mitu.Gateway` in a program of one's own: its life, its errors, and what it leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

import mitu
from support.certificates import Authority, Pair
from support.client import Address, Http1, connect, context
from support.gateway import Settings, configuration, listener, parse, to_app, upstream
from support.h2 import Http2
from support.net import free_port
from support.servers import Server


def says(text: str) -> Settings:
    return {"match": {"path_prefix": "/"}, "respond": {"body": text}}


def config(edge: Pair, text: str, **more: Any) -> mitu.Config:
    return mitu.parse_config(configuration([listener(edge, routes=[says(text)], **more)]))


def address(gateway: mitu.Gateway, name: str = "edge") -> Address:
    host, _, port = gateway.addresses[name].rpartition(":")
    return host, int(port)


async def heard(gateway: mitu.Gateway, authority: Authority, name: str = "edge") -> str:
    def ask() -> str:
        with Http1.open(address(gateway, name), authority.certificate) as client:
            return client.request("/").body.decode()

    return await asyncio.to_thread(ask)


async def until(gateway: mitu.Gateway, state: str) -> None:
    async with asyncio.timeout(10):
        while gateway.state != state:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


@pytest.fixture
def file(edge: Pair, tmp_path: Path) -> Path:
    path = tmp_path / "mitu.yaml"
    path.write_text(json.dumps(configuration([listener(edge, routes=[says("one")])])))
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
async def gateway(edge: Pair) -> AsyncIterator[mitu.Gateway]:
    async with mitu.Gateway(config(edge, "one")) as running:
        yield running


async def test_from_a_file(file: Path, edge: Pair, authority: Authority) -> None:
    async with mitu.Gateway(file) as gateway:
        assert await heard(gateway, authority) == "one"
        write(file, json.dumps(configuration([listener(edge, routes=[says("two")])])))
        assert await heard(gateway, authority) == "one"
        assert await gateway.reload() is True
        assert await heard(gateway, authority) == "two"
        assert await gateway.reload() is False
        assert gateway.status()["config"]["file"] == str(file)
    assert await mitu.Gateway(str(file)).drain() is True, "one that was never started has nothing to finish"


async def test_from_a_configuration(gateway: mitu.Gateway, edge: Pair, authority: Authority) -> None:
    assert await heard(gateway, authority) == "one"
    assert gateway.live.config == config(edge, "one")
    assert gateway.status()["config"]["file"] is None
    assert await gateway.reload() is False
    assert await gateway.reload(config(edge, "two")) is True
    assert await heard(gateway, authority) == "two"
    # From now on that is what a reload without an argument means.
    assert await gateway.reload() is False


async def test_what_it_tells(gateway: mitu.Gateway, edge: Pair, authority: Authority) -> None:
    with await asyncio.to_thread(Http1.open, address(gateway), authority.certificate) as client:
        assert (await asyncio.to_thread(client.request, "/")).status == 200
        assert gateway.active == 1
        (one,) = gateway.connections()
        assert (one["alpn"], one["requests"]) == ("http/1.1", 1)
        assert gateway.connections(limit=1)[0]["connection"] == one["connection"]
    assert gateway.certificates()[0]["certificates"][0]["sha256"] == edge.fingerprint
    assert gateway.configuration()["listeners"][0]["name"] == "edge"
    assert parse(gateway.metrics())["mitu_connections_accepted_total"] == [({"listener": "edge"}, 1)]
    status = gateway.status()
    assert (status["state"], status["listeners"][0]["name"]) == ("serving", "edge")


async def test_its_states(edge: Pair, authority: Authority) -> None:
    gateway = mitu.Gateway(config(edge, "one"))
    assert gateway.state == "starting"
    await gateway.start()
    assert gateway.state == "serving"
    with await asyncio.to_thread(Http1.open, address(gateway), authority.certificate) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        drain = asyncio.create_task(gateway.drain())
        await until(gateway, "draining")
        with pytest.raises(mitu.ReloadError, match="the gateway is draining"):
            await gateway.reload(config(edge, "two"))
        client.send(b"Host: localhost\r\n\r\n")
        assert (await asyncio.to_thread(client.response)).body == b"one"
    assert await drain is True
    assert gateway.state == "stopped"
    assert gateway.addresses == {}
    assert gateway.active == 0
    assert await gateway.drain() is True
    await gateway.stop()


async def test_a_drain_that_takes_too_long(edge: Pair, authority: Authority) -> None:
    gateway = mitu.Gateway(config(edge, "one"))
    await gateway.start()
    with await asyncio.to_thread(Http1.open, address(gateway), authority.certificate) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        # Until it has arrived, the connection would count as idle.
        await asyncio.sleep(1)
        assert await gateway.drain(timeout=0.2) is False
        assert await gateway.drain() is False, "what was cut off stays cut off"
        with pytest.raises((EOFError, OSError)):
            client.response()


async def test_stopping_ends_a_drain(edge: Pair, authority: Authority) -> None:
    gateway = mitu.Gateway(config(edge, "one"))
    await gateway.start()
    with await asyncio.to_thread(Http2.open, address(gateway), authority.certificate) as client:
        assert (await asyncio.to_thread(client.get, "/")).status == 200
        with await asyncio.to_thread(Http1.open, address(gateway), authority.certificate) as other:
            other.send(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(1)
            drain = asyncio.create_task(gateway.drain(timeout=3600))
            await until(gateway, "draining")
            await asyncio.gather(gateway.stop(), gateway.stop())
            assert await drain is False


async def test_serve_forever_ends_with_it(edge: Pair) -> None:
    async with mitu.Gateway(config(edge, "one")) as gateway:
        serving = asyncio.create_task(gateway.serve_forever())
        await asyncio.sleep(0.05)
        assert not serving.done()
        await gateway.drain()
        await asyncio.wait_for(serving, 20)


async def test_an_exception_in_the_block_drains_it(edge: Pair) -> None:
    with pytest.raises(RuntimeError, match="the program's own"):
        async with mitu.Gateway(config(edge, "one")) as gateway:
            raise RuntimeError("the program's own")
    assert gateway.state == "stopped"


class TestErrors:
    async def test_before_it_is_started(self, edge: Pair) -> None:
        gateway = mitu.Gateway(config(edge, "one"))
        for ask in (lambda: gateway.live, lambda: gateway.addresses, lambda: gateway.active, gateway.metrics):
            with pytest.raises(mitu.StartError, match="has not been started"):
                ask()
        with pytest.raises(mitu.StartError, match="has not been started"):
            await gateway.reload()
        await gateway.stop()

    async def test_started_twice(self, gateway: mitu.Gateway, edge: Pair, authority: Authority) -> None:
        with pytest.raises(mitu.StartError, match="only once"):
            await gateway.start()
        assert await heard(gateway, authority) == "one"

    async def test_a_file_that_is_no_good(self, file: Path) -> None:
        write(file, "listeners: 7")
        with pytest.raises(mitu.ConfigError) as caught:
            await mitu.Gateway(file).start()
        assert caught.value.report.errors
        assert isinstance(caught.value, mitu.MituError)

    async def test_a_certificate_that_is_no_good(self, edge: Pair) -> None:
        wrong = Pair(edge.certificate, edge.certificate)
        with pytest.raises(mitu.ConfigError):
            await mitu.Gateway(config(wrong, "one")).start()

    async def test_a_port_that_is_taken(self, edge: Pair, authority: Authority) -> None:
        free = f"127.0.0.1:{free_port()}"
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = f"127.0.0.1:{other.getsockname()[1]}"
            both = [
                listener(edge, name=name, bind=bind, routes=[says(name)]) for name, bind in (("a", free), ("b", taken))
            ]
            gateway = mitu.Gateway(mitu.parse_config(configuration(both)))
            with pytest.raises(mitu.StartError, match="listener 'b': cannot bind"):
                await gateway.start()
            assert gateway.state == "starting"
        # Nothing is left open: the other port is free.
        async with mitu.Gateway(config(edge, "one", bind=free)) as again:
            assert await heard(again, authority) == "one"

    async def test_a_reload_that_is_refused(self, gateway: mitu.Gateway, edge: Pair, authority: Authority) -> None:
        before = gateway.status()
        more = mitu.parse_config(configuration([listener(edge, routes=[says("two")])], runtime={"workers": 2}))
        with pytest.raises(mitu.ReloadError, match="without a restart"):
            await gateway.reload(more)
        with pytest.raises(mitu.ConfigError):
            await gateway.reload("/nowhere/mitu.yaml")
        broken = listener(edge, protocols=[{"alpn": "x", "handler": "nowhere:serve"}])
        with pytest.raises(mitu.HandlerError, match="No module named 'nowhere'"):
            await gateway.reload(mitu.parse_config(configuration([broken])))
        assert await heard(gateway, authority) == "one"
        after = gateway.status()
        assert after["config"] == before["config"]
        assert (after["reloads"]["succeeded"], after["reloads"]["failed"]) == (0, 3)
        # What it was given first is still what it reloads from.
        assert await gateway.reload() is False

    async def test_a_configuration_that_is_not_admitted(self, edge: Pair, authority: Authority) -> None:
        def admit(new: mitu.Config) -> None:
            if new.listeners[0].name != "edge":
                raise mitu.ReloadError("another name")

        async with mitu.Gateway(config(edge, "one"), admit=admit) as gateway:
            with pytest.raises(mitu.ReloadError, match="another name"):
                await gateway.reload(config(edge, "two", name="other"))
            assert list(gateway.addresses) == ["edge"]
            assert await gateway.reload(config(edge, "two")) is True


async def test_reloads_wait_for_each_other(gateway: mitu.Gateway, edge: Pair, authority: Authority) -> None:
    await asyncio.gather(*(gateway.reload(config(edge, f"number {number}")) for number in range(20)))
    assert gateway.status()["reloads"]["succeeded"] == 20
    assert await heard(gateway, authority) == "number 19"


class GivesUp(Coroutine[Any, Any, bool]):
    """`work`, whose task is cancelled at its `point`-th await: as it begins to wait, or once that is done, `late`.

    `reached`: whether there was such an await.
    """

    def __init__(self, work: Coroutine[Any, Any, bool], point: int, late: bool) -> None:
        self._work, self._late, self._left = work, late, point
        self.reached = False

    def send(self, value: None) -> Any:
        waited = self._work.send(value)
        if self._left == 0:
            self.reached = True
            task = asyncio.current_task()
            assert task is not None
            if self._late:
                # Called before the task that waits is told: it gets the cancellation in place of the result.
                waited.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        self._left -= 1
        return waited

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, bool]:
        return self._work.__await__()


@pytest.mark.parametrize("late", [False, True])
async def test_a_caller_that_gives_up_leaves_both_sides_agreed(
    gateway: mitu.Gateway, edge: Pair, authority: Authority, late: bool
) -> None:
    """At each point where it waits, however many there are."""
    for point in itertools.count():
        reloading = GivesUp(gateway.reload(config(edge, f"version {point}")), point, late)
        (outcome,) = await asyncio.gather(asyncio.create_task(reloading), return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) == reloading.reached
        await gateway.reload()
        (route,) = gateway.live.config.listeners[0].routes
        assert route.respond is not None
        assert await heard(gateway, authority) == route.respond.body
        if not reloading.reached:
            break
    assert point > 0, "it was never cancelled"


async def test_nothing_that_is_printed_holds_a_key(gateway: mitu.Gateway, edge: Pair) -> None:
    secret = edge.key.read_text().splitlines()[1]
    assert any(secret.encode() in one for one in gateway.live.compiled.secrets.values())
    for one in (gateway, gateway.live, gateway.live.compiled, gateway.configuration(), gateway.status()):
        assert secret not in repr(one)


async def test_two_in_one_process(edge: Pair, authority: Authority) -> None:
    async with mitu.Gateway(config(edge, "one")) as first:
        async with mitu.Gateway(config(edge, "two")) as second:
            assert (await heard(first, authority), await heard(second, authority)) == ("one", "two")
            assert await first.reload(config(edge, "three"))
            assert (await heard(first, authority), await heard(second, authority)) == ("three", "two")
            accepted = [parse(each.metrics())["mitu_connections_accepted_total"][0][1] for each in (first, second)]
            assert accepted == [2, 2]
            bind = second.addresses["edge"]
            with pytest.raises(mitu.ReloadError, match="Address already in use"):
                await first.reload(config(edge, "four", bind=bind))
        assert await heard(first, authority) == "three"


async def test_one_is_the_upstream_of_another(edge: Pair, authority: Authority, app: Server) -> None:
    """With h2 between them, in one process."""
    inner = configuration([listener(edge, routes=[to_app()])], upstream("app", app.endpoint))
    async with mitu.Gateway(mitu.parse_config(inner)) as second:
        tls = {"ca": str(authority.certificate), "server_name": "localhost"}
        to = upstream("app", second.addresses["edge"], protocol="h2", tls=tls)
        outer = mitu.parse_config(configuration([listener(edge, routes=[to_app()])], to))
        async with mitu.Gateway(outer) as first:
            assert '"method": "GET"' in await heard(first, authority)


async def test_it_leaves_nothing_behind(edge: Pair, authority: Authority) -> None:
    """Neither threads nor files, whether it was drained, stopped, or could not start."""

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))

    async def once() -> None:
        async with mitu.Gateway(config(edge, "one")) as gateway:
            assert await heard(gateway, authority) == "one"
        stopped = mitu.Gateway(config(edge, "one"))
        await stopped.start()
        await stopped.stop()
        with pytest.raises(mitu.StartError):
            await mitu.Gateway(config(edge, "one", bind="192.0.2.1:1")).start()

    # The threads of the loop's own pool come once.
    for _ in range(3):
        await once()
    before = held()
    for _ in range(5):
        await once()
    threads, files = held()
    assert threads <= before[0] + 2
    assert files <= before[1] + 2


async def test_handlers_of_a_gateway_in_code(edge: Pair, authority: Authority) -> None:
    protocols = ["http/1.1", {"alpn": "shout", "handler": "support.handlers:shout"}]
    mounted = mitu.parse_config(configuration([listener(edge, protocols=protocols, routes=[says("one")])]))

    def shout(where: Address) -> bytes:
        with connect(where, context(authority.certificate, ["shout"])) as stream:
            stream.sendall(b"hello\n")
            return Http1(stream).exactly(6)

    async with mitu.Gateway(mounted) as gateway:
        assert await asyncio.to_thread(shout, address(gateway)) == b"HELLO\n"


async def test_a_busy_interpreter_holds_up_no_request(gateway: mitu.Gateway, authority: Authority) -> None:
    """The data plane does not need the interpreter's lock: here the event loop does not even run."""
    answered: list[bytes] = []

    def ask() -> None:
        with Http1.open(address_before, authority.certificate) as client:
            answered.extend(client.request("/").body for _ in range(100))

    address_before = address(gateway)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(20)  # The loop's thread waits here, and so does everything that is asynchronous.
    assert answered == [b"one"] * 100
