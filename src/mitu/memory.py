"""How much memory this process may have: the least of what its control groups allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 62
"""What version 1 shows where there is no limit is a number as large as this."""


def memory_limit(own: Path = _OWN, root: Path = _ROOT) -> int | None:
    """Bytes; None: no control group limits it, or none can be read."""
    return min((limit for limit in _limits(own, root) if limit < _UNLIMITED), default=None)


def _limits(own: Path, root: Path) -> Iterator[int]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, file = (root, "memory.max") if controllers == "" else (root / "memory", "memory.limit_in_bytes")
        inside = PurePosixPath(path.lstrip("/"))
        # A container may see itself at the root, whatever its path says.
        for group in (folder / inside, *(folder / one for one in inside.parents), folder):
            try:
                text = (group / file).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                continue
            if text.isdigit():
                yield int(text)
