"""An access log that cannot be written: a full disk, a slow reader, none at all. Requests are answered anyway."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.servers import Reader, Writer

from .conftest import Serve, Start


def logged(edge: Pair, path: object, **log: Any) -> Settings:
    access = {"path": str(path), **log}
    return configuration([listener(edge, routes=[health()])], logging={"access": access})


def ask(gateway: Gateway, authority: Authority, count: int, path: str = "/health") -> None:
    """So many requests on one connection, each answered without delay."""
    with Http1.open(gateway.address(), authority.certificate, timeout=10) as client:
        for _ in range(count):
            assert client.request(path).status in (200, 404)


def dropped(gateway: Gateway, reason: str) -> float:
    return gateway.metric("mitu_access_log_dropped_total", reason=reason)


def test_a_device_that_is_full(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(logged(edge, "/dev/full"))
    ask(running, authority, 300)
    assert eventually(lambda: dropped(running, "write_failed") == 300)
    assert dropped(running, "queue_full") == 0
    assert running.stop() == 0


def test_a_disk_that_fills_up_and_is_emptied(gateway: Start, authority: Authority, edge: Pair) -> None:
    """A file may grow to 16 KiB; then it is as if the disk were full. What is in the way is removed later."""
    limited = ("sh", "-c", 'ulimit -f 32; exec "$@"', "sh")
    running = gateway(logged(edge, "access.log"), wrapper=limited, flags=["--no-watch"])
    log = running.folder / "access.log"
    ask(running, authority, 400)
    whole = eventually(lambda: dropped(running, "write_failed")) and log.read_text().count("\n")
    lost = 400 - whole
    assert eventually(lambda: dropped(running, "write_failed") == lost)
    assert 15 * 1024 < log.stat().st_size <= 16 * 1024
    with log.open("r+") as file:
        file.truncate(1000)
    ask(running, authority, 20, "/after")
    eventually(lambda: log.read_text().count("/after") == 20)
    assert dropped(running, "write_failed") == lost
    # What was cut off stands alone, and every line after it is whole.
    after = [line for line in log.read_text().splitlines() if "/after" in line]
    assert len(after) == 20
    assert all(json.loads(line)["path"] == "/after" for line in after)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A FIFO with a reader that does not read."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


class LateReader:
    """Begins to read after all, in a thread, until `stop`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.read = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.read += os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                if self._stop.wait(0.01):
                    return

    def stop(self) -> list[dict[str, Any]]:
        """Every line; one that is not whole is no JSON."""
        self._stop.set()
        self._thread.join()
        return [json.loads(line) for line in self.read.splitlines()]


def test_a_reader_that_does_not_read(gateway: Start, authority: Authority, edge: Pair, pipe: tuple[Path, int]) -> None:
    path, descriptor = pipe
    running = gateway(logged(edge, path, queue=100), flags=["--no-watch"])
    ask(running, authority, 3000)
    assert eventually(lambda: dropped(running, "queue_full") > 0)
    # Nor does it hold up those who run the gateway.
    running.program.signal(signal.SIGUSR1)
    assert running.admin("/reload", "POST")[0] == 200
    ask(running, authority, 100)
    assert running.status()["state"] == "serving"
    reader = LateReader(descriptor)
    asked = 3100

    def caught_up() -> bool:
        nonlocal asked
        before = dropped(running, "queue_full")
        ask(running, authority, 10)
        asked += 10
        return dropped(running, "queue_full") == before

    eventually(caught_up)
    lost = dropped(running, "queue_full") + dropped(running, "write_failed")
    assert running.stop() == 0
    # Each was either written or counted.
    assert len(reader.stop()) + lost == asked


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_though_nobody_reads(
    gateway: Start, authority: Authority, edge: Pair, pipe: tuple[Path, int], end: signal.Signals
) -> None:
    path, _ = pipe
    running = gateway(logged(edge, path, queue=100))
    ask(running, authority, 3000)
    running.program.signal(end)
    assert running.program.wait(20) == (0 if end == signal.SIGTERM else -signal.SIGKILL)


