"""A storm: new connections at a fixed rate, whether the server keeps up or not, on one core and on two.

1,000 connections a second, each with a full P-256 handshake, one GET and a close; latency from the moment the
connection was due to the end of the response. mitu runs with each of its schedulers; keep-alive requests on two cores
show what each costs when connections stay.
"""

from __future__ import annotations

import sys

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.results import Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import DEFAULT, Settings

RATE = 1000
COLUMNS = {"p50_ms": "P50 ms", "p95_ms": "P95 ms", "p99_ms": "P99 ms", "max_ms": "max ms", "cpu_us": "CPU µs"}
KEEP_ALIVE = {"cpu_us": "CPU µs", "per_second": "per second", "p50_ms": "P50 ms", "p99_ms": "P99 ms"}


def run(bench: Bench) -> None:
    """One worker beside the load generator, then two workers that share both cores with it."""
    certificate = bench.certificate("p256")
    with load.upstream(core=None) as (_, upstream):
        for workers, cores, core in ((1, SERVER_CORE, CLIENT_CORE), (2, None, None)):
            settings = Settings(certificate, upstream=upstream, broker=upstream, workers=workers, cores=cores)
            with bench.servers(settings) as servers:
                for server in servers:
                    load.connections(server.address(), ["--count", "200"], core=core)
                _storm(bench, servers, workers, core)
                if workers > 1:
                    _keep_alive(bench, servers, workers)


def _storm(bench: Bench, servers: list[Server], workers: int, core: str | None) -> None:
    plural = "s" if workers > 1 else ""
    title = f"{RATE:,} connections/s, {workers} worker{plural}: due → response"
    sheet = Sheet(f"storm-{workers}", title, "p99_ms", COLUMNS)
    bench.result.sheets.append(sheet)
    arguments = ["--rate", str(RATE), "--duration", str(bench.options.seconds)]

    def measure(server: Server) -> None:
        report, spent = bench.cost(server, lambda: load.connections(server.address(), arguments, core=core))
        latency = report["total_ms"]
        sheet.add(
            server.name,
            p50_ms=latency["p50"],
            p95_ms=latency["p95"],
            p99_ms=latency["p99"],
            max_ms=latency["max"],
            cpu_us=spent / report["completed"] / 1e3,
        )
        bench.log(f"storm on {workers}: {server.name} P99 {latency['p99']:.2f} ms")

    bench.alternate(servers, measure)


def _keep_alive(bench: Bench, servers: list[Server], workers: int) -> None:
    title = f"keep-alive /health, {workers} workers (wrk -t2 -c64): server CPU for a request"
    sheet = Sheet("keep-alive", title, "cpu_us", KEEP_ALIVE)
    bench.result.sheets.append(sheet)

    def measure(server: Server) -> None:
        url = f"https://{server.address()}/health"
        seconds = bench.options.seconds
        done, spent = bench.cost(server, lambda: load.wrk(url, threads=2, connections=64, seconds=seconds, core=None))
        sheet.add(
            server.name,
            cpu_us=spent / done.completed / 1e3,
            per_second=done.per_second,
            p50_ms=done.p50,
            p99_ms=done.p99,
        )
        bench.log(f"keep-alive: {server.name} {spent / done.completed / 1e3:.1f} µs")

    bench.alternate(servers, measure)


BENCHMARK = Benchmark(
    "storm", __doc__, run, Defaults(seconds=10, quick_rounds=1, servers=("mitu", "mitu-stealing", *DEFAULT[1:]))
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
