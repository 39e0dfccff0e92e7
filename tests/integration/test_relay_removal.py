"""Relays that have to leave: their endpoint is removed, or their listener drains. They do not leave all at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from support.certificates import Authority, Pair
from support.client import Address, Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually, free_port
from support.process import Program
from support.servers import Loop, Reader, Server, Writer, echo

from .conftest import Serve, Start
from .test_relay_stickiness import Broker

MANY = 200
SLICES = 5


@dataclass
class Crowd:
    """Devices that are relayed and stay until they are sent away, and when each of them was."""

    loop: Loop
    ended: list[float] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)

    def join(self, address: Address, ca: Path, count: int) -> Self:
        """So many more, each of which has been answered by its upstream."""
        tls = context(ca, ["echo"])
        some = 20
        for _ in range(0, count, some):
            self.loop.run(self._join(address, tls, min(some, count)))
        return self

    async def _join(self, address: Address, tls: ssl.SSLContext, count: int) -> None:
        await asyncio.gather(*(self._open(address, tls) for _ in range(count)))

    async def _open(self, address: Address, tls: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection(*address, ssl=tls, server_hostname="localhost")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        self.writers.append(writer)
        task = asyncio.create_task(self._stay(reader, writer))
        task.add_done_callback(lambda _: None)

    async def _stay(self, reader: Reader, writer: Writer) -> None:
        try:
            # A FIN without close_notify would be an error here, and so is a reset.
            assert await reader.read() == b""
        except (OSError, ssl.SSLError, AssertionError) as error:
            self.failed.append(error)
        self.ended.append(time.monotonic())
        self.writers.remove(writer)
        writer.close()

    @property
    def open(self) -> int:
        return len(self.writers)

    def slices(self, begun: float, within: float) -> list[int]:
        """How many ended in each part of the time."""
        counts = [0] * SLICES
        for ended in self.ended:
            counts[min(int((ended - begun) / within * SLICES), SLICES - 1)] += 1
        return counts

    def close(self) -> None:
        async def close() -> None:
            for writer in self.writers:
                writer.transport.abort()

        self.loop.run(close())


@pytest.fixture
def crowd(clients: Loop) -> Iterator[Crowd]:
    crowd = Crowd(clients)
    yield crowd
    crowd.close()


def relaying(edge: Pair, *endpoints: object, drain: str = "30s", **settings: object) -> Settings:
    one = listener(edge, protocols=[{"alpn": "echo", "relay": "echo"}], no_alpn="refuse", **settings)
    return configuration([one], upstream("echo", *endpoints, timeouts={"drain": drain}))


def ends(gateway: Gateway, reason: str) -> float:
    return gateway.metric("mitu_relay_ends_total", listener="edge", alpn="echo", reason=reason)


def assert_spread(crowd: Crowd, begun: float, within: float, count: int) -> None:
    assert not crowd.failed, crowd.failed[:3]
    assert len(crowd.ended) == count
    counts = crowd.slices(begun, within)
    print(f"ends in {SLICES} slices of {within:g} s: {counts}")
    assert max(counts) <= 0.45 * count, counts
    assert min(counts) > 0, counts


def test_relays_leave_an_endpoint_that_is_removed(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, crowd: Crowd
) -> None:
    going, staying = serve(echo), serve(echo)
    both = relaying(edge, going.endpoint, staying.endpoint, drain="4s")
    running = gateway(both, flags=["--no-watch"])
    crowd.join(running.address(), authority.certificate, 2 * MANY)
    assert (going.open, staying.open) == (MANY, MANY)
    begun = time.monotonic()
    running.apply(relaying(edge, staying.endpoint, drain="4s"))
    # From now on nobody comes to it any more.
    crowd.join(running.address(), authority.certificate, 20)
    assert staying.open == MANY + 20
    assert eventually(lambda: going.open == 0, 15)
    took = time.monotonic() - begun
    assert 3 < took < 12, took
    assert eventually(lambda: crowd.open == MANY + 20)
    assert_spread(crowd, begun, 4, MANY)
    assert eventually(lambda: (ends(running, "removal"), ends(running, "drain")) == (MANY, 0))
    assert staying.open == MANY + 20


def test_an_endpoint_that_is_back_in_time_keeps_the_others(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, crowd: Crowd
) -> None:
    leaving, other = serve(echo), serve(echo)
    both, one = [
        relaying(edge, *names, drain="20s") for names in ((leaving.endpoint, other.endpoint), (other.endpoint,))
    ]
    running = gateway(both, flags=["--no-watch"])
    crowd.join(running.address(), authority.certificate, 100)
    running.apply(one)
    eventually(lambda: len(crowd.ended) >= 5, 20)
    running.apply(both)
    # Those whose moment had come just then.
    time.sleep(1.2)
    left = leaving.open
    assert 0 < left < 50
    time.sleep(3)
    assert leaving.open == left
    assert other.open == 50
    # They count there as before, so that those who come go where there is room.
    active = running.metric("mitu_upstream_requests_active", endpoint=leaving.endpoint)
    assert active == left
    # And leave with the next time.
    running.apply(relaying(edge, other.endpoint, drain="20s"))
    ended = len(crowd.ended)
    eventually(lambda: len(crowd.ended) >= ended + 3, 20)


def test_a_reload_that_is_refused_sends_nobody_away(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, crowd: Crowd
) -> None:
    first, second = serve(echo), serve(echo)
    running = gateway(relaying(edge, first.endpoint, drain="0s"), flags=["--no-watch"])
    crowd.join(running.address(), authority.certificate, 20)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = relaying(edge, second.endpoint, drain="0s")
        extra = listener(edge, name="extra", bind=f"127.0.0.1:{taken.getsockname()[1]}", routes=[health()])
        refused["listeners"].append(extra)
        assert running.reload(refused)[0] == 1
    crowd.join(running.address(), authority.certificate, 20)
    time.sleep(0.5)
    assert (first.open, second.open, crowd.ended) == (40, 0, [])
    running.apply(relaying(edge, second.endpoint, drain="0s"))
    assert eventually(lambda: crowd.open == 0)
    assert eventually(lambda: ends(running, "removal") == 40)


def test_relays_leave_in_the_time_of_a_drain(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, crowd: Crowd
) -> None:
    """Spread over 80 % of it, so that none is left to be cut off."""
    broker = serve(echo)
    running = gateway(relaying(edge, broker.endpoint), flags=["--drain-timeout", "6"])
    crowd.join(running.address(), authority.certificate, MANY)
    begun = time.monotonic()
    running.program.signal(signal.SIGTERM)
    assert running.program.wait() == 0, running.program.log
    assert eventually(lambda: crowd.open == 0)
    assert_spread(crowd, begun, 6 * 0.8, MANY)


def test_relays_leave_a_listener_that_is_removed(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, crowd: Crowd
) -> None:
    """In its own time, and those of one that has none stay."""
    broker = serve(echo)
    protocols = [{"alpn": "echo", "relay": "echo"}]

    def named(name: str, **settings: object) -> Settings:
        return listener(edge, name=name, protocols=protocols, no_alpn="refuse", **settings)

    all_of_them = [named("edge"), named("brief", timeouts={"relay_drain": "3s"}), named("patient")]
    to = upstream("echo", broker.endpoint)
    running = gateway(configuration(all_of_them, to), flags=["--no-watch", "--drain-timeout", "3"])
    crowd.join(running.address("brief"), authority.certificate, 60)
    crowd.join(running.address("patient"), authority.certificate, 20)
    begun = time.monotonic()
    running.apply(configuration(all_of_them[:1], to))
    assert eventually(lambda: len(crowd.ended) == 60, 15)
    assert_spread(crowd, begun, 3, 60)
    assert eventually(lambda: running.metric("mitu_relay_ends_total", listener="brief", reason="drain") == 60)
    time.sleep(1)
    assert crowd.open == 20
    # They are told when the gateway ends.
    running.program.signal(signal.SIGTERM)
    assert running.program.wait() == 0, running.program.log
    assert eventually(lambda: crowd.open == 0)
    assert not crowd.failed


def test_a_client_that_does_not_leave_is_not_waited_for(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve
) -> None:
    first, second = serve(echo), serve(echo)
    running = gateway(relaying(edge, first.endpoint, drain="0s"), flags=["--no-watch"])
    with connect(running.address(), context(authority.certificate, ["echo"])) as stream:
        stream.sendall(b"hello")
        assert Http1(stream).exactly(5) == b"hello"
        running.apply(relaying(edge, second.endpoint, drain="0s"))
        assert Http1(stream).closed()
        # What it says now still arrives, but not for long.
        assert eventually(lambda: running.metric("mitu_connections_active") == 0)
        assert first.open == 0


def test_websockets_leave_as_well(gateway: Start, authority: Authority, edge: Pair, serve: Serve) -> None:
    async def switch(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        await echo(reader, writer)

    first, second = serve(switch), serve(switch)

    def routed(server: Server) -> Settings:
        return configuration(
            [listener(edge, routes=[to_app()])], upstream("app", server.endpoint, timeouts={"drain": "1s"})
        )

    running = gateway(routed(first), flags=["--no-watch"])
    with Http1.open(running.address(), authority.certificate) as client:
        client.send(b"GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert client.response().status == 101
        assert client.exactly(5) == b"hello"
        running.apply(routed(second))
        assert client.closed()
    assert eventually(lambda: first.open == 0)
    left = {"listener": "edge", "alpn": "http/1.1", "reason": "removal"}
    assert eventually(lambda: running.metric("mitu_relay_ends_total", **left) == 1)


def test_what_a_connection_does_next_goes_to_the_endpoints_of_now(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, app: Server
) -> None:
    """A reload that changes nothing of an upstream but its endpoints keeps the connections to those that stay."""
    running = gateway(
        configuration([listener(edge, routes=[to_app()])], upstream("app", app.endpoint)), flags=["--no-watch"]
    )
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/").status == 200
        gone = f"127.0.0.1:{free_port()}"
        changed = upstream("app", app.endpoint, {"address": gone, "weight": 0})
        running.apply(configuration([listener(edge, routes=[to_app()])], changed))
        assert client.request("/").status == 200
        connects = running.metric("mitu_upstream_connects_total", endpoint=app.endpoint)
        reuses = running.metric("mitu_upstream_connection_reuses_total", endpoint=app.endpoint)
        assert (connects, reuses) == (1, 1)

        # A connection that began before the reload finds those that are new.
        async def other(reader: Reader, writer: Writer) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
                await writer.drain()

        server = serve(other)
        running.apply(configuration([listener(edge, routes=[to_app()])], upstream("app", server.endpoint)))
        assert client.request("/").body == b"other"
        assert app.endpoint not in running.metrics()


@pytest.mark.needs("mosquitto")
@pytest.mark.needs("mosquitto_pub")
def test_real_devices_move_to_another_broker(gateway: Start, authority: Authority, edge: Pair, tmp_path: Path) -> None:
    """Clients that know nothing of it: they are let go, and connect again by themselves."""
    names = ("one", "two")
    brokers = [Broker.start(name, tmp_path, free_port()) for name in names]

    def settings(*of: Broker) -> Settings:
        one = listener(edge, protocols=[{"alpn": "mqtt", "relay": "broker"}], no_alpn="refuse")
        endpoints = [broker.endpoint for broker in of]
        sticky = {"balancer": {"hash": "mqtt_client_id"}, "timeouts": {"drain": "3s"}}
        return configuration([one], upstream("broker", *endpoints, **sticky))

    running = gateway(settings(*brokers), flags=["--no-watch"])
    to = ("-h", "localhost", "-p", running.address()[1], "--cafile", authority.certificate, "--tls-alpn", "mqtt")
    devices = [
        Program(["mosquitto_sub", *to, "-i", f"device-{number}", "-t", "broker"], tmp_path / f"device-{number}.log")
        for number in range(12)
    ]

    def heard() -> list[list[str]]:
        return [device.log.split() for device in devices]

    try:
        assert eventually(lambda: all(len(words) == 1 for words in heard()), 20)
        before = [words[0] for words in heard()]
        assert set(before) == set(names), before
        running.apply(settings(brokers[1]))
        # Whoever was at the one that is removed hears of the other, and nobody else is disturbed.
        moved = [["one", "two"] if name == "one" else ["two"] for name in before]
        assert eventually(lambda: heard() == moved, 30)
        left = {"alpn": "mqtt", "reason": "removal"}
        assert eventually(lambda: running.metric("mitu_relay_ends_total", **left) == before.count("one"))
    finally:
        for program in (*devices, *(broker.program for broker in brokers)):
            program.stop()
