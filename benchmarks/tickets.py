"""A fleet of three nodes with one ticket secret, and clients that resume all the while: at any node, whichever handed
the session out, through 20 reloads, 2 restarts and 5 rotations of the keys, in TLS 1.2 and 1.3.

What counts is resumptions that became full handshakes. The second row is the same fleet without a secret, whose nodes
make their own keys: it shows that the first could fail. `--seconds` is how long a rotation lasts.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.bench import Bench, Benchmark, Defaults
from benchmarks.harness.certificates import Certificate
from benchmarks.harness.results import Sheet
from benchmarks.harness.server import START_SECONDS, ServerError, free_ports, running

NODES, RELOADS, ROTATIONS = 3, 20, 5
RESTART_AFTER = (7, 14)
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
COLUMNS = {
    "failed": "failed resumptions",
    "resumed_12": "resumed, TLS 1.2",
    "resumed_13": "resumed, TLS 1.3",
    "interrupted": "cut off by a restart",
    "reloads": "reloads",
    "restarts": "restarts",
    "rotations": "rotations",
}
_PAUSE = 0.01


class Node:
    """A gateway that can be reloaded, and started anew on its port."""

    def __init__(self, number: int, folder: Path, settings: dict[str, Any]) -> None:
        self.number, self.folder, self.settings = number, folder, settings
        (self.port,) = free_ports(1)
        self.down = True
        self.starts = 0
        self.reloads = 0
        self._stack = ExitStack()

    def start(self) -> None:
        self._write()
        command = [sys.executable, "-m", "mitu.cli", "run", str(self.folder / "mitu.json"), "--no-watch"]
        self._stack.enter_context(
            running(f"node {self.number}", command, {"https": self.port}, self.folder, cores=None)
        )
        self._wait_for_admin()
        self.starts += 1
        self.down = False

    def _wait_for_admin(self) -> None:
        """It serves before it can be asked to reload."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.folder / "admin.sock"))
                    return
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise ServerError(f"node {self.number} has no admin socket: {error}") from error
            time.sleep(0.02)

    def stop(self) -> None:
        self.down = True
        self._stack.close()

    def reload(self) -> None:
        """A change that makes every listener anew."""
        self.reloads += 1
        self._write()
        connection = HTTPConnection("admin", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.folder / "admin.sock"))
        connection.request("POST", "/reload")
        answer = connection.getresponse()
        if answer.status != 200 or not json.load(answer)["changed"]:
            raise ServerError(f"node {self.number} did not reload")
        connection.close()

    def _write(self) -> None:
        limits = {"concurrent_streams": 100 + self.reloads}
        route = {"match": {"path": "/health"}, "respond": {"body": "ok"}}
        listener = {"name": "edge", "bind": f"127.0.0.1:{self.port}", "protocols": ["http/1.1"]}
        listeners = [{**listener, "tls": self.settings["tls"], "limits": limits, "routes": [route]}]
        admin = {"socket": str(self.folder / "admin.sock")}
        whole = {
            "runtime": {"workers": 1},
            "admin": admin,
            "tickets": self.settings["tickets"],
            "listeners": listeners,
        }
        (self.folder / "mitu.json").write_text(json.dumps(whole))


