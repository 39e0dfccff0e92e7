"""The gateway as a process of its own, asked over its admin socket."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from support import activate
from support.certificates import Pair
from support.client import Address
from support.net import eventually
from support.process import Program, run

Settings = dict[str, Any]
PROVIDERS = ("aws-lc", "boringssl")
MITU = (sys.executable, "-m", "mitu.cli")


def listener(certificate: Pair | Sequence[Pair], **settings: Any) -> Settings:
    """A listener `edge` on a free port for h2 and http/1.1; `settings` replace or add, `tls` is merged."""
    pairs = [certificate] if isinstance(certificate, Pair) else certificate
    tls = {"certificates": [pair.configured() for pair in pairs], **settings.pop("tls", {})}
    defaults: Settings = {"name": "edge", "bind": "127.0.0.1:0", "protocols": ["h2", "http/1.1"]}
    return {**defaults, "tls": tls, **settings}


def health() -> Settings:
    """The route of the smallest useful configuration."""
    answer = {"status": 200, "content_type": "application/json", "body": '{"ok":true}'}
    return {"match": {"path": "/health"}, "respond": answer}


def to_app(**settings: Any) -> Settings:
    """A route that sends everything to the upstream `app`."""
    return {"match": {"path_prefix": "/"}, "upstream": "app", **settings}


def upstream(name: str, *endpoints: object, **settings: Any) -> Settings:
    return {"name": name, "endpoints": list(endpoints), **settings}


def configuration(listeners: Sequence[Settings], *upstreams: Settings, **settings: Any) -> Settings:
    return {"runtime": {"workers": 1}, "listeners": list(listeners), "upstreams": list(upstreams), **settings}


def on(provider: str, settings: Settings) -> Settings:
    """`settings` with every listener on this crypto provider."""
    listeners = [one | {"tls": one["tls"] | {"provider": provider}} for one in settings["listeners"]]
    return settings | {"listeners": listeners}


class Gateway:
    """A gateway that runs from a configuration file in `folder`.

    `wrapper`: words in front of the command; `flags`: words behind it; `inherited`: sockets by name, as from systemd.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        wrapper: Sequence[str] = (),
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        inherited: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.folder = folder
        self.file = folder / "mitu.yaml"
        # Socket addresses hold 107 bytes, which pytest's folders can exceed; the gateway runs in this folder.
        self.socket = folder / "admin.sock"
        self._wrapper, self._flags, self._environment = wrapper, flags, environment
        self._inherited = inherited
        self.write(settings)
        self.program = self._launch()

    def write(self, settings: Settings) -> None:
        """Write the configuration file whole; JSON is YAML."""
        settings = {"admin": {"socket": str(self.socket)}, **settings}
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        aside.replace(self.file)

    def _launch(self) -> Program:
        command: list[object] = [*self._wrapper, *MITU, "run", self.file, *self._flags]
        if self._inherited:
            named = [f"{name}={descriptor}" for name, descriptor in self._inherited]
            command = [sys.executable, activate.__file__, *named, "--", *command]
        return Program(
            command,
            self.folder / "gateway.log",
            environment=self._environment,
            descriptors=[descriptor for _, descriptor in self._inherited],
        )

    def restart(self) -> Self:
        """Start again after its end, from the same file."""
        assert not self.program.alive()
        self.program = self._launch()
        return self.ready()

    def ready(self, timeout: float = 20) -> Self:
        """Wait until it serves. AssertionError with its log when it does not."""

        def serving() -> bool:
            if not self.program.alive():
                raise RuntimeError(f"the gateway ended with {self.program.process.returncode}:\n{self.program.log}")
            return bool(self.addresses())

        eventually(serving, timeout)
        return self

    def admin(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an admin request. OSError when nobody listens."""
        connection = http.client.HTTPConnection("admin", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.socket))
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        status, body = self.admin(path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def status(self) -> Settings:
        found: Settings = self.json("/status")
        return found

    def addresses(self) -> dict[str, str]:
        """Bound `host:port` by listener."""
        return {one["name"]: one["address"] for one in self.status()["listeners"]}

    def address(self, name: str = "edge") -> Address:
        host, _, port = self.addresses()[name].rpartition(":")
        return host.strip("[]"), int(port)

    def metrics(self) -> str:
        status, body = self.admin("/metrics")
        assert status == 200, body
        return body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples `name` that carry `labels`."""
        found = 0.0
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found += sample.value
        return found

    def logged(self, file: str = "access.log") -> list[Settings]:
        """The access log's lines so far. The last one can be half there: a file that is written grows by pages."""
        text = (self.folder / file).read_bytes()
        return [json.loads(line) for line in text.split(b"\n")[:-1]]

    def reload(self, settings: Settings | None = None) -> tuple[int, str]:
        """Run `mitu reload`, after writing `settings`; its exit code and what it says."""
        if settings is not None:
            self.write(settings)
        done = self.mitu("reload")
        return done.returncode, done.stdout + done.stderr

    def apply(self, settings: Settings) -> None:
        """Make `settings` live; AssertionError when they are refused."""
        self.write(settings)
        status, body = self.admin("/reload", "POST")
        assert status == 200, body.decode()

    def mitu(self, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run `mitu COMMAND` on this gateway."""
        # pytest's readline sets a width of 80 for its children.
        done = run(["env", "--unset=COLUMNS", *MITU, command, *flags, "--socket", self.socket], timeout=60)
        out, errors = (stream.decode() for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, errors)

    def stop(self) -> int:
        return self.program.stop()


def parse(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Prometheus text: labels and value of every sample, by its name."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples
