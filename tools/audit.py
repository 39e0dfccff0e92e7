"""`python -m tools.audit rust | python`: licences, sources and known advisories of what mitu depends on.

An advisory database that cannot be reached is not a pass: that check is named as not made, and the others count.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"

# What cargo-deny and pip-audit print when a database or index does not answer, as against a finding.
UNREACHABLE = (
    "failed to fetch advisory database",
    "failed to resolve address",
    "failed to connect",
    "ConnectionError",
    "Max retries exceeded",
    "Failed to upgrade",
    "404 Client Error",
    "403 Client Error",
)


def rust() -> int:
    """cargo-deny: bans, licences and sources always, advisories where their database can be had."""
    checked = subprocess.run(["cargo", "deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
    if checked.returncode:
        return checked.returncode
    return _advisories("cargo deny", ["cargo", "deny", "--log-level", "error", "check", "advisories"])


def python() -> int:
    """pip-audit over the pinned versions."""
    requirements = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    return _advisories("pip-audit", [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", *requirements])


def _advisories(name: str, command: list[str]) -> int:
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and any(sign in output for sign in UNREACHABLE):
        print(f"{name}: NOT CHECKED for advisories: the database cannot be reached from here", file=sys.stderr)
        return 0
    print(output, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit({"rust": rust, "python": python}[sys.argv[1]]())
