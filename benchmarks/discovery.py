"""From a change in a real Consul to the first new handshake that follows it: with 10, 100 and 1,000 instances, of
which some change 100 times a second all the while.

The change is in the metadata of one instance, whose weight decides whether h2 or http/1.1 comes first; its time runs
from before Consul is told until a handshake has been made that comes to the other protocol. `inside` is what the
gateway itself took of that, from its provider's word to the data plane's. Beside it, full handshakes while nothing
changes and while everything does. One worker on one core; Consul and the client share the other, so that the client's
clock shows what Consul takes, too; what the gateway's other threads take from the worker is how long that waits for
its core. `--seconds` is for how long changes are made with each number of instances.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.bench import CLIENT_CORE, SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.certificates import Certificate
from benchmarks.harness.results import Sheet
from benchmarks.harness.server import Server, ServerError, free_ports, running
from mitu.admin.client import AdminClient

INSTANCES = (10, 100, 1000)
CHANGES_PER_SECOND = 100
COLUMNS = {
    "p50": "change → handshake P50 ms",
    "p99": "P99 ms",
    "inside_p50": "inside P50 ms",
    "inside_p99": "inside P99 ms",
    "quiet_p50": "handshake, quiet P50 ms",
    "quiet_p99": "P99 ms",
    "busy_p50": "handshake, changing P50 ms",
    "busy_p99": "P99 ms",
    "quiet_waited": "worker waits for its core, quiet µs each",
    "busy_waited": "changing µs each",
    "cpu": "gateway's CPU, %",
    "changes": "changes timed",
}
HEAVY = 1000
GIVE_UP = 30.0
GOAL_MS = 1000.0
WORKER = "mitu-worker"
_QUIET = 300


@dataclass
class Registry:
    """Consul, by its HTTP API. Each thread has a connection of its own."""

    port: int

    def __post_init__(self) -> None:
        self._local = threading.local()

    def put(self, path: str, body: dict[str, Any] | None = None) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("PUT", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise ServerError(f"consul: PUT {path}: {answer.status} {said[:200]!r}")

    def register(self, id: str, protocols: str, weight: int) -> None:
        self.put(
            "/v1/agent/service/register",
            {
                "Name": "api",
                "ID": id,
                "Address": "127.0.0.1",
                "Port": 9,
                "Meta": {"alpn_supported": protocols},
                "Weights": {"Passing": weight, "Warning": weight},
                "Check": {"CheckID": id, "TTL": "1h", "Status": "passing"},
            },
        )

    def churn(self, ids: list[str], end: threading.Event) -> None:
        """Check after check goes from passing to warning and back, `CHANGES_PER_SECOND` times a second."""
        begun, done, warned = time.monotonic(), 0, set[str]()
        while not end.is_set():
            one = random.choice(ids)  # noqa: S311 - no secret
            self.put(f"/v1/agent/check/{'pass' if one in warned else 'warn'}/{one}")
            warned ^= {one}
            done += 1
            end.wait(max(0.0, begun + done / CHANGES_PER_SECOND - time.monotonic()))


class Client:
    """Makes full handshakes, one after the other."""

    def __init__(self, port: int, certificate: Certificate) -> None:
        self._address = ("127.0.0.1", port)
        self._tls = ssl.create_default_context(cafile=certificate.chain)
        self._tls.set_alpn_protocols(["h2", "http/1.1"])

    def handshake(self) -> tuple[str | None, float]:
        """What it came to, and the milliseconds that it took."""
        begun = time.perf_counter()
        with (
            socket.create_connection(self._address, timeout=10) as plain,
            self._tls.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            return tls.selected_alpn_protocol(), (time.perf_counter() - begun) * 1e3

    def until(self, wanted: str) -> list[float]:
        """Handshakes until one comes to `wanted`; what each of them took."""
        took: list[float] = []
        begun = time.monotonic()
        while time.monotonic() < begun + GIVE_UP:
            chosen, milliseconds = self.handshake()
            took.append(milliseconds)
            if chosen == wanted:
                return took
        raise ServerError(f"no handshake came to {wanted} within {GIVE_UP:g} s")


def run(bench: Bench) -> None:
    """Each number of instances, once a round."""
    if "mitu" not in bench.peers:
        return
    certificate = bench.certificate("p256")
    title = f"a change in Consul, {CHANGES_PER_SECOND} others a second, by the number of instances"
    sheet = Sheet("discovery", title, "p99", COLUMNS)
    bench.result.sheets.append(sheet)
    for _ in range(bench.options.rounds):
        for number in INSTANCES:
            try:
                row = _measure(bench, certificate, number)
            except (ServerError, OSError) as error:
                bench.result.note(f"{number} instances were left out: {error}")
                continue
            sheet.add(f"{number} instances", **row)
            if row["p99"] >= GOAL_MS:
                bench.result.note(f"{number} instances: the goal, P99 below {GOAL_MS:g} ms, is not met")
            bench.log(f"{number} instances: P50 {row['p50']:.0f} ms, P99 {row['p99']:.0f} ms")


def _measure(bench: Bench, certificate: Certificate, number: int) -> dict[str, float]:
    with TemporaryDirectory(prefix="bench-discovery-") as name, _consul(Path(name)) as registry:
        ids = [f"api-{at}" for at in range(number)]
        registry.register(ids[0], "h2", HEAVY)
        for one in ids[1:]:
            registry.register(one, "http/1.1", 1)
        with _gateway(Path(name), certificate, registry) as gateway:
            client = Client(gateway.ports["https"], certificate)
            client.until("h2")
            waits = [gateway.waited(WORKER)]
            quiet = [client.handshake()[1] for _ in range(_QUIET)]
            waits.append(gateway.waited(WORKER))
            end = threading.Event()
            changing = threading.Thread(target=registry.churn, args=(ids[1:], end))
            changing.start()
            before, begun = gateway.cpu(), time.monotonic()
            waits.append(gateway.waited(WORKER))
            try:
                times, busy = _change(bench, registry, ids[0], client)
                waits.append(gateway.waited(WORKER))
            finally:
                end.set()
                changing.join()
            cpu = gateway.cpu().since(before) / (time.monotonic() - begun) / 1e7
            inside = [one["took"] * 1e3 for one in _decisions(Path(name))]
    return {
        "p50": _share(times, 0.5),
        "p99": _share(times, 0.99),
        "inside_p50": _share(inside, 0.5),
        "inside_p99": _share(inside, 0.99),
        "quiet_p50": _share(quiet, 0.5),
        "quiet_p99": _share(quiet, 0.99),
        "busy_p50": _share(busy, 0.5),
        "busy_p99": _share(busy, 0.99),
        "quiet_waited": (waits[1] - waits[0]) / len(quiet) / 1e3,
        "busy_waited": (waits[3] - waits[2]) / len(busy) / 1e3,
        "cpu": cpu,
        "changes": float(len(times)),
    }


def _change(bench: Bench, registry: Registry, id: str, client: Client) -> tuple[list[float], list[float]]:
    """Milliseconds from each change to the handshake that follows it, and those of every handshake meanwhile."""
    times: list[float] = []
    busy: list[float] = []
    end = time.monotonic() + bench.options.seconds
    wanted = "http/1.1"
    while time.monotonic() < end:
        begun = time.perf_counter()
        # Another thread, as another machine would be: handshakes go on while Consul is told.
        telling = threading.Thread(target=registry.register, args=(id, wanted, HEAVY))
        telling.start()
        busy += client.until(wanted)
        times.append((time.perf_counter() - begun) * 1e3)
        telling.join()
        wanted = "h2" if wanted == "http/1.1" else "http/1.1"
        # Not in step with anything.
        pause = time.monotonic() + random.uniform(0.0, 0.3)  # noqa: S311 - no secret
        while time.monotonic() < pause:
            busy.append(client.handshake()[1])
    return times, busy


def _share(values: list[float], share: float) -> float:
    """The value below which this share of them is; the largest, where there are too few to tell."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def _consul(folder: Path) -> Iterator[Registry]:
    program = shutil.which("consul") or _built()
    if program is None:
        raise ServerError("consul is missing: PYTHONPATH=tests python -m support.go_servers consul")
    port, server, serf = free_ports(3)
    closed = dict.fromkeys(("https", "dns", "grpc", "serf_wan"), -1)
    settings = {
        "bind_addr": "127.0.0.1",
        "connect": {"enabled": False},
        "disable_update_check": True,
        "limits": {"http_max_conns_per_client": 1000},
        "log_level": "error",
        "ports": {"http": port, "server": server, "serf_lan": serf, **closed},
    }
    file = folder / "consul.json"
    file.write_text(json.dumps(settings))
    command = [program, "agent", "-dev", "-config-file", str(file)]
    with running("consul", command, {"http": port}, folder, cores=CLIENT_CORE):
        registry = Registry(port)
        deadline = time.monotonic() + GIVE_UP
        while True:
            try:
                registry.register("ready", "h2", 1)
                registry.put("/v1/agent/service/deregister/ready")
                break
            except (ServerError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield registry


def _built() -> str | None:
    """Where the tests keep the one that they build."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mitu" / "servers"
    return next((str(path) for path in sorted(cache.glob("consul-*/consul"), reverse=True)), None)


@contextmanager
def _gateway(folder: Path, certificate: Certificate, registry: Registry) -> Iterator[Server]:
    (port,) = free_ports(1)
    pair = {"certificate": str(certificate.chain), "key": str(certificate.key)}
    listener = {
        "name": "edge",
        "bind": f"127.0.0.1:{port}",
        "protocols": ["h2", "http/1.1"],
        "alpn_ranking": {"hold": "0s"},
        # What is measured is full handshakes.
        "tls": {"certificates": [pair], "tickets": 0},
        "routes": [{"match": {"path_prefix": "/"}, "upstream": "api"}],
    }
    settings = {
        "runtime": {"workers": 1},
        "admin": {"socket": str(folder / "admin.sock")},
        "logging": {"level": "warning"},
        "listeners": [listener],
        "upstreams": [{"name": "api", "discover": {"provider": "registry", "service": "api"}}],
        "discovery": {
            "state": str(folder / "state"),
            "providers": [{"name": "registry", "consul": {"address": f"http://127.0.0.1:{registry.port}"}}],
        },
    }
    file = folder / "mitu.json"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "mitu.cli", "run", str(file), "--no-watch"]
    with running("mitu", command, {"https": port}, folder, cores=SERVER_CORE) as server:
        yield server


def _decisions(folder: Path) -> list[dict[str, Any]]:
    (ranking,) = AdminClient(folder / "admin.sock").get("/alpn?decisions=1000")
    found: list[dict[str, Any]] = ranking["decisions"]
    return found


BENCHMARK = Benchmark(
    "discovery",
    __doc__,
    run,
    Defaults(rounds=1, seconds=30, quick_rounds=1, quick_seconds=4, servers=("mitu",)),
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
