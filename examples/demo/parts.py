"""What the demo is made of: certificates, a configuration, and three programs on ports that are free."""

from __future__ import annotations

import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

from mitu.admin.client import AdminClient
from mitu.dev.authority import Authority
from mitu.errors import AdminError

EXAMPLES = Path(__file__).parents[1]
GATEWAY_PORT, APP_PORT, BROKER_PORT = 8470, 8490, 8491
GET_MOSQUITTO = "apt-get install mosquitto mosquitto-clients"

_TRIES = 5
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Part:
    """A program of the demo. It ends with this process, however that ends, or by its process id."""

    def __init__(self, command: Sequence[object], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                # Ctrl-C is for this process, which ends its parts in good order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Whether `ready` comes true while the program runs."""
        deadline = time.monotonic() + _START_TIMEOUT
        while self.alive and time.monotonic() < deadline:
            if ready():
                return True
            time.sleep(0.02)
        return False

    def wait(self) -> None:
        """Until it ends by itself, or Ctrl-C is pressed."""
        with suppress(KeyboardInterrupt):
            self._process.wait()

    def stop(self) -> int:
        """The exit code, after SIGTERM; after SIGKILL where that takes too long, or when Ctrl-C is pressed again."""
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()
        return self._process.wait()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(name: str, preferred: int, launch: Callable[[int], Part], ready: Callable[[int], bool]) -> tuple[Part, int]:
    """A program on the port `preferred`, or on another when that is taken or lost to somebody else meanwhile."""
    said = ""
    for number in range(_TRIES):
        port = _free_port(preferred if number == 0 else 0)
        part = launch(port)
        if part.wait_until(partial(ready, port)):
            return part, port
        part.stop()
        said = part.log.read_text(encoding="utf-8", errors="replace").strip()
    raise DemoError(f"{name} does not start; it said last:\n{said[-2000:]}")


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise DemoError("no port is free on 127.0.0.1")


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the demo keeps what it makes."""

    path: Path

    @property
    def ca(self) -> Path:
        return self.path / "ca.crt"

    @property
    def config(self) -> Path:
        return self.path / "mitu.yaml"

    @property
    def access_log(self) -> Path:
        return self.path / "access.log"

    @property
    def admin_socket(self) -> Path:
        return self.path / "admin.sock"

    def make(self) -> None:
        """The folder, an authority and a certificate for localhost; those that are there are kept."""
        Authority.open(self.path).server(file="edge")

    def start_app(self) -> tuple[Part, int]:
        """The HTTP server."""

        def launch(port: int) -> Part:
            return Part([sys.executable, EXAMPLES / "app.py", port], self.path / "app.log")

        return _start("the HTTP server", APP_PORT, launch, _accepts)

    def start_broker(self) -> tuple[Part, int]:
        """The MQTT broker. DemoError when it does not start."""
        program = which("mosquitto") or "mosquitto"
        file = self.path / "mosquitto.conf"

        def launch(port: int) -> Part:
            # `user`: as root it would become somebody else, and so forget to end with its parent.
            text = f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser {getpass.getuser()}\n"
            file.write_text(text, encoding="utf-8")
            return Part([program, "-c", file], self.path / "mosquitto.log")

        return _start("the MQTT broker", BROKER_PORT, launch, _accepts)

    def start_gateway(self, app: int, broker: int | None) -> tuple[Part, int]:
        """The gateway, as `mitu run` starts it. `broker`: without one, connections to it are refused."""
        self.access_log.unlink(missing_ok=True)
        template = Template(Path(__file__).with_name("mitu.yaml.in").read_text(encoding="utf-8"))

        def launch(port: int) -> Part:
            text = template.substitute(port=port, app=app, broker=broker or BROKER_PORT)
            self.config.write_text(text, encoding="utf-8")
            command = [sys.executable, "-m", "mitu", "run", self.config]
            return Part(command, self.path / "gateway.log", PYTHONPATH=str(EXAMPLES / "handler"))

        def serves(_: int) -> bool:
            try:
                return bool(AdminClient(self.admin_socket).get("/status")["state"] == "serving")
            except AdminError:
                return False

        return _start("the gateway", GATEWAY_PORT, launch, serves)


def which(program: str) -> str | None:
    """Also where only root looks."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
