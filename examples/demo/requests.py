"""One request on each protocol: what is typed, what comes back, and what the access log says of it."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLIENT = Path(__file__).with_name("client.py")
_LOG_TIMEOUT = 10.0
_RUN_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """`script`: shell commands as they would be typed. `expected`: what has to be in their output."""

    protocol: str
    script: str
    expected: str
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """`log`: the lines of the access log on the request's connections."""

    request: Request
    text: str
    log: list[dict[str, Any]]

    @property
    def ok(self) -> bool:
        return self.request.expected in self.text and len(self.log) == self.request.connections


def requests(port: int, ca: str, *, broker: bool) -> Iterator[Request]:
    """In the order in which they are shown. `broker`: whether there is one to relay to."""
    ca = shlex.quote(ca)
    # Python stands in for clients that this machine lacks.
    client = f"{shlex.join([sys.executable, str(_CLIENT)])} localhost:{port} {ca}"
    curl = shutil.which("curl") is not None
    for name, alpn, flag in (("HTTP/1.1", "http/1.1", "--http1.1"), ("HTTP/2", "h2", "--http2")):
        script = f"curl -s {flag} --cacert {ca} https://localhost:{port}/hello | head -1"
        yield Request(name, script if curl else f"{client} {alpn} /hello | head -1", "app answers GET /hello")
    # Few curls speak it: the tests' library does.
    if importlib.util.find_spec("aioquic") is not None:
        yield Request("HTTP/3", f"{client} h3 /hello | head -1", "app answers GET /hello")
    if broker:
        yield _mqtt(f"--tls-alpn mqtt --cafile {ca} -p {port} -t temperature")
    openssl = shutil.which("openssl") is not None
    s_client = f"openssl s_client -quiet -alpn private/1 -CAfile {ca} -connect localhost:{port}"
    say = r"printf 'temperature 20\ntemperature 23\nmean temperature\nbye\n' |"
    yield Request("private/1", f"{say}\n{s_client if openssl else f'{client} private/1'}", "ok\nok\n21.5")
    told = "alert no application protocol"
    refused = f"openssl s_client -alpn smtp -connect localhost:{port} </dev/null 2>&1 |\ngrep -o '{told}'"
    yield Request("smtp", refused if openssl else f"{client} smtp", told)


def _mqtt(options: str) -> Request:
    script = f"mosquitto_pub {options} -m 21.5 -r\nmosquitto_sub {options} -C 1"
    return Request("MQTT", script, "21.5", connections=2)


def ask(request: Request, log: Path) -> Answer:
    """Make a request, and wait for its connections in the access log."""
    before = log.stat().st_size if log.exists() else 0
    try:
        done = subprocess.run(
            ["sh", "-c", request.script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(request, f"no answer in {_RUN_TIMEOUT:g} s", [])
    text = done.stdout.strip() or done.stderr.strip()
    return Answer(request, text, _connections(log, before, request.connections))


def _connections(log: Path, offset: int, count: int) -> list[dict[str, Any]]:
    """The first `count` connections behind `offset`: each has its line when it ends."""
    deadline = time.monotonic() + _LOG_TIMEOUT
    while True:
        found = [line for line in _lines(log, offset) if line["event"] in ("connection", "handshake_failed")]
        if len(found) >= count or time.monotonic() > deadline:
            return found[:count]
        time.sleep(0.02)


def _lines(log: Path, offset: int) -> Iterator[dict[str, Any]]:
    if not log.exists():
        return
    with log.open("rb") as stream:
        stream.seek(offset)
        for line in stream.read().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)
