"""How long a server's threads wait for locks.

A thread that waits for a lock sits in the system call futex(2), which `/proc/PID/task/TID/syscall` tells. It is looked
at many times a second. Where idle threads wait in epoll_wait(2), as nginx's and those of mitu's own scheduler do,
every futex is a lock's. Threads that hardly work, such as a log's writer waiting for its queue, are left out.

Go's idle threads park in futexes too, and its locks mostly park goroutines and no threads, so looking at threads says
nothing there. Its runtime keeps account of what goroutines wait for locks, its own and those of `sync`
(`/sync/mutex/wait/total:seconds` of runtime/metrics), and the peer tells it.

Both give seconds of waiting, all threads or goroutines together. Short waits that spin before they sleep are CPU time
in either.
"""

from __future__ import annotations

import http.client
import json
import platform
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import process
from benchmarks.harness.server import Server, ServerError

T = TypeVar("T")

#: How often threads are looked at. With two workers, one in a thousand of the looks in 5 s is 0.1 %.
EVERY_SECONDS = 0.01
#: The least share of a server's CPU that a thread must have for its waits to matter.
WORKS = 0.05

# futex(2), futex_waitv(2) and futex_wait(2).
_FUTEX = {"x86_64": 202, "aarch64": 98}
_NEWER = {449, 455}


def waited(server: Server, work: Callable[[], T]) -> tuple[T, float]:
    """Do `work`, and say how many seconds the server's threads waited for locks meanwhile.

    Raises:
        ServerError: the kernel or the server does not tell.
    """
    if server.name == "go":
        before = _told_by_go(server)
        return work(), _told_by_go(server) - before
    if platform.machine() not in _FUTEX:
        raise ServerError(f"the number of futex(2) on {platform.machine()} is not known here")
    sampler = _Sampler(server)
    sampler.start()
    try:
        done = work()
    finally:
        sampler.stop()
    return done, sampler.seconds()


def _told_by_go(server: Server) -> float:
    host, _, port = server.address().rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    try:
        connection.request("GET", "/mutex-wait")
        return float(json.loads(connection.getresponse().read())["seconds"])
    finally:
        connection.close()


class _Sampler(threading.Thread):
    """Looks at every thread of a server, again and again."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="lock sampler", daemon=True)
        self._server, self._cpu = server, server.cpu()
        self._tasks = [process.PROC / str(pid) / "task" / str(tid) for pid, tid in self._cpu.threads]
        self._done = threading.Event()
        self._locked: Counter[Path] = Counter()
        self._period = 0.0
        self._trouble: OSError | None = None

    def run(self) -> None:
        futex = {_FUTEX[platform.machine()], *_NEWER}
        looks, started = 0, time.monotonic()
        while not self._done.wait(EVERY_SECONDS):
            looks += 1
            for task in self._tasks:
                try:
                    call = (task / "syscall").read_text().split(maxsplit=1)[0]
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended
                except OSError as error:
                    self._trouble = error
                    return
                self._locked[task] += call.isdigit() and int(call) in futex
        self._period = (time.monotonic() - started) / max(1, looks)

    def stop(self) -> None:
        self._done.set()
        self.join()

    def seconds(self) -> float:
        """What the threads that work have waited."""
        if self._trouble is not None:
            raise ServerError(f"the kernel does not say what {self._server.name}'s threads wait for: {self._trouble}")
        now = self._server.cpu()
        spent = {thread: cpu - self._cpu.threads.get(thread, 0) for thread, cpu in now.threads.items()}
        least = WORKS * sum(spent.values())
        working = [process.PROC / str(pid) / "task" / str(tid) for (pid, tid), cpu in spent.items() if cpu >= least]
        return sum(self._locked[task] for task in working) * self._period
