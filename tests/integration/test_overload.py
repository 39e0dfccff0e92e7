"""A gateway that runs short of memory does with less, step by step, and does as before once it has enough.

The memory is really held: responses that wait for a client that does not read. What makes the steps is the ceiling,
which reloads bring near.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from support import h3
from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.h2 import Http2
from support.h3 import connected
from support.net import eventually
from support.servers import Reader, Server, Writer, http_head

from .conftest import Serve, Start

REFUSED_STREAM = 7
HOGS = 40
KEPT = 8 << 20
"""What the gateway may hold of each response."""


async def flood(reader: Reader, writer: Writer) -> None:
    """Answers each request with more than anybody wants to hold."""
    while await http_head(reader) is not None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * KEPT))
        for _ in range(64):
            writer.write(bytes(KEPT))
            await writer.drain()


@dataclass
class Pressed:
    """A gateway that holds much, and what it is told to hold at most."""

    gateway: Gateway
    settings: Settings
    ca: Authority

    @property
    def resident(self) -> int:
        return self.gateway.program.resident()

    def press(self, share: float) -> None:
        """Make what is held now this share of the ceiling."""
        self.gateway.apply(self.settings | {"overload": {"memory": int(self.resident / share)}})

    @property
    def step(self) -> float:
        return self.gateway.metric("mitu_overload_step", listener="edge")

    def reaches(self, step: int) -> None:
        eventually(lambda: self.step == step, 30)

    def actions(self, action: str) -> float:
        return self.gateway.metric("mitu_overload_actions_total", listener="edge", action=action)

    def h1(self) -> Http1:
        return Http1.open(self.gateway.address(), self.ca.certificate)

    def h2(self) -> Http2:
        return Http2.open(self.gateway.address(), self.ca.certificate)

    def p99(self, count: int) -> float:
        """Of the time, in milliseconds, that clients wait who come, ask and go."""
        waited = []
        for _ in range(count):
            begun = time.perf_counter()
            with self.h1() as client:
                client.request("/health")
            waited.append((time.perf_counter() - begun) * 1e3)
        return sorted(waited)[int(count * 0.99) - 1]


@pytest.fixture
def hogs() -> Iterator[contextlib.ExitStack]:
    """Clients that ask for much and take nothing."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pressed(gateway: Start, serve: Serve, edge: Pair, authority: Authority, hogs: contextlib.ExitStack) -> Pressed:
    greedy: Server = serve(flood)
    settings = configuration(
        [
            listener(
                edge,
                protocols=["h3", "h2", "http/1.1"],
                routes=[health(), to_app()],
                limits={"buffer_size": KEPT},
                timeouts={"idle": "10m"},
            )
        ],
        upstream("app", greedy.endpoint),
    )
    made = Pressed(gateway(settings, flags=["--no-watch"]), settings, authority)
    idle = made.resident
    hog = hogs.enter_context(made.h2())
    for _ in range(HOGS):
        hog.send("/")
    eventually(lambda: made.resident > idle + HOGS * KEPT // 2, 60)
    # It stays as it is once nothing more fits.
    last = [0, 0]

    def settled() -> bool:
        last.append(made.resident)
        time.sleep(0.3)
        return max(last[-3:]) - min(last[-3:]) < 2 << 20

    eventually(settled, 60)
    print(f"resident: {idle >> 20} MiB idle, {made.resident >> 20} MiB with {HOGS} responses that nobody reads")
    return made


def test_each_step_and_the_way_back(pressed: Pressed, hogs: contextlib.ExitStack) -> None:
    quiet = pressed.p99(100)
    assert pressed.step == 0
    with pressed.h1() as idle1, pressed.h2() as idle2, pressed.h1() as fresh:
        assert idle1.request("/health").status == 200
        assert idle2.get("/health").status == 200

        # No connection is kept: those that are idle go, those that have only come are served first.
        pressed.press(0.87)
        pressed.reaches(1)
        assert idle1.closed(30)
        assert idle2.closed(30)
        assert idle2.last is not None, "no GOAWAY"
        answer = fresh.request("/health")
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert fresh.closed(30)
    with pressed.h2() as client:
        assert client.get("/health").status == 200
        assert client.closed(30)
    asyncio.run(h3_is_let_go(pressed))
    assert pressed.actions("disable_keepalive") >= 5
    meanwhile = pressed.p99(100)

    # No requests: each is refused in a way that lets the client make it elsewhere.
    pressed.press(0.92)
    pressed.reaches(2)
    with pressed.h1() as client:
        answer = client.request("/health")
        assert (answer.status, answer.header("retry-after"), answer.header("connection")) == (503, "5", "close")
        assert b"overloaded" in answer.body
    with pressed.h2() as client:
        assert client.get("/health").reset == REFUSED_STREAM
    answer3 = asyncio.run(h3_answer(pressed))
    assert h3.REQUEST_REJECTED in (answer3.reset, answer3.stopped)
    assert pressed.actions("stop_accepting_requests") >= 3

    # No connections.
    pressed.press(0.97)
    pressed.reaches(3)
    with pytest.raises((ConnectionResetError, BrokenPipeError, OSError)):
        pressed.h1()
    with pytest.raises(ConnectionError):
        asyncio.run(h3_answer(pressed))
    assert eventually(lambda: pressed.gateway.metric("mitu_connections_refused_total", reason="overload") >= 2)

    # What is given back is to be had again, without a reload.
    hogs.close()
    pressed.reaches(0)
    with pressed.h1() as client:
        answer = client.request("/health")
        assert (answer.status, answer.header("connection")) == (200, None)
        assert client.request("/health").status == 200
    after = pressed.p99(100)
    print(f"P99 of healthy clients: {quiet:.1f} ms quiet, {meanwhile:.1f} ms overloaded, {after:.1f} ms afterwards")
    assert meanwhile < 20 * quiet + 1000

    log = pressed.gateway.program.log
    for step in ("disable_keepalive", "stop_accepting_requests", "reject_connections"):
        assert f"edge is overloaded, {step}: memory at" in log
    assert "edge is not overloaded any more" in log


async def h3_is_let_go(pressed: Pressed) -> None:
    async with connected(pressed.gateway.address(), pressed.ca.certificate) as client:
        assert (await client.get("/health")).status == 200
        assert (await client.closed(30)).error_code == h3.NO_ERROR


async def h3_answer(pressed: Pressed) -> h3.Answer:
    async with connected(pressed.gateway.address(), pressed.ca.certificate) as client:
        return await client.get("/health")


def test_connections_that_run_short_are_kept(gateway: Start, edge: Pair, authority: Authority) -> None:
    """Whoever is let go comes back, with a handshake."""
    settings = configuration([listener(edge, routes=[health()], limits={"connections": 20})])
    running = Pressed(gateway(settings), settings, authority)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(running.h1()) for _ in range(20)]
        eventually(lambda: running.gateway.metric("mitu_overload_connections_ratio") == 1)
        answers = [client.request("/health") for client in kept]
        assert {(answer.status, answer.header("connection")) for answer in answers} == {(200, None)}
        assert running.step == 0
