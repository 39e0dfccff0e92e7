"""A fleet that reconnects, simulated: what becomes of it with handshakes in their order, and behind mitu's gate.

Nothing is measured here. One worker takes `COST` for a full handshake, whoever waits for longer than `TIMEOUT` has
given up, and whoever failed tries again after a random part of an exponential backoff, as device libraries do. In
order: every handshake is computed when its turn has come, for a client that is there or not. The gate:
docs/internals/storm-gate.md.
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
from argparse import ArgumentParser
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

COST = 150e-6
"""Seconds of a worker for a full handshake, its first request and its end."""
RESUMED_COST = 130e-6
RESET_COST = 15e-6
"""Accepting a connection and resetting it."""
TIMEOUT = 10.0
"""Seconds until a client gives up, its clock starting with its SYN."""
BACKOFF = (1.0, 60.0)
"""The first and the longest; the wait is a random part of it."""
PATIENCE = 8.0
NETWORKS = 4000
"""That the fleet is spread over."""
OTHERS = 50
"""New connections a second from networks with no other device in them, all the while."""


@dataclass(slots=True)
class Device:
    """A client. `network`: below zero for those that have nothing to do with the fleet."""

    network: int
    resumes: bool
    due: float
    tries: int = 0
    asked: float = 0.0

    @property
    def cost(self) -> float:
        return RESUMED_COST if self.resumes else COST


@dataclass
class Outcome:
    """Of one simulation, in seconds."""

    connected: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    tries: int = 0
    wasted: float = 0.0
    """Computed for clients that had given up."""
    resets: int = 0


class InOrder:
    """First come, first served."""

    def __init__(self) -> None:
        self._queue: deque[Device] = deque()

    def admit(self, device: Device) -> bool:
        self._queue.append(device)
        return True

    def pop(self) -> Device | None:
        return self._queue.popleft() if self._queue else None

    def keeps(self, waited: float) -> bool:
        return True


class Gate:
    """Fair by network, resumed first, none that would wait for longer than `PATIENCE`: as in gate.rs."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[deque[Device], deque[Device]]] = {}
        self._order: list[tuple[float, int]] = []
        self._clocks: dict[int, float] = {}
        self._now = 0.0
        self._jobs = 0

    def admit(self, device: Device) -> bool:
        resumed, full = self._waiting.get(device.network, ((), ()))
        ahead = len(resumed) + (0 if device.resumes else len(full))
        if COST * min(self._jobs, (ahead + 1) * max(1, len(self._order))) > PATIENCE:
            return False
        if device.network not in self._waiting:
            self._waiting[device.network] = (deque(), deque())
            clock = max(self._now, self._clocks.get(device.network, 0.0))
            heapq.heappush(self._order, (clock, device.network))
        self._waiting[device.network][not device.resumes].append(device)
        self._jobs += 1
        return True

    def pop(self) -> Device | None:
        if not self._order:
            return None
        self._now, network = heapq.heappop(self._order)
        resumed, full = self._waiting[network]
        device = (resumed or full).popleft()
        self._clocks[network] = self._now + device.cost
        if resumed or full:
            heapq.heappush(self._order, (self._clocks[network], network))
        else:
            del self._waiting[network]
        self._jobs -= 1
        return device

    def keeps(self, waited: float) -> bool:
        return waited <= PATIENCE


def simulate(queue: InOrder | Gate, devices: int, within: float, resumed: float, seed: int = 1) -> Outcome:
    """Until the whole fleet is connected, or ten minutes have passed."""
    chance = random.Random(seed)  # noqa: S311 - a model, no secret
    outcome = Outcome()
    arrivals: list[tuple[float, int, Device]] = []
    for number in range(devices):
        device = Device(chance.randrange(NETWORKS), chance.random() < resumed, chance.uniform(0, within))
        arrivals.append((device.due, number, device))
    heapq.heapify(arrivals)
    stranger, now, left = 0.0, 0.0, devices
    number = devices

    def again(device: Device, at: float) -> None:
        nonlocal number
        if device.network < 0:
            outcome.others.append(TIMEOUT)
            return
        number += 1
        pause = chance.uniform(0, min(BACKOFF[1], BACKOFF[0] * 2.0**device.tries))
        heapq.heappush(arrivals, (at + pause, number, device))

    while left and now < 600:
        while stranger <= now:
            number += 1
            heapq.heappush(arrivals, (stranger, number, Device(-number, resumes=False, due=stranger)))
            stranger += chance.expovariate(OTHERS)
        while arrivals and arrivals[0][0] <= now:
            at, _, device = heapq.heappop(arrivals)
            device.asked, device.tries = at, device.tries + 1
            outcome.tries += device.network >= 0
            if not queue.admit(device):
                now += RESET_COST
                outcome.resets += 1
                again(device, now)
        served = queue.pop()
        if served is None:
            now = min(stranger, arrivals[0][0] if arrivals else stranger)
            continue
        if not queue.keeps(now - served.asked):
            now += RESET_COST
            outcome.resets += 1
            again(served, now)
            continue
        now += served.cost
        if now - served.asked > TIMEOUT:
            outcome.wasted += served.cost
            again(served, served.asked + TIMEOUT)
        elif served.network < 0:
            outcome.others.append(now - served.asked)
        else:
            outcome.connected.append(now - served.due)
            left -= 1
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.gate_model", description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--within", type=float, default=1.0, help="seconds in which all of them notice")
    parser.add_argument("--resumed", type=float, default=0.0, help="share that has a ticket")
    options = parser.parse_args(arguments)
    title = f"{options.devices:,} devices within {options.within:g} s, {options.resumed:.0%} with tickets, one worker"
    table = Table(title=title)
    for column in ("", "half s", "99 % s", "all s", "tries", "wasted CPU s", "resets", "others P50 s", "others P99 s"):
        table.add_column(column, justify="right" if column else "left")
    for name, queue in (("in order", InOrder()), ("the gate", Gate())):
        found = simulate(queue, options.devices, options.within, options.resumed)
        took = sorted(found.connected)
        at = [
            f"{took[int(share * options.devices)]:.1f}" if len(took) > share * options.devices else "never"
            for share in (0.5, 0.99, 1 - 1 / options.devices)
        ]
        others = statistics.quantiles(found.others, n=100)
        figures = (f"{found.tries / options.devices:.2f}", f"{found.wasted:.1f}", f"{found.resets:,}")
        table.add_row(name, *at, *figures, f"{others[49]:.4f}", f"{others[98]:.4f}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
