"""Contention: what a storm of new connections does to latency, and how much of it is waiting for locks.

1,000 and 5,000 connections a second from an open-loop generator, each with a full P-256 handshake, one GET and a
close; latency from the moment the connection was due to the end of the response. Two workers, which share both cores
with the load generator. Connections that fail have no latency; they are counted.

400 clients that connect as fast as the server lets them, for the handshake alone; and a quarter more connections a
second than Go served then, which is the article's storm on whatever machine this is: what Go cannot serve waits.

"blocked" is the time that threads (for Go: goroutines) waited for locks, as a share of that and the CPU time together;
`benchmarks/harness/locks.py` says how it is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import load, locks
from benchmarks.harness.bench import Bench, Benchmark, Defaults
from benchmarks.harness.results import Goal, Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import Settings

WORKERS = 2
RATES = (1000, 5000)
CONCURRENCY = 400
#: The rate that saturates Go, as a share of what it serves to that many clients.
SATURATING = 1.25
COLUMNS = {
    "p50_ms": "P50 ms",
    "p95_ms": "P95 ms",
    "p99_ms": "P99 ms",
    "p999_ms": "P99.9 ms",
    "blocked": "blocked %",
    "failed": "failed %",
    "per_second": "per second",
}
BLOCKED = Goal("blocked", 1.0)
AS_IN_THE_ARTICLE = Goal("p95_ms", 0.13, "go")


def run(bench: Bench) -> None:
    """Each rate, then as many as the server takes."""
    with load.upstream(core=None) as (_, upstream):
        settings = Settings(bench.certificate("p256"), upstream=upstream, broker=upstream, workers=WORKERS, cores=None)
        with bench.servers(settings) as servers:
            for server in servers:
                # The first connections pay for what a server does once.
                load.connections(server.address(), ["--count", "200"], core=None)
            for rate in RATES:
                if bench.wants(f"rate-{rate}", quick=True):
                    _storm(bench, servers, f"rate-{rate}", rate, [BLOCKED])
            if bench.wants("clients", quick=True):
                served = _clients(bench, servers)
                if "go" in served:
                    rate = round(SATURATING * served["go"])
                    _storm(bench, servers, "saturated", rate, [AS_IN_THE_ARTICLE, BLOCKED])


def _storm(bench: Bench, servers: Sequence[Server], name: str, rate: int, goals: Sequence[Goal]) -> None:
    title = f"{rate:,} connections/s, {WORKERS} workers: due → response"
    _measured(bench, servers, Sheet(name, title, "p95_ms", COLUMNS, goals=goals), "total_ms", "--rate", rate)


def _clients(bench: Bench, servers: Sequence[Server]) -> dict[str, float]:
    """Returns what each server served per second."""
    title = f"{CONCURRENCY} clients, {WORKERS} workers: the handshake alone"
    sheet = Sheet("clients", title, "p99_ms", COLUMNS, goals=[Goal("p99_ms", 0.43, "go"), BLOCKED])
    _measured(bench, servers, sheet, "handshake_ms", "--concurrency", CONCURRENCY)
    return {name: row["per_second"].median for name, row in sheet.rows.items()}


def _measured(bench: Bench, servers: Sequence[Server], sheet: Sheet, latency: str, option: str, value: int) -> None:
    bench.result.sheets.append(sheet)
    arguments = ["handshake", "", option, str(value), "--duration", str(bench.options.seconds)]

    def measure(server: Server) -> None:
        def work() -> dict[str, Any]:
            arguments[1] = server.address()
            return load.mitu_load(arguments, core=None)

        before = server.cpu()
        report, waited = locks.waited(server, work)
        cpu = server.cpu().since(before) / 1e9
        times, ended = report[latency], report["completed"] + report["failed"]
        sheet.add(
            server.name,
            p50_ms=times["p50"],
            p95_ms=times["p95"],
            p99_ms=times["p99"],
            p999_ms=times["p999"],
            blocked=100 * waited / (waited + cpu),
            failed=100 * report["failed"] / ended,
            per_second=report["per_second"],
        )
        bench.log(f"{sheet.name}: {server.name} P95 {times['p95']:.2f} ms")

    bench.alternate(servers, measure)


BENCHMARK = Benchmark(
    "contention", __doc__, run, Defaults(seconds=10, quick_rounds=1, servers=("mitu", "nginx", "go"))
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