@dataclass
class Client:
    """Resumes with one TLS version, in a thread of its own, until it is told to end."""

    version: ssl.TLSVersion
    ca: Path
    nodes: list[Node]
    resumed: int = 0
    failed: int = 0
    interrupted: int = 0
    problems: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=self.ca)
        self.context.minimum_version = self.context.maximum_version = self.version
        self.done = threading.Event()
        # One session of each node from the beginning, which grow old, and the newest one.
        self.first = [self._connect(node, None)[1] for node in self.nodes]
        self.newest = self.first[0]

    def run(self) -> None:
        pairs = cycle((session, node) for node in self.nodes for session in range(len(self.first) + 1))
        while not self.done.wait(_PAUSE):
            at, node = next(pairs)
            if node.down:
                continue
            starts = node.starts
            try:
                reused, session = self._connect(node, self.newest if at == len(self.first) else self.first[at])
            except OSError as error:
                if node.down or node.starts != starts:
                    self.interrupted += 1
                else:
                    self._fail(f"node {node.number}: {error}")
                continue
            if reused:
                self.resumed += 1
            else:
                self._fail(f"node {node.number}: a full handshake")
            self.newest = session

    def _fail(self, problem: str) -> None:
        self.failed += 1
        self.problems.add(problem)

    def _connect(self, node: Node, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
        """Whether the session was resumed, and the one that came back."""
        with (
            socket.create_connection(("127.0.0.1", node.port), timeout=10) as plain,
            self.context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
        ):
            # In TLS 1.2 the request follows the last flight; it is not to wait for that flight's acknowledgement.
            tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls.sendall(REQUEST)
            while tls.recv(4096):
                pass
            if tls.session is None:
                raise OSError("no session was handed out")
            return bool(tls.session_reused), tls.session


def run(bench: Bench) -> None:
    """The fleet with a secret, then without."""
    if "mitu" not in bench.peers:
        return
    certificate = bench.certificate("p256")
    secret = bench.folder / "ticket.secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    rotation = max(1, round(bench.options.seconds))
    times = {"rotation": f"{rotation}s", "lifetime": f"{100 * rotation}s"}
    title = f"{NODES} nodes, a rotation every {rotation} s: resumptions, and those that failed"
    sheet = Sheet("tickets", title, "failed", COLUMNS, variants=frozenset({"mitu, no secret"}))
    bench.result.sheets.append(sheet)
    for _ in range(bench.options.rounds):
        for name, given in (("mitu", [{"file": str(secret)}]), ("mitu, no secret", [])):
            try:
                with _fleet(certificate, {**times, "secrets": given}) as nodes:
                    row, problems = _measure(nodes, certificate, rotation)
            except ServerError as error:
                bench.result.note(f"{name} was left out: {error}")
                continue
            sheet.add(name, **row)
            bench.log(f"{name}: {row['failed']:.0f} failed, {row['resumed_12'] + row['resumed_13']:.0f} did not")
            if name == "mitu":
                for problem in sorted(problems):
                    bench.result.note(problem)


@contextmanager
def _fleet(certificate: Certificate, tickets: dict[str, Any]) -> Iterator[list[Node]]:
    tls = {"certificates": [{"certificate": str(certificate.chain), "key": str(certificate.key)}]}
    with TemporaryDirectory(prefix="bench-tickets-") as name, ExitStack() as stack:
        nodes = []
        for number in range(NODES):
            folder = Path(name) / str(number)
            folder.mkdir()
            nodes.append(Node(number, folder, {"tls": tls, "tickets": tickets}))
            stack.callback(nodes[-1].stop)
            nodes[-1].start()
        yield nodes


def _measure(nodes: list[Node], certificate: Certificate, rotation: int) -> tuple[dict[str, float], set[str]]:
    clients = [Client(version, certificate.chain, nodes) for version in VERSIONS]
    threads = [threading.Thread(target=client.run) for client in clients]
    begun = time.time()
    for thread in threads:
        thread.start()
    try:
        for number in range(RELOADS):
            nodes[number % NODES].reload()
            if number in RESTART_AFTER:
                node = nodes[(number + 1) % NODES]
                node.stop()
                node.start()
            # Spread over the rotations, of which the last one is over when this ends.
            due = begun + (ROTATIONS + 1) * rotation * (number + 1) / RELOADS
            time.sleep(max(0, due - time.time()))
    finally:
        for client in clients:
            client.done.set()
        for thread in threads:
            thread.join()
    row = {
        "failed": sum(client.failed for client in clients),
        "resumed_12": clients[0].resumed,
        "resumed_13": clients[1].resumed,
        "interrupted": sum(client.interrupted for client in clients),
        "reloads": sum(node.reloads for node in nodes),
        "restarts": sum(node.starts - 1 for node in nodes),
        "rotations": time.time() // rotation - begun // rotation,
    }
    return row, set().union(*(client.problems for client in clients))


BENCHMARK = Benchmark(
    "tickets",
    __doc__,
    run,
    Defaults(rounds=1, seconds=4, quick_rounds=1, quick_seconds=1, servers=("mitu",)),
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
