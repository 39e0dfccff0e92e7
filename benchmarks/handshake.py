"""Server CPU for one full TLS 1.3 handshake with a GET and a close, by key type; resumed; and the floor under both.

X25519 and TLS_AES_128_GCM_SHA256, but for the tables that show what X25519MLKEM768 and SHA-384 cost instead (ADR
0005). One worker on one core, the load generator on the other. The floor is what the same exchange costs over plain
TCP, plus the public-key operations timed alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import load
from benchmarks.harness.bench import CLIENT_CORE, SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.certificates import KeyType
from benchmarks.harness.load import LoadError
from benchmarks.harness.results import Goal, Sheet
from benchmarks.harness.server import Server
from benchmarks.peers import DEFAULT, HYBRID, Peer, Settings

COLUMNS = {
    "cpu_us": "CPU µs",
    "per_second": "per second",
    "handshake_p50_ms": "handshake P50 ms",
    "handshake_p99_ms": "P99 ms",
    "resumed": "resumed",
}
CONCURRENCY = 16
FLOOR = "floor: with the key operations"


@dataclass(frozen=True)
class Case:
    """One table. `operations`: what of `mitu-load crypto` its handshake cannot do without.

    `goals`: the largest share of each row's CPU that mitu may take.
    """

    name: str
    title: str
    key_type: KeyType
    resumed: bool
    operations: tuple[str, ...]
    suite: str = "AES_128_GCM_SHA256"
    group: str = "X25519"
    goals: Mapping[str, float] = field(default_factory=dict)


CASES = (
    Case(
        "p256",
        "full handshake, P-256",
        "p256",
        False,
        ("x25519", "ecdsa_p256_sign"),
        goals={FLOOR: 1.20, "go": 0.40, "nginx": 0.37, "envoy": 0.52},
    ),
    Case(
        "p256-resumed",
        "resumed handshake, P-256",
        "p256",
        True,
        ("x25519",),
        goals={FLOOR: 1.40, "nginx": 0.38, "envoy": 0.55},
    ),
    Case(
        "p256-pq",
        "full handshake, P-256, X25519MLKEM768",
        "p256",
        False,
        ("x25519_ml_kem_768", "ecdsa_p256_sign"),
        group=HYBRID,
    ),
    Case(
        "p256-sha384",
        "full handshake, P-256, AES-256-GCM-SHA384",
        "p256",
        False,
        ("x25519", "ecdsa_p256_sign"),
        suite="AES_256_GCM_SHA384",
    ),
    Case(
        "p384",
        "full handshake, P-384",
        "p384",
        False,
        ("x25519", "ecdsa_p384_sign"),
        goals={FLOOR: 1.15, "go": 0.40, "nginx": 0.18},
    ),
    Case(
        "rsa2048",
        "full handshake, RSA-2048",
        "rsa2048",
        False,
        ("x25519", "rsa_2048_sign"),
        goals={FLOOR: 1.08, "go": 0.36, "nginx": 0.72},
    ),
)
QUICK = ("p256", "p256-resumed")


def run(bench: Bench) -> None:
    """Every case, one after the other."""
    with load.upstream(core=SERVER_CORE) as (pid, address):
        plain = Server("plain TCP", pid, {"https": int(address.rpartition(":")[2])}, bench.folder)
        for case in CASES:
            if bench.wants(case.name, quick=case.name in QUICK):
                _case(bench, case, plain)


def _case(bench: Bench, case: Case, plain: Server) -> None:
    goals = [Goal("cpu_us", at_most, to) for to, at_most in case.goals.items()]
    sheet = Sheet(case.name, f"{case.title}, GET, close: server CPU, one core", "cpu_us", COLUMNS, goals=goals)
    bench.result.sheets.append(sheet)
    operations = load.mitu_load(["crypto"], core=SERVER_CORE)["microseconds"]
    crypto_us = sum(operations[name] for name in case.operations)

    def measure(server: Server) -> None:
        is_floor = server is plain
        arguments = ["--concurrency", str(CONCURRENCY), *(["--resume"] if case.resumed else [])]
        arguments += ["--suites", f"TLS_{case.suite}", "--groups", case.group] if not is_floor else []
        # The first connections pay for what a server does once.
        load.connections(server.address(), [*arguments, "--count", "200"], core=CLIENT_CORE, plain=is_floor)
        timed = [*arguments, "--duration", str(bench.options.seconds)]
        report, spent = bench.cost(
            server, lambda: load.connections(server.address(), timed, core=CLIENT_CORE, plain=is_floor)
        )
        cpu_us = spent / report["completed"] / 1e3
        rates = {"per_second": report["per_second"]}
        if is_floor:
            sheet.add("plain TCP exchange", cpu_us=cpu_us, **rates)
            sheet.add(FLOOR, cpu_us=cpu_us + crypto_us)
            return
        _check(case, server, report)
        sheet.add(
            server.name,
            cpu_us=cpu_us,
            handshake_p50_ms=report["handshake_ms"]["p50"],
            handshake_p99_ms=report["handshake_ms"]["p99"],
            resumed=report["resumed"] / report["completed"],
            **rates,
        )
        bench.log(f"{case.name}: {server.name} {cpu_us:.1f} µs")

    address = plain.address()
    settings = Settings(certificate=bench.certificate(case.key_type), upstream=address, broker=address)

    def can(peer: Peer) -> bool:
        lack = peer.lacks_hybrid() if case.group == HYBRID else None
        if lack is not None:
            bench.result.note(f"{case.name}: {peer.name} has no {HYBRID}: {lack}")
        return lack is None

    with bench.servers(settings, only=can) as servers:
        bench.alternate([plain, *servers], measure)


def _check(case: Case, server: Server, report: dict[str, Any]) -> None:
    """Every server must have done the same work, or its figure means nothing."""
    expected = f"TLSv1_3 TLS13_{case.suite} {case.group} http/1.1"
    if set(report["negotiated"]) != {expected}:
        raise LoadError(f"{server.name} negotiated {report['negotiated']}, not {expected}")
    # A client has no ticket for its first connection.
    wanted = report["completed"] - CONCURRENCY if case.resumed else 0
    if report["resumed"] < wanted or (report["resumed"] and not case.resumed):
        raise LoadError(f"{server.name} resumed {report['resumed']} of {report['completed']} sessions")


BENCHMARK = Benchmark("handshake", __doc__, run, Defaults(servers=("mitu", "mitu-boringssl", *DEFAULT[1:])))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
