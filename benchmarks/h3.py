"""Server CPU over HTTP/3: for a request, answered at once and proxied; for a new connection; for bulk.

Requests are oha's, for every server and for mitu's own HTTP/2 beside it; connections are those of `mitu-load`, one
request on each. One worker on one core; the load generator and the upstream share the other. The floor is quinn and
the h3 library with nothing around them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.certificates import Certificate
from benchmarks.harness.load import Requests
from benchmarks.harness.results import SUBJECT, Goal, Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import Settings

COLUMNS = {"cpu_us": "CPU µs", "per_second": "per second"}
BULK_COLUMNS = {"mib_per_cpu_second": "MiB per CPU-second", "mib_per_second": "MiB per second"}
FLOOR = "floor: quinn and h3"
#: mitu's own figures over TCP, in rows of their own.
OVER_H2, OVER_TLS = "mitu over HTTP/2", "mitu over TLS"
OVER_TCP = frozenset({OVER_H2, OVER_TLS})

CONNECTIONS, STREAMS = 20, 10
BULK_MIB = 8
MIB = 1 << 20


def run(bench: Bench) -> None:
    """Every case: the small responses on one set of servers, bulk on another."""
    certificate = bench.certificate("p256")
    with load.upstream(core=CLIENT_CORE) as (_, upstream):
        settings = Settings(certificate=certificate, upstream=upstream, broker=upstream, h3=True)
        with bench.servers(settings) as servers:
            if bench.wants("health", quick=True):
                _health(bench, servers, certificate)
            if bench.wants("proxied", quick=True):
                _proxied(bench, servers)
            if bench.wants("connections", quick=True):
                _connections(bench, servers)
    if bench.wants("bulk", quick=False):
        with load.upstream(core=CLIENT_CORE, body=BULK_MIB * MIB) as (_, upstream):
            settings = Settings(certificate=certificate, upstream=upstream, broker=upstream, h3=True)
            with bench.servers(settings) as servers:
                _bulk(bench, servers)


def _health(bench: Bench, servers: list[Server], certificate: Certificate) -> None:
    title = f"fixed response over HTTP/3 (oha -c {CONNECTIONS} -p {STREAMS}): server CPU for a request, one core"
    goals = [Goal("cpu_us", 8), Goal("cpu_us", 0.3, "envoy")]
    sheet = Sheet("health", title, "cpu_us", COLUMNS, goals=goals)
    with load.h3_floor(certificate, core=SERVER_CORE) as (pid, address):
        floor = Server(FLOOR, pid, {"https": int(address.rpartition(":")[2])}, Path(os.devnull))
        _requests(bench, sheet, [floor, *servers], "/health")


def _proxied(bench: Bench, servers: list[Server]) -> None:
    title = f"proxied GET over HTTP/3 (oha -c {CONNECTIONS} -p {STREAMS}): server CPU for a request, one core"
    goals = [Goal("cpu_us", 1.3, OVER_H2)]
    sheet = Sheet("proxied", title, "cpu_us", COLUMNS, variants=OVER_TCP, goals=goals)
    _requests(bench, sheet, [*servers, *_renamed(servers, OVER_H2)], "/api/sync")


def _requests(bench: Bench, sheet: Sheet, servers: list[Server], path: str) -> None:
    bench.result.sheets.append(sheet)

    def measure(server: Server) -> None:
        done, spent = bench.cost(server, _oha(bench, server, path, CONNECTIONS, STREAMS))
        sheet.add(server.name, cpu_us=spent / done.completed / 1e3, per_second=done.per_second)
        bench.log(f"{sheet.name}: {server.name} {spent / done.completed / 1e3:.1f} µs")

    bench.alternate(servers, measure)


def _connections(bench: Bench, servers: list[Server]) -> None:
    title = "new HTTP/3 connection, P-256, GET, close: server CPU, one core"
    goals = [Goal("cpu_us", 1.5, OVER_TLS)]
    sheet = Sheet("connections", title, "cpu_us", COLUMNS, variants=OVER_TCP, goals=goals)
    bench.result.sheets.append(sheet)

    def measure(server: Server) -> None:
        arguments = ["--concurrency", "16", "--alpn", "http/1.1" if server.name == OVER_TLS else "h3"]
        timed = [*arguments, "--duration", str(bench.options.seconds)]
        load.connections(server.address(), [*arguments, "--count", "200"], core=CLIENT_CORE)
        report, spent = bench.cost(server, lambda: load.connections(server.address(), timed, core=CLIENT_CORE))
        cpu_us = spent / report["completed"] / 1e3
        sheet.add(server.name, cpu_us=cpu_us, per_second=report["per_second"])
        bench.log(f"{sheet.name}: {server.name} {cpu_us:.1f} µs")

    bench.alternate([*servers, *_renamed(servers, OVER_TLS)], measure)


def _bulk(bench: Bench, servers: list[Server]) -> None:
    title = f"proxied {BULK_MIB} MiB over HTTP/3 (oha -c 4 -p 1): what a second of server CPU carries"
    goals = [Goal("mib_per_cpu_second", 2, "caddy", at_least=True)]
    sheet = Sheet("bulk", title, "mib_per_cpu_second", BULK_COLUMNS, goals=goals)
    bench.result.sheets.append(sheet)

    def measure(server: Server) -> None:
        done, spent = bench.cost(server, _oha(bench, server, "/bulk", 4, 1))
        carried = done.completed * BULK_MIB
        sheet.add(server.name, mib_per_cpu_second=carried / (spent / 1e9), mib_per_second=done.per_second * BULK_MIB)
        bench.log(f"{sheet.name}: {server.name} {carried / (spent / 1e9):.0f} MiB per CPU-second")

    bench.alternate(servers, measure)


def _oha(bench: Bench, server: Server, path: str, connections: int, streams: int) -> Callable[[], Requests]:
    url = f"https://localhost:{server.ports['https']}{path}"
    version = "2" if server.name == OVER_H2 else "3"
    seconds = bench.options.seconds
    return lambda: load.oha(
        url, version=version, connections=connections, streams=streams, seconds=seconds, core=CLIENT_CORE
    )


def _renamed(servers: list[Server], name: str) -> list[Server]:
    """mitu once more, for what it does over TCP."""
    return [Server(name, server.pid, server.ports, server.log) for server in servers if server.name == SUBJECT]


BENCHMARK = Benchmark("h3", __doc__, run, Defaults(servers=("mitu", "envoy", "caddy")))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
