"""`python -m support.go_servers NAME…`: servers that tests need, built from their Go modules.

Their releases cannot be installed with `go install`, since they replace modules: a wrapper module requires them. What
is built stays in `~/.cache/mitu/servers`, by name and version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "1.37.2"


@dataclass(frozen=True)
class GoServer:
    """Programs in `module`: the package of each, by its name."""

    module: str
    version: str
    programs: Mapping[str, str]
    staged: str = ""
    """The version of the modules that it has in its `staging` folder and publishes apart."""

    def path(self, name: str) -> Path:
        return cache() / f"{name}-{self.version}" / name


SERVERS = (
    # Licences: MPL 2.0. Newer releases need submodules that are not published.
    GoServer("github.com/hashicorp/consul", "v1.12.9", {"consul": "github.com/hashicorp/consul"}),
    # Debian's is too old for a current API server.
    GoServer("go.etcd.io/etcd/server/v3", "v3.7.3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    GoServer(
        "k8s.io/kubernetes",
        f"v{KUBERNETES}",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kubectl")},
        staged=f"v0.{KUBERNETES.removeprefix('1.')}",
    ),
)


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mitu" / "servers"


def find(name: str) -> str | None:
    """The program's path, if it has been built."""
    found = [path for server in SERVERS if name in server.programs and (path := server.path(name)).exists()]
    return str(found[0]) if found else None


def build(name: str) -> None:
    """Build the server that `name` belongs to, unless that is done. CalledProcessError when it fails."""
    server = next(one for one in SERVERS if name in one.programs)
    if all(server.path(program).exists() for program in server.programs):
        return
    with tempfile.TemporaryDirectory() as folder:
        _require(server, Path(folder))
        for program, package in server.programs.items():
            to = server.path(program)
            to.parent.mkdir(parents=True, exist_ok=True)
            built = Path(folder) / program
            _go(Path(folder), "build", "-trimpath", "-ldflags=-s -w", "-o", str(built), package)
            # In one step, so that nobody finds half of it.
            shutil.move(built, to.with_suffix(".new"))
            to.with_suffix(".new").replace(to)


def _require(server: GoServer, folder: Path) -> None:
    staged = _staged_modules(server) if server.staged else []
    lines = [
        "module wrapper",
        "go 1.25",
        f"require {server.module} {server.version}",
        *(f"replace {module} => {module} {server.staged}" for module in staged),
    ]
    (folder / "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
    imports = "\n".join(f'import _ "{package}"' for package in server.programs.values())
    (folder / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\n{imports}\n", encoding="utf-8")
    _go(folder, "mod", "tidy", "-e")


def _staged_modules(server: GoServer) -> list[str]:
    command = ["go", "mod", "download", "-json", f"{server.module}@{server.version}"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    edit = ["go", "mod", "edit", "-json", told["GoMod"]]
    replaces = json.loads(subprocess.run(edit, check=True, capture_output=True, text=True).stdout)["Replace"]
    return [one["Old"]["Path"] for one in replaces if one["New"]["Path"].startswith("./staging/")]


def _go(folder: Path, *command: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    subprocess.run(["go", *command], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        build(wanted)
