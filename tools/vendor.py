"""`python -m tools.vendor [--check]`: vendor/ has the releases that are named here, each with its patch applied.

Without `--check` the folders are made anew: after a version or a patch was changed. Why they are there: docs/adr/0011
and 0014.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

RELEASES = {"h2": "0.4.20", "quinn": "0.11.12"}
VENDOR = Path(__file__).resolve().parents[1] / "vendor"
#: Of a crate's manifest: what needs files or crates that are only for its own tests.
_UNUSED = re.compile(
    r"^\[\[(example|test|bench)\]\]\n.*?(?=^\[)|^\[dev-dependencies\..*?(?=^\[)", re.MULTILINE | re.DOTALL
)
#: Of its files: what is built, and what its licence asks to keep.
_USED = ("src", "build.rs", "LICENSE*")


def make(folder: Path) -> None:
    """Put the patched crates into `folder`. CalledProcessError: there is no such release, or a patch does not fit."""
    with project(RELEASES) as released:
        subprocess.run(["cargo", "vendor", "--quiet", "crates"], cwd=released, check=True, stdout=subprocess.DEVNULL)
        for name in RELEASES:
            crate, made = released / "crates" / name, folder / name
            made.mkdir()
            for used in (path for pattern in _USED for path in crate.glob(pattern)):
                (shutil.copytree if used.is_dir() else shutil.copy)(used, made / used.name)
            (made / "Cargo.toml").write_text(_UNUSED.sub("", (crate / "Cargo.toml").read_text()))
            patch = VENDOR / f"{name}.patch"
            subprocess.run(["git", "apply", "--whitespace=nowarn", patch], cwd=made, check=True)


def newest(name: str) -> str | None:
    """The newest release of it that would do; None when the registry cannot be asked."""
    with project({name: RELEASES[name].rpartition(".")[0]}) as latest:
        if subprocess.run(["cargo", "generate-lockfile", "--quiet"], cwd=latest, capture_output=True).returncode:
            return None
        locked = tomllib.loads((latest / "Cargo.lock").read_text())["package"]
        return next(str(one["version"]) for one in locked if one["name"] == name)


@contextmanager
def project(versions: Mapping[str, str]) -> Iterator[Path]:
    """The folder of a project that depends on these crates, as crates.io has them, and on nothing else.

    A version is a whole one, or the beginning of those that would do.
    """
    released = '{} = {{ version = "={}", default-features = false }}\n'
    dependencies = "".join(released.format(name, version) for name, version in versions.items())
    manifest = f'[package]\nname = "vendoring"\nedition = "2024"\n[dependencies]\n{dependencies}[workspace]\n'
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


def _check() -> int:
    with TemporaryDirectory() as made:
        try:
            make(Path(made))
        except subprocess.CalledProcessError as error:
            if error.cmd[0] != "cargo":
                raise
            print("vendor: NOT CHECKED: the registry cannot be reached from here", file=sys.stderr)
            return 0
        for name, version in RELEASES.items():
            if different := _differences(Path(made) / name, VENDOR / name):
                files = ", ".join(different)
                print(f"vendor/{name} is not {name} {version} with vendor/{name}.patch: {files}", file=sys.stderr)
                print("make it anew: python -m tools.vendor", file=sys.stderr)
                return 1
    for name, version in RELEASES.items():
        current = newest(name)
        if current is None:
            print(f"vendor/{name}: NOT CHECKED for a newer release: the registry cannot be reached", file=sys.stderr)
        elif current != version:
            print(f"vendor/{name}: {current} is out; name it in tools/vendor.py and make it anew", file=sys.stderr)
    return 0


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code."""
    if arguments == ["--check"]:
        return _check()
    with TemporaryDirectory() as made:
        make(Path(made))
        for name in RELEASES:
            shutil.rmtree(VENDOR / name, ignore_errors=True)
            shutil.copytree(Path(made) / name, VENDOR / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
