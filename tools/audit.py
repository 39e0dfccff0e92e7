"""`python -m tools.audit rust | python`: licences, sources and known advisories of what mitu depends on.

An advisory database that cannot be reached is not a pass: that check is named as not made, and the others count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import vendor

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS, CONFIG = ROOT / "constraints.txt", ROOT / "deny.toml"

NOT_CHECKED = "NOT CHECKED for advisories: the database cannot be reached from here"


def rust() -> int:
    """cargo-deny: bans, licences and sources always, advisories where their database can be had."""
    deny = ["cargo", "deny", "--log-level", "error", "--config", str(CONFIG), "check"]
    if code := subprocess.run([*deny, "bans", "licenses", "sources"]).returncode:
        return code
    if subprocess.run(["cargo", "deny", "fetch", "db"], capture_output=True).returncode:
        print(f"cargo deny: {NOT_CHECKED}", file=sys.stderr)
        return 0
    if code := subprocess.run([*deny, "advisories"]).returncode:
        return code
    # Patched crates come from a path: advisories are for the releases that they are made of.
    with vendor.project(vendor.RELEASES) as released:
        return subprocess.run([*deny, "advisories"], cwd=released).returncode


def python() -> int:
    """pip-audit over the pinned versions."""
    pinned = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", *pinned]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"pip-audit: {NOT_CHECKED}\n{done.stderr[-500:]}", file=sys.stderr)
        return 0
    unknown = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(unknown) == len(dependencies):
        print(f"pip-audit: {NOT_CHECKED}", file=sys.stderr)
        return 0
    if unknown:
        print(f"pip-audit: NOT CHECKED, not on the index: {', '.join(unknown)}", file=sys.stderr)
    found = [(one, vulnerability) for one in dependencies for vulnerability in one.get("vulns", ())]
    for one, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"pip-audit: {one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit({"rust": rust, "python": python}[sys.argv[1]]())
