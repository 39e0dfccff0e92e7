"""Programs that a test starts, and stops by their own process id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Program:
    """A running program whose output goes to a file."""

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.command = [str(word) for word in command]
        self.log_file = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=log.parent,
                pass_fds=descriptors,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """The exit code; TimeoutExpired when it does not end in time."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, then SIGKILL when that takes longer than `timeout` seconds. The exit code."""
        if self.alive():
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.wait(timeout)
            self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def resident(self) -> int:
        """Resident memory in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def run(command: Sequence[object], *, timeout: float = 60, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs a client to its end; its exit code is the caller's to judge."""
    words = [str(word) for word in command]
    return subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, check=False)


def output(command: Sequence[object], *, timeout: float = 60, stdin: bytes = b"") -> str:
    """What a client prints; AssertionError, with both streams, when it fails."""
    done = run(command, timeout=timeout, stdin=stdin)
    text = done.stdout.decode(errors="replace")
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit code {done.returncode}\n{text}\n{errors}"
    return text
