"""Where the benchmarks find programs, and where they build those that nobody installs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cache() -> Path:
    """The folder for built peers, outside the checkout; `XDG_CACHE_HOME` moves it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mitu" / "benchmarks"


def find_program(name: str) -> Path | None:
    """`name` beside this Python (as wheels install programs), then on the path and in the system folders."""
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    return Path(found) if found else None


def load_generator() -> Path:
    """Where cargo puts `mitu-load`'s release build, whether or not it is there."""
    target = os.environ.get("CARGO_TARGET_DIR") or ROOT / "target"
    return Path(target) / "release" / "mitu-load"
