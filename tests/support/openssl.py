"""`openssl s_client`: another TLS implementation, and one that shows what was negotiated."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.client import Address
from support.process import run

# The answer ends the connection, and with it s_client, once tickets have arrived.
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def command(address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost") -> list[str]:
    host, port = address
    named = ["-noservername"] if name is None else ["-servername", name]
    base = ["openssl", "s_client", "-connect", f"{host}:{port}", *named, "-CAfile", str(ca)]
    return [*base, *map(str, flags)]


def negotiate(address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost") -> str:
    """Handshake and nothing more: what s_client says of it."""
    done = run(command(address, ca, *flags, name=name), timeout=20)
    return (done.stdout + done.stderr).decode(errors="replace")


def s_client(
    address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost", request: bytes = REQUEST
) -> subprocess.CompletedProcess[str]:
    """Handshake, one HTTP/1.1 request, and both output streams as one text in `stdout`."""
    words = [*command(address, ca, "-ign_eof", *flags, name=name)]
    done = run(words, stdin=request, timeout=20)
    text = (done.stdout + done.stderr).decode(errors="replace")
    return subprocess.CompletedProcess(words, done.returncode, text)
