"""Where floods happen: a gateway, an upstream that counts what it is asked, and a healthy client beside the flood."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.client import Address, Http1
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.pressure import Pressure
from support.process import Program
from support.servers import Loop, Reader, Server, Writer, http_body, http_head, http_response

MIB = 1 << 20
LATE = 2.0
"""Seconds within which a healthy request has to be answered, whatever else goes on, on a machine that is shared."""
HARDLY = 0.25
"""Seconds that 99 in 100 of them may take there, however quick they are otherwise."""
CPU, GROWN, KEPT = 1.0, 16 * MIB, 8 * MIB
"""The most that one flood may cost: seconds, bytes, and bytes that are kept of a second one that the first had not."""
CPU_OF_A_REQUEST = 0.0005
"""Seconds that the gateway needs for a healthy request, with room to spare."""


class Upstream(Server):
    """Answers by path, and counts requests as they begin.

    `/never` is not answered; `/begun` is in part; `/endless` has a body without end; `/upload` is answered behind its
    body, and all others at once.
    """

    def __init__(self, loop: Loop) -> None:
        self.begun = 0
        super().__init__(loop, self._answer)

    async def _answer(self, reader: Reader, writer: Writer) -> None:
        while (head := await http_head(reader)) is not None:
            self.begun += 1
            line, headers = head
            path = line.split(" ")[1]
            if path == "/begun":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            if path in ("/never", "/begun"):
                await reader.read()
                return
            if path == "/endless":
                await self._endless(writer)
                return
            if path == "/upload":
                try:
                    await http_body(reader, headers)
                except ValueError:
                    return  # The gateway has gone in the midst of it.
            writer.write(http_response("200 OK", b"ok"))
            await writer.drain()

    async def _endless(self, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)


class Healthy:
    """The healthy client, and how long its requests took."""

    def __init__(self, address: Address, ca: Path, folder: Path) -> None:
        tests = Path(__file__).parents[1]
        command = [sys.executable, "-m", "support.healthy", *address, ca]
        self._program = Program(command, folder / "healthy.log", environment={"PYTHONPATH": str(tests)})
        self._log = self._program.log_file.open(encoding="ascii")
        self._rest = ""
        self._done: list[tuple[float, float]] = []
        """When each was done, by the clock of all processes, and its seconds."""
        self._pressed: set[int] = set()
        """Those of them that were on their way during a flood."""
        eventually(lambda: self.since(0), 20)

    def since(self, moment: float) -> list[float]:
        """Seconds that requests took which were not done at `moment`; AssertionError when one has failed."""
        whole, end, self._rest = (self._rest + self._log.read()).rpartition("\n")
        for line in (whole + end).splitlines():
            begun, took = line.split(" ", 1)
            assert not took.startswith("failed"), line
            self._done.append((float(begun) + float(took), float(took)))
        after = itertools.takewhile(lambda done: done[0] >= moment, reversed(self._done))
        return [took for _, took in after]

    def pressed(self, moment: float) -> list[float]:
        """The same, when there was a flood from then on."""
        took = self.since(moment)
        self._pressed.update(range(len(self._done) - len(took), len(self._done)))
        return took

    def percentiles(self) -> tuple[float, float]:
        """The 99th during all floods, and that of the time between them. StatisticsError when there was none."""
        pressed = [took for at, (_, took) in enumerate(self._done) if at in self._pressed]
        quiet = [took for at, (_, took) in enumerate(self._done) if at not in self._pressed]
        return statistics.quantiles(pressed, n=100)[98], statistics.quantiles(quiet, n=100)[98]

    def stop(self) -> None:
        self._program.kill()
        self._log.close()


@dataclass(repr=False)
class Cost:
    """What something took. `top`: bytes of memory at the most of it, `grown`: more than before; `kept`: afterwards."""

    cpu: float = 0.0
    top: int = 0
    grown: int = 0
    kept: int = 0
    begun: int = 0
    healthy: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        memory = f"{self.grown / MIB:.2f} MiB more, {self.top / MIB:.2f} in all, {self.kept / MIB:.2f} kept"
        healthy = f"{len(self.healthy)} healthy requests, the slowest {max(self.healthy):.3f} s"
        return f"{self.cpu:.3f} s of CPU, {memory}, {self.begun} requests upstream, {healthy}"


@dataclass
class Ground:
    gateway: Gateway
    ca: Path
    upstream: Upstream
    healthy: Healthy
    address: Address
    pressure: Pressure
    resident: int
    """Bytes of memory at the beginning."""

    @contextlib.contextmanager
    def watched(self) -> Iterator[Cost]:
        """Fills in the cost of what is done within; others are served meanwhile, and nothing is left behind."""
        cost = Cost()
        active, sockets = self.active(), self.pressure.sockets()
        self.pressure.forget_peak()
        cpu, resident, begun, moment = (
            self.pressure.cpu(),
            self.pressure.resident(),
            self.upstream.begun,
            time.monotonic(),
        )
        yield cost
        over = time.monotonic()
        # Whoever asks when the flood has just ended is served as well.
        eventually(lambda: self.healthy.since(over), 10, 0.005)
        cost.healthy = self.healthy.pressed(moment)
        cost.cpu, cost.begun = self.pressure.cpu() - cpu, self.upstream.begun - begun
        eventually(lambda: self.active() <= active, 10, 0.02)
        eventually(lambda: self._gauge("mitu_upstream_requests_active") == 0, 10, 0.02)
        # The upstream's connections are kept for the next request.
        eventually(lambda: self.pressure.sockets() <= sockets + self.upstream.open + 1, 10, 0.02)
        cost.top, cost.kept = self.pressure.peak(), self.pressure.resident()
        cost.grown = cost.top - resident
        assert max(cost.healthy) < LATE, cost
        with Http1.open(self.address, self.ca) as other:
            assert other.request("/health").status == 200

    def active(self) -> float:
        """Connections that are open."""
        return self._gauge("mitu_connections_active")

    def _gauge(self, name: str) -> float:
        """As `Gateway.metric`, which takes too long to be asked so often."""
        lines = self.gateway.metrics().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def endure(ground: Ground, flood: Callable[[], None], begun: int, record: Callable[[str, object], None]) -> None:
    """Floods twice, and holds each to its bounds. `begun`: the most that the upstream may be asked."""
    tops = []
    for _ in range(2):
        with ground.watched() as cost:
            flood()
        tops.append(cost.top)
        record("seconds of the slowest healthy request", max(cost.healthy))
        record("MiB more at most", cost.grown / MIB)
        record("seconds of CPU", cost.cpu)
        record("requests begun upstream", float(cost.begun))
        assert cost.grown < GROWN, cost
        assert cost.cpu < CPU + CPU_OF_A_REQUEST * len(cost.healthy), cost
        assert cost.begun <= begun, cost
    # The allocator keeps what was used for a while, and uses it again.
    assert cost.kept < tops[0] + KEPT, cost


def others_hardly_notice(ground: Ground, record: Callable[[str, object], None]) -> None:
    """Behind floods, of which it takes account together."""
    try:
        pressed, quiet = ground.healthy.percentiles()
    except statistics.StatisticsError:
        pytest.skip("there was no flood")
    record("healthy requests' P99 in all floods, times the one between them", pressed / quiet)
    assert pressed < max(3 * quiet, HARDLY)


def nothing_is_left(ground: Ground, record: Callable[[str, object], None]) -> None:
    """The same of memory, which one flood alone could keep little enough of."""
    kept = ground.pressure.resident() - ground.resident
    record("MiB more behind all floods", kept / MIB)
    assert kept < 2 * GROWN


@contextlib.contextmanager
def ground(*beside: Settings, timeout: str = "60s", **settings: Any) -> Iterator[Ground]:
    """A gateway on one worker, so that floods and healthy clients meet.

    `settings`: of its listener; `beside`: of others; `timeout`: of their routes to the upstream.
    """
    # Short, since the path of a Unix socket may be 107 bytes long at most.
    folder = Path(tempfile.mkdtemp(prefix="mitu-"))
    authority = Authority(folder / "certificates")
    loop = Loop()
    (folder / "gateway").mkdir()
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        ends.callback(loop.close)
        app = Upstream(loop)
        pair = authority.issue("edge", ("localhost",))
        routes = [health(), to_app(timeout=timeout)]
        listeners = [listener(pair, routes=routes, **one) for one in (settings, *beside)]
        log = {"access": {"path": "access.log", "requests": True, "connections": True}}
        gateway = Gateway(folder / "gateway", configuration(listeners, upstream("app", app.endpoint), logging=log))
        ends.callback(lambda: print(gateway.program.log[-20_000:]))
        ends.callback(gateway.program.stop)
        gateway.ready()
        address = gateway.address()
        healthy = Healthy(address, authority.certificate, folder)
        ends.callback(healthy.stop)
        pressure = Pressure(gateway.program.pid)
        yield Ground(gateway, authority.certificate, app, healthy, address, pressure, pressure.resident())
