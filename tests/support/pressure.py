"""What a program takes of the machine, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


class Pressure:
    """Readings of one process, threads and all."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def cpu(self) -> float:
        """Seconds that its threads have run."""
        spent = [int(task.read_text().split()[0]) for task in self._proc.glob("task/*/schedstat")]
        return sum(spent) / 1e9

    def resident(self) -> int:
        """Bytes of memory."""
        return self._status("VmRSS") * 1024

    def peak(self) -> int:
        """The most that `resident` has been since `forget_peak`."""
        return self._status("VmHWM") * 1024

    def forget_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def sockets(self) -> int:
        """Sockets that it holds open, of whatever kind."""
        held = 0
        for descriptor in (self._proc / "fd").iterdir():
            try:
                held += descriptor.readlink().name.startswith("socket:")
            except FileNotFoundError:
                continue  # Closed meanwhile.
        return held
