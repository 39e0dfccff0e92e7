"""The load generators, as functions: `mitu-load` of this repository, wrk, h2load and oha.

All of them offer one suite and one group, so that every server does the same cryptography.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.certificates import Certificate
from benchmarks.harness.paths import find_program, load_generator
from benchmarks.harness.server import free_ports, running

# wrk and h2load take what they offer from OpenSSL's configuration.
_OPENSSL = """openssl_conf = default
[default]
ssl_conf = ssl
[ssl]
system_default = tls
[tls]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
"""


class LoadError(Exception):
    """A load generator is missing, failed, or saw errors where there must be none."""


@dataclass(frozen=True)
class Requests:
    """What h2load or wrk saw."""

    completed: int
    per_second: float


@dataclass(frozen=True)
class TimedRequests(Requests):
    """What wrk saw. Latencies are milliseconds."""

    p50: float
    p99: float


def mitu_load(
    arguments: Sequence[str], *, core: str | None, seconds: float = 120, background: bool = False
) -> dict[str, Any]:
    """One command of `mitu-load`, to its end: the JSON it prints.

    `background`: it takes what others leave of the core. A process that only has a high nice value keeps the core for
    a slice of milliseconds when another wakes up; one of the scheduler's idle class does not.
    """
    done = _run([*(["chrt", "--idle", "0"] if background else []), str(_program()), *arguments], core, seconds)
    document: dict[str, Any] = json.loads(done)
    return document


def connections(address: str, arguments: Sequence[str], *, core: str | None, plain: bool = False) -> dict[str, Any]:
    """`mitu-load handshake` (or `plain`): every connection must succeed.

    Raises:
        LoadError: some did not; a server that refuses work must not look fast.
    """
    report = mitu_load(["plain" if plain else "handshake", address, *arguments], core=core)
    if report["failed"] or not report["completed"]:
        raise LoadError(f"{report['failed']} connections failed: {report['errors']}, first: {report['first_error']}")
    return report


@contextmanager
def held(address: str, arguments: Sequence[str], count: int, *, core: str | None) -> Iterator[None]:
    """`count` connections, each after one exchange, held open until the block ends."""
    command = _pinned([str(_program()), "idle", address, "--connections", str(count), *arguments], core)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        opened = json.loads(child.stdout.readline())
        if opened["open"] != count:
            child.kill()
            raise LoadError(f"{opened['open']} of {count} connections opened: {opened['first_error']}")
        try:
            yield
        finally:
            output, _ = child.communicate(timeout=60)
        if (left := json.loads(output)["open"]) != count:
            raise LoadError(f"the server closed {count - left} of {count} idle connections")


@contextmanager
def upstream(*, core: str | None, body: int = 128) -> Iterator[tuple[int, str]]:
    """The fixed-response server behind the proxies, and for the plain-TCP floor: its pid and address.

    `body`: the response's bytes.
    """
    with _serving(["serve", "--body", str(body)], core) as served:
        yield served


@contextmanager
def h3_floor(certificate: Certificate, *, core: str | None) -> Iterator[tuple[int, str]]:
    """The same over HTTP/3, with nothing around the protocol: its pid and address."""
    files = ["--certificate", str(certificate.chain), "--key", str(certificate.key)]
    with _serving(["serve-h3", *files], core) as served:
        yield served


@contextmanager
def broker(folder: Path, *, core: str | None) -> Iterator[str]:
    """A mosquitto of our own, with its files in `folder`: its address."""
    (port,) = free_ports(1)
    folder = folder / "broker"
    folder.mkdir()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n")
    command = [find_program("mosquitto") or "mosquitto", "-c", config]
    with running("mosquitto", command, {"mqtt": port}, folder, cores=core) as server:
        yield server.address("mqtt")


@contextmanager
def _serving(arguments: Sequence[str], core: str | None) -> Iterator[tuple[int, str]]:
    """A command of `mitu-load` that serves until the block ends."""
    child = subprocess.Popen(_pinned([str(_program()), *arguments], core), stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        try:
            yield child.pid, json.loads(child.stdout.readline())["address"]
        finally:
            child.terminate()


def wrk(
    url: str, *, threads: int, connections: int, seconds: float, core: str | None, close: bool = False
) -> TimedRequests:
    """`wrk -tN -cN -dNs --latency URL`: every response must be a 200. `close`: each on a connection of its own."""
    # wrk takes whole seconds only.
    arguments = [f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", url]
    arguments += ["-H", "Connection: close"] if close else []
    output = _run([_found("wrk", "install the Debian package wrk"), *arguments], core, seconds + 30)
    if trouble := re.search(r"Non-2xx.*|Socket errors:.*", output):
        raise LoadError(f"{url}: {trouble[0]}")
    return TimedRequests(
        completed=int(_match(r"(\d+) requests in", output)),
        per_second=float(_match(r"Requests/sec:\s+([\d.]+)", output)),
        p50=_milliseconds(_match(r"(?m)^ +50%\s+(\S+)", output)),
        p99=_milliseconds(_match(r"(?m)^ +99%\s+(\S+)", output)),
    )


def h2load(url: str, *, connections: int, streams: int, seconds: float, core: str | None) -> Requests:
    """`h2load -D N -c N -m N -t1 URL`: every response must be a 200."""
    arguments = ["-D", str(max(1, round(seconds))), "-c", str(connections), "-m", str(streams)]
    return _h2load(url, arguments, "h2", core, seconds)


def h2load_once(url: str, *, connections: int, core: str | None) -> Requests:
    """`h2load --h1 -n N -c N -t1 URL`: so many connections at once, with one request each; all must succeed."""
    done = _h2load(url, ["--h1", "-n", str(connections), "-c", str(connections)], "http/1.1", core, 30)
    if done.completed != connections:
        raise LoadError(f"{url}: {done.completed} of {connections} requests of h2load succeeded")
    return done


def _h2load(url: str, arguments: Sequence[str], protocol: str, core: str | None, seconds: float) -> Requests:
    output = _run(
        [_found("h2load", "install the Debian package nghttp2-client"), *arguments, "-t1", url], core, seconds + 30
    )
    succeeded, failed, errored = (int(_match(rf"(\d+) {word}", output)) for word in ("succeeded", "failed", "errored"))
    if f"Application protocol: {protocol}" not in output or not succeeded or failed or errored:
        raise LoadError(f"{url}: {output}")
    return Requests(succeeded, float(_match(r"([\d.]+) req/s", output)))


def oha(url: str, *, version: str, connections: int, streams: int, seconds: float, core: str | None) -> Requests:
    """`oha --http-version N -z Ns -c N -p N URL`: every response must be a 200, but for those cut off at the end."""
    arguments = ["--http-version", version, "-z", f"{max(1, round(seconds))}s", "-c", str(connections)]
    arguments += ["-p", str(streams), "--insecure", "--no-tui", "--output-format", "json"]
    document = json.loads(
        _run([_found("oha", "cargo install --locked oha --features http3"), *arguments, url], core, seconds + 30)
    )
    statuses, errors = document["statusCodeDistribution"], document["errorDistribution"]
    failed = {error: count for error, count in errors.items() if error != "aborted due to deadline"}
    if failed or set(statuses) != {"200"}:
        raise LoadError(f"{url}: {statuses} {failed}")
    return Requests(statuses["200"], document["summary"]["requestsPerSec"])


def mitu_bench(arguments: Sequence[str], *, core: str | None, seconds: float) -> TimedRequests:
    """`mitu bench …`: nothing may fail."""
    same = ["--suite", "TLS_AES_128_GCM_SHA256", "--group", "X25519", "--duration", f"{seconds}s", "--json"]
    output = _run([sys.executable, "-m", "mitu.cli", "bench", *arguments, *same], core, seconds + 30)
    outcome = json.loads(output)["outcome"]
    if outcome["failed"] or not outcome["completed"]:
        raise LoadError(f"mitu bench: {outcome['errors']}")
    total = outcome["stages"]["total"]
    return TimedRequests(outcome["completed"], outcome["per_second"], p50=total["p50"], p99=total["p99"])


def _program() -> Path:
    program = load_generator()
    if not program.is_file():
        raise LoadError("mitu-load is not built; run: python -m benchmarks.peers install")
    return program


def _found(name: str, get: str) -> str:
    if (program := find_program(name)) is None:
        raise LoadError(f"{name} is missing; {get}")
    return str(program)


def _pinned(command: list[str], core: str | None) -> list[str]:
    return ["taskset", "-c", core, *command] if core else command


def _run(command: list[str], core: str | None, seconds: float) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as openssl:
        openssl.write(_OPENSSL)
        openssl.flush()
        environment = {**os.environ, "OPENSSL_CONF": openssl.name}
        try:
            done = subprocess.run(
                _pinned(command, core), env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"{' '.join(command)}: not done after {seconds:g} s") from None
    if done.returncode:
        raise LoadError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def _match(pattern: str, output: str) -> str:
    if (found := re.search(pattern, output)) is None:
        raise LoadError(f"no {pattern!r} in: {output}")
    return str(found[1])


def _milliseconds(text: str) -> float:
    number = _match(r"^([\d.]+)(?:us|ms|s|m)$", text)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[text.removeprefix(number)]
