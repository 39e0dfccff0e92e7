"""Server CPU for one keep-alive request: proxied to a local upstream and answered at once, over HTTP/1.1 and HTTP/2.

Then the article's own commands, as they stand in it, with the throughput and latency that wrk prints. One worker on
one core; the load generator and the upstream share the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.load import Requests, TimedRequests
from benchmarks.harness.results import Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import Settings

COLUMNS = {"cpu_us": "CPU µs", "per_second": "per second"}
LATENCIES = {"p50_ms": "P50 ms", "p99_ms": "P99 ms"}

#: Seconds that each of the article's commands runs for, outside the quick mode.
ARTICLE_SECONDS = 30.0


@dataclass(frozen=True)
class Case:
    """One table. `threads` is wrk's; `article`: one of the article's own commands."""

    name: str
    title: str
    path: str
    protocol: Literal["h1", "h2"]
    threads: int = 1
    connections: int = 64
    article: bool = False


CASES = (
    Case("proxied-h1", "proxied GET over HTTP/1.1 (wrk -t1 -c64)", "/api/sync", "h1"),
    Case("proxied-h2", "proxied GET over HTTP/2 (h2load -c16 -m10)", "/api/sync", "h2", connections=16),
    Case("health-h1", "fixed response over HTTP/1.1 (wrk -t1 -c64)", "/health", "h1"),
    Case("health-h2", "fixed response over HTTP/2 (h2load -c16 -m10)", "/health", "h2", connections=16),
    Case("article-sync", "wrk -t4 -c100 --latency /api/sync", "/api/sync", "h1", 4, 100, article=True),
    Case("article-health", "wrk -t4 -c100 --latency /health", "/health", "h1", 4, 100, article=True),
    Case("article-health-400", "wrk -t4 -c400 --latency /health", "/health", "h1", 4, 400, article=True),
)
QUICK = ("proxied-h1", "proxied-h2", "article-health-400")


def run(bench: Bench) -> None:
    """Every case, on the same servers."""
    with load.upstream(core=CLIENT_CORE) as (_, upstream):
        settings = Settings(certificate=bench.certificate("p256"), upstream=upstream, broker=upstream)
        with bench.servers(settings) as servers:
            for server in servers:
                # The first requests pay for what a server does once.
                warm = ["--path", "/api/sync", "--count", "200"]
                load.connections(server.address(), warm, core=CLIENT_CORE)
            for case in CASES:
                if bench.wants(case.name, quick=case.name in QUICK):
                    _case(bench, case, servers)


def _case(bench: Bench, case: Case, servers: list[Server]) -> None:
    columns = COLUMNS | (LATENCIES if case.article else {})
    sheet = Sheet(case.name, f"{case.title}: server CPU for a request, one core", "cpu_us", columns)
    bench.result.sheets.append(sheet)

    def measure(server: Server) -> None:
        done, spent = bench.cost(server, _load(bench, case, f"https://{server.address()}{case.path}"))
        values = {"cpu_us": spent / done.completed / 1e3, "per_second": done.per_second}
        if case.article and isinstance(done, TimedRequests):
            values |= {"p50_ms": done.p50, "p99_ms": done.p99}
        sheet.add(server.name, **values)
        bench.log(f"{case.name}: {server.name} {values['cpu_us']:.1f} µs")

    bench.alternate(servers, measure, rounds=1 if case.article else None)


def _load(bench: Bench, case: Case, url: str) -> Callable[[], Requests]:
    seconds = bench.options.seconds
    if case.article:
        seconds = max(2.0, seconds) if bench.options.quick else ARTICLE_SECONDS
    if case.protocol == "h2":
        return lambda: load.h2load(url, connections=case.connections, streams=10, seconds=seconds, core=CLIENT_CORE)
    return lambda: load.wrk(url, threads=case.threads, connections=case.connections, seconds=seconds, core=CLIENT_CORE)


BENCHMARK = Benchmark("requests", __doc__, run, Defaults(quick_rounds=1))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
