"""What the integration tests run on: certificates, upstreams, brokers, and gateways as processes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import client_table
from support.certificates import Authority, Pair
from support.gateway import PROVIDERS, Gateway, Settings
from support.net import free_port, wait_for_port
from support.process import Program
from support.servers import Handler, Loop, Server, mirror

EDGE_NAMES = ("localhost", "edge.test", "127.0.0.1")
Start = Callable[..., Gateway]
Serve = Callable[..., Server]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in client_table.summary(terminalreporter.stats):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def edge(authority: Authority) -> Pair:
    """The P-256 certificate of localhost and edge.test."""
    return authority.issue("edge", EDGE_NAMES)


@pytest.fixture(scope="session")
def edge_rsa(authority: Authority) -> Pair:
    """The RSA one for the same names."""
    return authority.issue("edge-rsa", EDGE_NAMES, key="rsa")


@pytest.fixture(scope="module", params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """Each crypto provider that the wheel has: whatever TLS does, it does on all of them."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def clients() -> Iterator[Loop]:
    """A loop for asynchronous clients, apart from the servers'."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def app(loop: Loop) -> Iterator[Server]:
    """An HTTP/1.1 upstream that describes each request in JSON."""
    with Server(loop, mirror) as server:
        yield server


@pytest.fixture
def serve(loop: Loop) -> Iterator[Serve]:
    """Starts servers that end with the test."""
    servers: list[Server] = []

    def start(handler: Handler, **options: Any) -> Server:
        servers.append(Server(loop, handler, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def _gateways() -> Iterator[Start]:
    # Short, since the path of a Unix socket may be 107 bytes long at most.
    root = Path(tempfile.mkdtemp(prefix="mitu-"))
    started: list[Gateway] = []
    numbers = itertools.count()

    def start(settings: Settings, *, wait: bool = True, **options: Any) -> Gateway:
        folder = root / str(next(numbers))
        folder.mkdir()
        gateway = Gateway(folder, settings, **options)
        started.append(gateway)
        return gateway.ready() if wait else gateway

    yield start
    for gateway in started:
        gateway.program.stop()
        print(f"--- {gateway.file}\n{gateway.program.log[-20_000:]}")
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def gateway() -> Iterator[Start]:
    """Starts gateways that end with the test; their logs are shown when it fails."""
    yield from _gateways()


@pytest.fixture(scope="module")
def shared_gateway() -> Iterator[Start]:
    """The same, for gateways that the tests of a module share."""
    yield from _gateways()


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real MQTT broker that takes everybody and every size."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is missing: apt-get install mosquitto")
    folder = tmp_path_factory.mktemp("mosquitto")
    port = free_port()
    file = folder / "mosquitto.conf"
    file.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 1000\n"
        "max_queued_messages 100000\nset_tcp_nodelay true\nlog_type error\nlog_type warning\n"
    )
    with Program([program, "-c", file], folder / "log"):
        wait_for_port(port)
        yield port
