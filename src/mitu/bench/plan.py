"""What to do, as the data plane's load generator wants it told: `crates/mitu-load/src/bench/plan.rs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitu.bench import BenchError, WantedError
from mitu.bench.target import Target
from mitu.config.types import ip_address

DEFAULT_ALPN = "h2,http/1.1"
STORM_SOURCES = "127.16.0.0/12"
"""A million addresses of this machine: a storm's devices have one each, and no server takes them for one client."""

DEFAULTS = {
    "resumed": "0%",
    "ALPN": DEFAULT_ALPN,
    "TLS": "1.2, 1.3",
    "groups": "all",
    "suites": "all",
    "round trip": "the network's",
    "timeout": "10s",
    "source addresses": "one",
}
"""Settings that need not be told of a run that has them."""

_KEPT_FILES = 100


@dataclass(frozen=True, slots=True)
class Clients:
    """Who connects, and how."""

    alpn: tuple[tuple[tuple[str, ...], int], ...] = ((("h2", "http/1.1"), 1),)
    """ALPN lists with their weights; an empty list: no ALPN."""
    versions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    resumed: float = 0.0
    verify: bool = False
    authority: str | None = None
    """PEM that certificates are verified with; None: the system's store."""
    server_name: str | None = None
    round_trip: float = 0.0
    """Seconds."""
    sources: str | None = None
    timeout: float = 10.0
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """No run is without them. `seconds`: nothing begins later; `count`: connections, requests or devices."""

    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class Work:
    """`form`: the plan's own; `told`: what it is, for people and for comparing."""

    command: str
    form: Mapping[str, Any]
    bounds: Bounds
    told: Mapping[str, str] = field(default_factory=dict)


def closed(connections: int) -> dict[str, Any]:
    return {"closed": {"connections": connections}}


def open_loop(first: float, last: float, arrivals: str) -> dict[str, Any]:
    return {"open": {"from": first, "to": last, "arrivals": arrivals}}


def alpn_lists(given: list[str]) -> tuple[tuple[tuple[str, ...], int], ...]:
    """`h2,http/1.1` or, several times, `h2=7`, `mqtt=3`; `none` offers nothing. WantedError otherwise."""
    lists = []
    for text in given:
        names, equals, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        if equals and not (weight.isascii() and weight.isdigit() and 0 < int(weight) <= 1_000_000):
            raise WantedError(f"--alpn: '{weight}' is not a weight; write h2=7 and mqtt=3 for seven and three of ten")
        protocols = () if names == "none" else tuple(name.strip() for name in names.split(","))
        if any(not 0 < len(name.encode()) <= 255 for name in protocols):
            raise WantedError(f"--alpn: '{text}' has an empty name; write h2,http/1.1, or none for no ALPN")
        lists.append((protocols, int(weight)))
    return tuple(lists)


def read_authority(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not PEM"
        raise BenchError(f"cannot read {file}: {reason.lower()}") from error


def as_json(to: Target, clients: Clients, work: Work, files: int | None) -> str:
    """The plan. `files`: how many this process may have open; None: any number."""
    trust: Any = "anybody"
    if clients.verify:
        trust = "system" if clients.authority is None else {"pem": clients.authority}
    tls = {
        "offer": {
            "versions": clients.versions,
            "suites": clients.suites,
            "groups": clients.groups,
            "trust": trust,
        },
        "alpn": [{"names": names, "weight": weight} for names, weight in clients.alpn],
        "resumed": clients.resumed,
    }
    limit = 1_000_000 if files is None else max(1, files - _KEPT_FILES)
    return json.dumps(
        {
            "address": to.address,
            "host": clients.server_name or to.host,
            "path": to.path,
            "tls": tls if to.tls else None,
            "protocol": "mqtt" if to.scheme == "mqtts" else "http1",
            "work": work.form,
            "seconds": work.bounds.seconds,
            "count": work.bounds.count,
            "timeout": clients.timeout,
            "round_trip_ms": clients.round_trip * 1e3,
            "sources": clients.sources,
            "threads": clients.threads,
            "in_flight": limit,
            "seed": clients.seed,
        }
    )


def check_files(work: Work, files: int | None) -> None:
    """BenchError when devices that stay connected need more files than this process may open."""
    held = work.bounds.count if work.form.get("storm", {}).get("hold") else 0
    if files is not None and held + _KEPT_FILES > files:
        raise BenchError(
            f"{held:,} connections at once need as many open files, and this process may open {files:,}"
            f"\n  = raise the limit with 'ulimit -n {held + 1000}', leave out --hold, or take fewer devices"
        )


def default_sources(to: Target) -> str | None:
    """Of a storm: an address for each device, where the target is on this machine's loopback."""
    host = ip_address(to.address.rpartition(":")[0].strip("[]"))
    return STORM_SOURCES if host is not None and host.version == 4 and host.is_loopback else None
