"""`python -m tools.pgo`: the load that profile-guided optimisation learns from (`make wheel-pgo`).

maturin builds an instrumented wheel, installs it into an environment of its own, runs this there, and builds the wheel
again with what was counted. What is counted is what mitu is for: handshakes of every kind, full and resumed, over TCP
and in QUIC, and a little of what follows them. What is not counted is taken for cold, and made small in place of fast.
Counts weigh branches and calls: what matters is that each path is taken often, and the frequent ones most often.
"""

from __future__ import annotations

import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import certificates, load
from benchmarks.harness.certificates import KeyType
from benchmarks.harness.server import Server
from benchmarks.peers import PEERS, Settings

#: Each certificate, with what is done under it: the command of `mitu-load` and its arguments.
LOADS: dict[KeyType, tuple[tuple[str, ...], ...]] = {
    "p256": (
        ("handshake", "--count", "4000"),
        ("handshake", "--count", "4000", "--resume"),
        ("handshake", "--count", "1000", "--groups", "X25519MLKEM768,X25519"),
        ("handshake", "--count", "300", "--groups", "secp256r1"),
        ("handshake", "--count", "300", "--suites", "TLS_AES_256_GCM_SHA384"),
        ("handshake", "--count", "300", "--suites", "TLS_CHACHA20_POLY1305_SHA256"),
        ("handshake", "--count", "500", "--tls", "1.2", "--suites", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        ("handshake", "--count", "1500", "--alpn", "h2", "--path", "/api/sync"),
        ("handshake", "--count", "500", "--alpn", "mqtt"),
        ("pulse", "--rate", "3000", "--duration", "2", "--path", "/api/sync"),
        ("handshake", "--count", "4000", "--alpn", "h3"),
        ("handshake", "--count", "1500", "--alpn", "h3", "--resume"),
        ("handshake", "--count", "500", "--alpn", "h3", "--path", "/api/sync"),
        ("pulse", "--rate", "3000", "--duration", "2", "--alpn", "h3", "--path", "/api/sync"),
    ),
    "p384": (("handshake", "--count", "1000"),),
    "rsa2048": (("handshake", "--count", "1000"),),
}

#: Of these bytes each.
BULK = 4 << 20
BULK_LOAD = (
    ("handshake", "--count", "60", "--path", "/bulk"),
    ("handshake", "--count", "120", "--alpn", "h3", "--path", "/bulk"),
)

_CONNACK = bytes([0x20, 2, 0, 0])


class _Accepting(socketserver.BaseRequestHandler):
    """A broker as far as a relay can tell: it accepts whoever connects, and listens until they go."""

    def handle(self) -> None:
        if self.request.recv(4096):
            self.request.sendall(_CONNACK)
            while self.request.recv(4096):
                pass


@contextmanager
def broker() -> Iterator[str]:
    """`host:port` of a stand-in for an MQTT broker."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Accepting) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        yield f"{host!s}:{port}"
        server.shutdown()


def drive(server: Server, loads: tuple[tuple[str, ...], ...]) -> int:
    """Do `loads`, and say how many exchanges succeeded; LoadError when one did not."""
    done = 0
    for command, *arguments in loads:
        report = load.mitu_load([command, server.address(), *arguments], core=None, seconds=600)
        if report["failed"]:
            raise load.LoadError(f"mitu-load {command} {' '.join(arguments)}: {report['first_error']}")
        done += report["completed"]
    return done


def main() -> int:
    """Everything, on one instrumented gateway after the other. Returns the exit code."""
    with TemporaryDirectory(prefix="pgo-") as folder, load.upstream(core=None) as (_, upstream), broker() as mqtt:
        for key_type, loads in LOADS.items():
            certificate = certificates.make(Path(folder), key_type)
            settings = Settings(certificate, upstream=upstream, broker=mqtt, cores=None, h3=True)
            with PEERS["mitu"].start(settings) as server:
                print(f"pgo: {drive(server, loads)} exchanges with {key_type}", file=sys.stderr)
        with load.upstream(core=None, body=BULK) as (_, upstream):
            settings = Settings(
                certificates.make(Path(folder), "p256"), upstream=upstream, broker=mqtt, cores=None, h3=True
            )
            with PEERS["mitu"].start(settings) as server:
                print(f"pgo: {drive(server, BULK_LOAD)} large responses", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
