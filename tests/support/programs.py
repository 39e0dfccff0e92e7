"""`python -m support.programs list | install`: the programs that tests run, and how to get those that are missing.

`list` names them, with the tests that wait; `install` gets them, as root with apt-get. Versions are Debian's, so that
what is tested against is what people have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import go_servers

CARGO_DENY = "0.20.2"
OHA = "1.16.0"
H2SPEC = "v2.2.1+incompatible"


@dataclass(frozen=True)
class Wanted:
    """A program, or with `library` a Python module, and how to get it."""

    name: str
    package: str = ""
    """The Debian package; without one, `get` says what to do."""
    command: Sequence[str] = ()
    """What installs it where no package does."""
    get: str = ""
    optional: bool = False
    """Large, and slow to build: without it its tests are skipped and say so, and all others are run."""

    @property
    def advice(self) -> str:
        return self.get or (f"apt-get install {self.package}" if self.package else " ".join(self.command))

    def found(self) -> bool:
        return which(self.name) is not None


WANTED = {
    one.name: one
    for one in (
        Wanted("curl", "curl"),
        Wanted("openssl", "openssl"),
        Wanted("wget", "wget"),
        Wanted("gnutls-cli", "gnutls-bin"),
        Wanted("java", "default-jdk-headless"),
        Wanted("h2load", "nghttp2-client"),
        Wanted("wrk", "wrk"),
        Wanted("mosquitto", "mosquitto"),
        Wanted("mosquitto_pub", "mosquitto-clients"),
        Wanted("chromium", "chromium"),
        Wanted("certutil", "libnss3-tools"),
        Wanted("systemd-socket-activate", "systemd"),
        Wanted("update-ca-certificates", "ca-certificates"),
        Wanted("systemd-analyze", "systemd"),
        Wanted("zsh", "zsh"),
        Wanted("fish", "fish"),
        Wanted("nginx", "nginx-light"),
        Wanted("haproxy", "haproxy"),
        Wanted("nsd", "nsd"),
        Wanted("go", get="install Go 1.25 or newer from https://go.dev/dl"),
        Wanted("node", get="install Node.js 20 or newer from https://nodejs.org"),
        *(
            Wanted(name, command=(sys.executable, "-m", "support.go_servers", name), optional=True)
            for name in ("consul", "etcd", "kube-apiserver", "kubectl")
        ),
        Wanted("h2spec", command=("go", "install", f"github.com/summerwind/h2spec/cmd/h2spec@{H2SPEC}")),
        Wanted("oha", command=("cargo", "install", "--locked", f"oha@{OHA}", "--features", "http3")),
        Wanted("cargo-deny", command=("cargo", "install", "--locked", f"cargo-deny@{CARGO_DENY}")),
    )
}


def which(name: str) -> str | None:
    """The program's path, also where only root looks, where Go puts what it installs, and among what is built."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", str(Path.home() / "go" / "bin")]
    return go_servers.find(name) or shutil.which(name, path=os.pathsep.join(places))


def missing() -> list[Wanted]:
    return [one for one in WANTED.values() if not one.found()]


def show() -> int:
    """Names what is missing. Never an error: the tests that wait for it say so when they are skipped."""
    for one in missing():
        print(f"{one.name} is missing, and the tests that need it will be skipped: {one.advice}")
    return 0


def install() -> int:
    """Gets what can be had; the exit code says whether all of it could that is not optional."""
    packages = [one.package for one in missing() if one.package]
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        # The programs are wanted, not the services that their packages would start.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        get = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
        subprocess.run([*get, "update"], env=environment, check=False)
        subprocess.run([*get, "install", "--no-install-recommends", *packages], env=environment, check=False)
    for one in missing():
        if one.command and shutil.which(one.command[0]):
            subprocess.run(one.command, check=False)
    show()
    return 1 if any(not one.optional for one in missing()) else 0


if __name__ == "__main__":
    sys.exit({"list": show, "install": install}[sys.argv[1]]())
