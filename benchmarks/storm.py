"""A storm: new connections at a fixed rate, whether the server keeps up or not, on one core and on two.

1,000 connections a second, each with a full P-256 handshake, one GET and a close; latency from the moment the
connection was due to the end of the response. mitu runs with each of its schedulers; keep-alive requests on two cores
show what each costs when connections stay.

A flood: four addresses connect as fast as the server lets them, beside 500 honest connections a second from many
addresses, a fifth of which resume sessions, and ten connections that are open already. "resumed" is the share of that
fifth that was answered and did resume; the first ones, who have no ticket yet, count against it, and so do those for
whom none of the client's eight is left, because that many are on their way. "after" is what the
open connections wait from the second after the flood on, as a multiple of what they wait before it ("quiet").
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.results import Goal, Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import DEFAULT, Settings

RATE = 1000
COLUMNS = {"p50_ms": "P50 ms", "p95_ms": "P95 ms", "p99_ms": "P99 ms", "max_ms": "max ms", "cpu_us": "CPU µs"}
FLOOD = {
    "established_p99_ms": "established P99 ms",
    "quiet_p99_ms": "quiet",
    "honest_p99_ms": "honest P99 ms",
    "honest_failed": "failed",
    "resumed": "resumed %",
    "after": "after ÷ quiet",
    "flood_per_second": "flood served/s",
}
FLOODING = ("--concurrency", "200", "--sources", "127.0.1.0/30")
HONEST = ("--rate", "400", "--sources", "127.2.0.0/16")
RESUMING = ("--rate", "100", "--sources", "127.3.0.0/16", "--resume")
#: Seconds until it is to be quiet again.
CALM = 1.0
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
                if bench.wants("storm", quick=True):
                    _storm(bench, servers, workers, core)
                if workers == 1 and bench.wants("flood", quick=True):
                    _flood(bench, servers, core)
                if workers > 1 and bench.wants("keep-alive", quick=True):
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


def _flood(bench: Bench, servers: list[Server], core: str | None) -> None:
    title = "200 connections at once from four addresses, 1 worker"
    goals = (
        Goal("established_p99_ms", 0.6, "haproxy"),
        Goal("honest_p99_ms", 0.15, "haproxy"),
        Goal("resumed", 99, at_least=True),
        Goal("flood_per_second", 2.2, "haproxy", at_least=True),
        # As quiet as before, as far as a percentile of a second tells.
        Goal("after", 1.5),
    )
    sheet = Sheet("flood", title, "established_p99_ms", FLOOD, goals=goals)
    bench.result.sheets.append(sheet)
    seconds = bench.options.seconds

    def measure(server: Server) -> None:
        def start(pool: ThreadPoolExecutor, command: str, *arguments: str, **options: bool) -> Future[dict[str, Any]]:
            words = [command, server.address(), *arguments]
            return pool.submit(load.mitu_load, words, core=core, **options)

        with ThreadPoolExecutor() as pool:
            quiet = start(pool, "pulse", "--duration", str(min(2.0, seconds))).result()
            # Open before the flood begins, which is a hundredth of what is measured.
            established = start(pool, "pulse", "--duration", str(seconds))
            time.sleep(seconds / 100)
            # The flood gets what the others leave of the core: they are to measure the server, not each other.
            flood = start(pool, "handshake", "--duration", str(seconds), *FLOODING, background=True)
            honest = start(pool, "handshake", "--duration", str(seconds), *HONEST)
            resuming = start(pool, "handshake", "--duration", str(seconds), *RESUMING).result()
            flood.result()
            time.sleep(CALM)
            after = start(pool, "pulse", "--duration", str(min(2.0, seconds))).result()
        sheet.add(
            server.name,
            established_p99_ms=established.result()["total_ms"]["p99"],
            quiet_p99_ms=quiet["total_ms"]["p99"],
            honest_p99_ms=honest.result()["total_ms"]["p99"],
            honest_failed=honest.result()["failed"],
            resumed=100 * resuming["resumed"] / (resuming["completed"] + resuming["failed"]),
            after=after["total_ms"]["p99"] / quiet["total_ms"]["p99"],
            flood_per_second=flood.result()["per_second"],
        )
        bench.log(f"flood: {server.name} established P99 {established.result()['total_ms']['p99']:.2f} ms")

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