def test_another_log_is_chosen_while_nobody_reads(
    gateway: Start, authority: Authority, edge: Pair, pipe: tuple[Path, int]
) -> None:
    path, _ = pipe
    running = gateway(logged(edge, path, queue=100), flags=["--no-watch"])
    ask(running, authority, 3000)
    running.apply(logged(edge, "access.log"))
    ask(running, authority, 10, "/after")
    eventually(lambda: (running.folder / "access.log").read_text().count("/after") == 10)


@pytest.fixture
def into_pipe(gateway: Start, edge: Pair, pipe: tuple[Path, int]) -> Gateway:
    """A gateway whose standard output is the pipe, and its access log in it; a drain may take ten minutes."""
    path, _ = pipe
    redirected = ("sh", "-c", 'exec "$@" >"$0"', str(path))
    return gateway(logged(edge, "stdout", queue=100), wrapper=redirected, flags=["--no-watch", "--drain-timeout=600"])


def clog(gateway: Gateway, authority: Authority) -> None:
    """Ask until neither the pipe nor the queue has room for another line."""

    def full() -> bool:
        ask(gateway, authority, 500)
        return dropped(gateway, "queue_full") > 0

    eventually(full)


async def silent(reader: Reader, _: Writer) -> None:
    """An upstream that takes everything and answers nothing."""
    await reader.read()


def test_a_second_signal_ends_a_drain_though_nobody_reads(
    into_pipe: Gateway, authority: Authority, edge: Pair, serve: Serve
) -> None:
    held = serve(silent)
    settings = logged(edge, "stdout", queue=100)
    settings["listeners"][0]["routes"].append(to_app())
    into_pipe.apply(settings | {"upstreams": [upstream("app", held.endpoint)]})
    clog(into_pipe, authority)
    with Http1.open(into_pipe.address(), authority.certificate) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: held.open == 1)
        into_pipe.program.signal(signal.SIGTERM)
        eventually(lambda: into_pipe.status()["state"] == "draining")
        into_pipe.program.signal(signal.SIGTERM)
        # 1: a connection was cut off, so the drain had not finished.
        assert into_pipe.program.wait(60) == 1


def test_a_reload_keeps_the_log_that_nobody_reads(
    into_pipe: Gateway, authority: Authority, edge: Pair, pipe: tuple[Path, int]
) -> None:
    clog(into_pipe, authority)
    gone = logged(edge, "stdout", queue=100)
    gone["listeners"][0]["routes"] = [{"match": {"path": "/after"}, "respond": {"status": 200}}]
    into_pipe.apply(gone)
    with Http1.open(into_pipe.address(), authority.certificate) as client:
        assert [client.request(path).status for path in ("/after", "/health")] == [200, 404]
    # It is the same log still, and goes on where somebody reads it.
    reader = LateReader(pipe[1])

    def goes_on() -> bool:
        ask(into_pipe, authority, 1, "/read")
        return b'"path":"/read"' in reader.read

    eventually(goes_on)
    assert into_pipe.stop() == 0
    reader.stop()


def test_a_pipe_without_a_reader_is_refused(gateway: Start, authority: Authority, edge: Pair, tmp_path: Path) -> None:
    """Opening one waits for a reader: for as long as nobody comes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    running = gateway(logged(edge, path), wait=False)
    assert running.program.wait() == 1
    assert f"access log: cannot open {path}: {os.strerror(errno.ENXIO)}" in running.program.log
    running.write(configuration([listener(edge, routes=[health()])]))
    running.restart()
    running.write(logged(edge, path))
    status, body = running.admin("/reload", "POST")
    assert (status, f"access log: cannot open {path}" in body.decode()) == (422, True)
    ask(running, authority, 1)


def test_a_folder_that_is_removed(gateway: Start, authority: Authority, edge: Pair, tmp_path: Path) -> None:
    """The file that is open goes on; opening it anew fails, and costs nothing either."""
    folder = tmp_path / "logs"
    folder.mkdir()
    running = gateway(logged(edge, folder / "access.log"), flags=["--no-watch"])
    ask(running, authority, 1)
    (folder / "access.log").unlink()
    folder.rmdir()
    running.program.signal(signal.SIGUSR1)
    ask(running, authority, 50)
    folder.mkdir()
    running.program.signal(signal.SIGUSR1)
    eventually((folder / "access.log").exists)
    ask(running, authority, 5, "/after")
    eventually(lambda: (folder / "access.log").read_text().count("/after") == 5)
