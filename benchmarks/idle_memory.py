"""Memory for one idle connection, by protocol: the server's resident memory, and the kernel's beside it.

Connections are opened, make one exchange each (a GET; for MQTT a CONNECT that is relayed to mosquitto), and are held.
The figure is the slope between a first batch, which pays for what a server allocates once, and a second. Each batch is
left alone for `--seconds` first, by when buffers that a server gives back are given back. The kernel's memory is the
whole machine's, `SUnreclaim` of /proc/meminfo and TCP's pages of /proc/net/sockstat: other work shows in it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from benchmarks.harness import load, process
from benchmarks.harness.bench import CLIENT_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.load import LoadError
from benchmarks.harness.paths import find_program
from benchmarks.harness.results import Goal, Sheet
from benchmarks.harness.server import ServerError
from benchmarks.peers import Peer, Settings

COLUMNS = {"user_kib": "server KiB", "kernel_kib": "kernel KiB, both ends", "base_mib": "without connections MiB"}
FIRST = 500


@dataclass(frozen=True)
class Case:
    """One table. `port`: the server's, by its name; `goal`: KiB of the server that mitu may take."""

    alpn: str
    title: str
    port: str
    goal: float


CASES = (
    Case("http/1.1", "HTTP/1.1", "https", 8),
    Case("h2", "HTTP/2", "https", 12),
    Case("mqtt", "MQTT, relayed, both sides", "mqtt", 8),
)


def run(bench: Bench) -> None:
    """Every protocol; each server on its own, started anew for each figure."""
    with load.upstream(core=CLIENT_CORE) as (_, upstream):
        for case in CASES:
            if not bench.wants(case.alpn, quick=True):
                continue
            if case.alpn != "mqtt":
                _case(bench, case, upstream, upstream)
            elif find_program("mosquitto") is None:
                bench.result.note("MQTT was not measured: install the Debian package mosquitto")
            else:
                with load.broker(bench.folder, core=CLIENT_CORE) as broker:
                    _case(bench, case, upstream, broker)


def _second(bench: Bench) -> int:
    """Connections in the second batch; MQTT takes two descriptors of the server's 20,000 for each."""
    return bench.options.connections or (1000 if bench.options.quick else 4000)


def _case(bench: Bench, case: Case, upstream: str, broker: str) -> None:
    title = f"idle connection, {case.title}: memory, {_second(bench):,} connections"
    sheet = Sheet(case.alpn, title, "user_kib", COLUMNS, goals=[Goal("user_kib", case.goal)])
    bench.result.sheets.append(sheet)
    settings = Settings(bench.certificate("p256"), upstream=upstream, broker=broker)
    left = dict(bench.peers)
    for name, peer in bench.peers.items():
        if case.port == "mqtt" and not peer.mqtt:
            bench.result.note(f"{name} as configured here does not relay MQTT over TLS")
            del left[name]
    for number in range(bench.options.rounds):
        for name, peer in list(left.items()):
            try:
                _measure(bench, case, sheet, peer, settings)
            except ServerError as error:
                bench.result.missing[name] = f"it did not run: {error}"
                del left[name], bench.peers[name]
            except LoadError as error:
                bench.result.note(f"{name} was left out of {case.alpn} after round {number}: {error}")
                del left[name]


def _measure(bench: Bench, case: Case, sheet: Sheet, peer: Peer, settings: Settings) -> None:
    with peer.start(settings) as server:
        target = server.address(case.port)
        arguments = ["--alpn", case.alpn]
        base = server.resident()
        with load.held(target, arguments, FIRST, core=CLIENT_CORE):
            time.sleep(bench.options.seconds)
            user, kernel = server.resident(), process.kernel_memory()
            with load.held(target, arguments, _second(bench), core=CLIENT_CORE):
                time.sleep(bench.options.seconds)
                user, kernel = server.resident() - user, process.kernel_memory() - kernel
        per_connection = user / _second(bench) / 1024
        sheet.add(
            peer.name,
            user_kib=per_connection,
            kernel_kib=kernel / _second(bench) / 1024,
            base_mib=base / 1024 / 1024,
        )
        bench.log(f"{case.alpn}: {peer.name} {per_connection:.1f} KiB")


BENCHMARK = Benchmark("idle_memory", __doc__, run, Defaults(rounds=3, seconds=2.0, quick_rounds=1, quick_seconds=0.7))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
