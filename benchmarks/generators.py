"""`mitu bench` beside wrk and h2load, on the same server: whether they see the same, and what each of them costs.

The server is mitu with one worker on one core; the generators take turns on the other. "client CPU" is all that the
generator's process took, its start included, for each connection or request: the fewer, the more a core makes.
"server CPU" is to agree, and the latencies of requests. Of new connections the latencies are left out: wrk's begin
when it is connected, and h2load makes no connections in place of closed ones, so that it opens all of them at once.
wrk would resume sessions, so the server gives no tickets.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.load import Requests, TimedRequests
from benchmarks.harness.results import SUBJECT, Goal, Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import Settings

CONNECTIONS = 16
AT_ONCE = 2000
COLUMNS = {"client_us": "client CPU µs", "server_us": "server CPU µs", "per_second": "per second"}
LATENCIES = {"p50_ms": "P50 ms", "p99_ms": "P99 ms"}


@dataclass(frozen=True)
class Generator:
    """One load generator. `load`: puts its load on the server, to its end."""

    name: str
    load: Callable[[], Requests]


def run(bench: Bench) -> None:
    """Connections, then requests on connections that stay open."""
    with load.upstream(core=CLIENT_CORE) as (_, upstream):
        settings = Settings(certificate=bench.certificate("p256"), upstream=upstream, broker=upstream, tickets=0)
        with bench.servers(settings) as servers:
            for server in servers:
                # The first connections pay for what a server does once.
                load.connections(server.address(), ["--count", "200"], core=CLIENT_CORE)
                if bench.wants("connections", quick=True):
                    _connections(bench, server)
                if bench.wants("requests-h1", quick=False):
                    _requests_h1(bench, server)
                if bench.wants("requests-h2", quick=False):
                    _requests_h2(bench, server)


def _connections(bench: Bench, server: Server) -> None:
    url = f"https://{server.address()}/health"
    title = f"new connections with a full handshake and one GET over HTTP/1.1, {CONNECTIONS} at once"
    goals = [Goal("client_us", 1, "wrk"), Goal("client_us", 1, "h2load")]
    generators = [
        Generator(SUBJECT, lambda: _bench(bench, "handshake", url, "http/1.1")),
        Generator("wrk", lambda: _wrk(bench, url, close=True)),
        Generator("h2load", lambda: load.h2load_once(url, connections=AT_ONCE, core=CLIENT_CORE)),
    ]
    _compare(bench, server, Sheet("connections", title, "client_us", COLUMNS, goals=goals), generators)


def _requests_h1(bench: Bench, server: Server) -> None:
    url = f"https://{server.address()}/health"
    title = f"requests over HTTP/1.1 on {CONNECTIONS} connections, one at a time on each"
    generators = [
        Generator(SUBJECT, lambda: _bench(bench, "requests", url, "http/1.1")),
        Generator("wrk", lambda: _wrk(bench, url, close=False)),
    ]
    _compare(bench, server, Sheet("requests-h1", title, "client_us", COLUMNS | LATENCIES), generators)


def _requests_h2(bench: Bench, server: Server) -> None:
    url, seconds = f"https://{server.address()}/health", bench.options.seconds
    title = f"requests over HTTP/2 on {CONNECTIONS} connections, one at a time on each"

    def h2load() -> Requests:
        return load.h2load(url, connections=CONNECTIONS, streams=1, seconds=seconds, core=CLIENT_CORE)

    generators = [Generator(SUBJECT, lambda: _bench(bench, "requests", url, "h2")), Generator("h2load", h2load)]
    _compare(bench, server, Sheet("requests-h2", title, "client_us", COLUMNS | LATENCIES), generators)


def _bench(bench: Bench, command: str, url: str, alpn: str) -> Requests:
    arguments = [command, url, "--connections", str(CONNECTIONS), "--alpn", alpn]
    return load.mitu_bench(arguments, core=CLIENT_CORE, seconds=bench.options.seconds)


def _wrk(bench: Bench, url: str, *, close: bool) -> Requests:
    seconds = bench.options.seconds
    return load.wrk(url, threads=1, connections=CONNECTIONS, seconds=seconds, core=CLIENT_CORE, close=close)


def _compare(bench: Bench, server: Server, sheet: Sheet, generators: Sequence[Generator]) -> None:
    bench.result.sheets.append(sheet)

    def measure(generator: Generator) -> None:
        before = _children()
        done, server_ns = bench.cost(server, generator.load)
        figures = {
            "client_us": (_children() - before) * 1e6 / done.completed,
            "server_us": server_ns / done.completed / 1e3,
            "per_second": done.per_second,
        }
        if isinstance(done, TimedRequests):
            figures |= {"p50_ms": done.p50, "p99_ms": done.p99}
        sheet.add(generator.name, **{column: figures[column] for column in figures.keys() & sheet.columns})
        bench.log(f"{sheet.name}: {generator.name} {figures['client_us']:.1f} µs of the client")

    bench.alternate(generators, measure)


def _children() -> float:
    """Seconds of CPU that ended children of this process have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


BENCHMARK = Benchmark("generators", __doc__, run, Defaults(seconds=10, quick_rounds=1, servers=("mitu",)))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
