"""A server's life: started on ports of its own in a folder of its own, shown to serve, stopped by its own pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import process

START_SECONDS = 20.0
STOP_SECONDS = 5.0


class ServerError(Exception):
    """A server did not start, or did not do what the measurement needs."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    pid: int
    ports: Mapping[str, int]
    log: Path

    def address(self, port: str = "https") -> str:
        """`host:port` of one of its ports."""
        return f"127.0.0.1:{self.ports[port]}"

    def cpu(self) -> process.Cpu:
        """Its CPU time so far, in all threads and processes."""
        return process.cpu(self.pid)

    def waited(self, name: str) -> int:
        """Nanoseconds for which its threads with names like that waited for a core so far."""
        return process.waited(self.pid, name)

    def resident(self) -> int:
        """Its resident memory, in bytes."""
        return process.resident(self.pid)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. Taken together, so that they differ."""
    sockets = []
    try:
        for _ in range(count):
            holder = socket.socket()
            sockets.append(holder)
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in sockets]
    finally:
        for holder in sockets:
            holder.close()


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    ports: Mapping[str, int],
    folder: Path,
    *,
    cores: str | None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `command` until the block ends. `cores`: those it may use, as taskset(1) lists them; None: all.

    Raises:
        ServerError: a port is shared with another server (`SO_REUSEPORT` would silently halve every figure), or the
            server does not listen in time.
    """
    for port in ports.values():
        if process.listening_inodes(port):
            raise ServerError(f"{name}: another server listens on port {port} already")
    pinned = ["taskset", "-c", cores, *command] if cores else list(command)
    log = folder / "output.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            pinned,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_listening(name, child, ports, log)
        yield Server(name, child.pid, ports, log)
        if child.poll() is not None:
            raise ServerError(f"{name} ended during the measurement with {child.returncode}:\n{_tail(log)}")
    finally:
        _stop(child)


def _wait_until_listening(name: str, child: subprocess.Popen[bytes], ports: Mapping[str, int], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        listening = {port: process.listening_inodes(port) for port in ports.values()}
        if all(listening.values()):
            break
        if child.poll() is not None:
            raise ServerError(f"{name} ended at once with {child.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{name} did not listen within {START_SECONDS:g} s:\n{_tail(log)}")
        time.sleep(0.02)
    own = process.socket_inodes(child.pid)
    for port, inodes in listening.items():
        if foreign := inodes - own:
            raise ServerError(f"{name}: {len(foreign)} socket(s) of another process share port {port}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the child, and whatever it has started: the session is its own."""
    group = child.pid
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    child.wait()


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
