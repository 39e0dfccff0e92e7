"""`python -m tools.vendor [--check]`: vendor/h2 is the release of h2 named here, with vendor/h2.patch applied.

Without `--check` the folder is made anew: after `VERSION` or the patch was changed. Why it is there: docs/adr/0011.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

VERSION = "0.4.20"
VENDOR = Path(__file__).resolve().parents[1] / "vendor"
#: Of the crate's manifest: what needs files or crates that are only for its own tests.
_UNUSED = re.compile(r"^\[\[(example|bench)\]\]\n.*?(?=^\[)|^\[dev-dependencies\..*?(?=^\[)", re.MULTILINE | re.DOTALL)


def make(folder: Path) -> None:
    """Put the patched crate into `folder`. CalledProcessError: there is no such release, or the patch does not fit."""
    with project(f"={VERSION}") as released:
        subprocess.run(["cargo", "vendor", "--quiet", "crates"], cwd=released, check=True, stdout=subprocess.DEVNULL)
        crate = released / "crates" / "h2"
        shutil.copytree(crate / "src", folder / "src")
        shutil.copy(crate / "LICENSE", folder)
        (folder / "Cargo.toml").write_text(_UNUSED.sub("", (crate / "Cargo.toml").read_text()))
    subprocess.run(["git", "apply", "--whitespace=nowarn", VENDOR / "h2.patch"], cwd=folder, check=True)


def newest() -> str | None:
    """The newest release that would do; None when the registry cannot be asked."""
    with project("0.4") as latest:
        if subprocess.run(["cargo", "generate-lockfile", "--quiet"], cwd=latest, capture_output=True).returncode:
            return None
        locked = tomllib.loads((latest / "Cargo.lock").read_text())["package"]
        return next(str(one["version"]) for one in locked if one["name"] == "h2")


@contextmanager
def project(version: str) -> Iterator[Path]:
    """The folder of a project that depends on this h2, as crates.io has it, and on nothing else."""
    manifest = f'[package]\nname = "vendoring"\nedition = "2024"\n[dependencies]\nh2 = "{version}"\n[workspace]\n'
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Cargo.toml").write_text(manifest)
        (folder / "src").mkdir()
        (folder / "src" / "lib.rs").touch()
        yield folder


def _differences(one: Path, other: Path) -> list[str]:
    """Files that are not the same in both, or only in one."""
    files = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    _, different, missing = filecmp.cmpfiles(one, other, [str(file) for file in files], shallow=False)
    return sorted([*different, *missing])


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code."""
    if arguments != ["--check"]:
        shutil.rmtree(VENDOR / "h2", ignore_errors=True)
        (VENDOR / "h2").mkdir()
        make(VENDOR / "h2")
        return 0
    with TemporaryDirectory() as name:
        made = Path(name)
        try:
            make(made)
        except subprocess.CalledProcessError as error:
            if error.cmd[0] != "cargo":
                raise
            print("vendor/h2: NOT CHECKED: the registry cannot be reached from here", file=sys.stderr)
            return 0
        if different := _differences(made, VENDOR / "h2"):
            print(f"vendor/h2 is not h2 {VERSION} with vendor/h2.patch: {', '.join(different)}", file=sys.stderr)
            print("make it anew: python -m tools.vendor", file=sys.stderr)
            return 1
    current = newest()
    if current is None:
        print("vendor/h2: NOT CHECKED for a newer release: the registry cannot be reached from here", file=sys.stderr)
    elif current != VERSION:
        print(f"vendor/h2: h2 {current} is out; set VERSION in tools/vendor.py and make it anew", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
