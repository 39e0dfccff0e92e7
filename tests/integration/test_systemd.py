"""systemd's side of a gateway: inherited sockets, notifications, and the units in `deploy/systemd`."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Address, Http1
from support.gateway import Settings, configuration, listener
from support.net import eventually, free_port
from support.process import output, run
from support.steady import Steady

from .conftest import Start

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


def says(text: str) -> Settings:
    return {"match": {"path_prefix": "/"}, "respond": {"body": text}}


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """A listening socket, as systemd holds it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as holder:
        yield holder


def heard(address: Address, authority: Authority) -> str:
    with Http1.open(address, authority.certificate) as client:
        return client.request("/").body.decode()


class TestInheritedSockets:
    def test_a_single_listener_takes_them_all(
        self, gateway: Start, authority: Authority, edge: Pair, held: socket.socket
    ) -> None:
        settings = configuration([listener(edge, bind="127.0.0.1:1", routes=[says("one")])], runtime={"workers": 2})
        with socket.create_server(("127.0.0.1", 0)) as other:
            gateway(settings, inherited=[("mitu.socket", held.fileno()), ("", other.fileno())])
            for one in (held, other):
                for _ in range(4):
                    assert heard(one.getsockname(), authority) == "one"

    def test_names_tell_whose_they_are(
        self, gateway: Start, authority: Authority, edge: Pair, held: socket.socket
    ) -> None:
        listeners = [listener(edge, name=name, routes=[says(name)]) for name in ("left", "right")]
        with socket.create_server(("127.0.0.1", 0)) as other:
            handed = [("right", held.fileno()), ("left", other.fileno())]
            running = gateway(configuration(listeners), inherited=handed)
            assert heard(held.getsockname(), authority) == "right"
            assert heard(other.getsockname(), authority) == "left"
            assert running.address("left") == other.getsockname()

    def test_a_reload_keeps_them(self, gateway: Start, authority: Authority, edge: Pair, held: socket.socket) -> None:
        """Though their address is not the one in the configuration."""
        bind = f"127.0.0.1:{free_port()}"
        running = gateway(
            configuration([listener(edge, bind=bind, routes=[says("one")])]), inherited=[("edge", held.fileno())]
        )
        running.apply(configuration([listener(edge, bind=bind, routes=[says("two")])]))
        assert running.address() == held.getsockname()
        assert heard(held.getsockname(), authority) == "two"

    def test_another_process_is_meant(
        self, gateway: Start, authority: Authority, edge: Pair, held: socket.socket
    ) -> None:
        settings = configuration([listener(edge, routes=[says("one")])])
        handed = [("edge", held.fileno())]
        running = gateway(settings, inherited=handed, environment={"LISTEN_PID": "1"})
        assert running.address() != held.getsockname()
        assert heard(running.address(), authority) == "one"

    def refused(self, gateway: Start, edge: Pair, handed: list[tuple[str, int]]) -> str:
        listeners = [listener(edge, name=name, routes=[says(name)]) for name in ("left", "right")]
        running = gateway(configuration(listeners), inherited=handed, wait=False)
        assert running.program.wait() == 1
        return running.program.log

    def test_a_name_that_no_listener_has(self, gateway: Start, edge: Pair, held: socket.socket) -> None:
        told = self.refused(gateway, edge, [("middle", held.fileno())])
        assert "the inherited socket 'middle' is no listener's" in told
        assert "left, right" in told

    def test_a_socket_that_is_no_listener(self, gateway: Start, edge: Pair, tmp_path: Path) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket() as idle,
            socket.socket(socket.AF_UNIX) as local,
            (tmp_path / "file").open("w") as file,
        ):
            for one in (datagrams, idle, local, file):
                told = self.refused(gateway, edge, [("left", one.fileno())])
                assert "the inherited socket 'left' is no listening TCP socket" in told, told

    @pytest.mark.needs("systemd-socket-activate")
    def test_systemd_socket_activate(self, gateway: Start, authority: Authority, edge: Pair) -> None:
        """It starts the gateway when the first client comes."""
        port = free_port()
        activate = ("systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=edge")
        settings = configuration([listener(edge, bind="127.0.0.1:1", routes=[says("one")])])
        running = gateway(settings, wrapper=activate, wait=False)
        eventually(lambda: "Listening on" in running.program.log)
        with Http1.open(("127.0.0.1", port), authority.certificate, timeout=30) as client:
            assert client.request("/").body == b"one"
        # Clients are served before the admin socket is there.
        assert running.ready().address() == ("127.0.0.1", port)


def test_gateways_swap_on_one_socket(
    gateway: Start, authority: Authority, edge: Pair, held: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each takes over from the one before, once while both serve and once with nobody there for a while."""
    settings = configuration([listener(edge, routes=[says("one")])])
    handed = [("edge", held.fileno())]
    address = held.getsockname()
    current = gateway(settings, inherited=handed)
    clients = Steady(address, authority.certificate, ["/"], each=2)
    for overlapping in (True, False, True, False):
        time.sleep(0.5)
        if overlapping:
            following = gateway(settings, inherited=handed)
        current.program.signal(signal.SIGTERM)
        assert current.program.wait() == 0, current.program.log
        if not overlapping:
            following = gateway(settings, inherited=handed)
        assert eventually(partial(following.metric, "mitu_connections_accepted_total"))
        current = following
    clients.stop()
    with capsys.disabled():
        print(f"\n4 swaps on one socket: {clients.count.answered:,} requests, {len(clients.count.failures)} failed")
    assert clients.count.failures == []
    assert clients.unreachable == 0
    assert clients.count.answered > 100


class Manager:
    """systemd's end of `NOTIFY_SOCKET`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self) -> dict[str, str]:
        """One message; TimeoutError when none comes."""
        self._socket.settimeout(20)
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(
        str(tmp_path / "notify") if request.param == "path" else f"@mitu-test-{tmp_path.name}-{id(request)}"
    )
    yield made
    made.close()


def monotonic_microseconds() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_systemd_is_told(gateway: Start, edge: Pair, manager: Manager) -> None:
    settings = configuration([listener(edge, routes=[says("one")])])
    running = gateway(settings, environment={"NOTIFY_SOCKET": manager.address}, flags=["--no-watch"])
    ready = manager.next()
    assert ready["READY"] == "1"
    assert running.addresses()["edge"] in ready["STATUS"]

    def reloads() -> dict[str, str]:
        begun = manager.next()
        assert begun["RELOADING"] == "1"
        assert before <= int(begun["MONOTONIC_USEC"]) <= monotonic_microseconds()
        ended = manager.next()
        assert ended["READY"] == "1"
        return ended

    before = monotonic_microseconds()
    running.write(configuration([listener(edge, routes=[says("two")])]))
    running.program.signal(signal.SIGHUP)
    assert reloads()["STATUS"] != ready["STATUS"]
    # One that is refused ends as well, or systemd would wait for it until its time is over.
    before = monotonic_microseconds()
    running.file.write_text("listeners: [")
    running.program.signal(signal.SIGHUP)
    reloads()
    before = monotonic_microseconds()
    running.admin("/reload", "POST")
    reloads()
    running.program.signal(signal.SIGTERM)
    assert manager.next()["STOPPING"] == "1"
    assert running.program.wait() == 0


def test_a_manager_that_has_gone_costs_nothing(gateway: Start, authority: Authority, edge: Pair) -> None:
    settings = configuration([listener(edge, routes=[says("one")])])
    running = gateway(settings, environment={"NOTIFY_SOCKET": "/nowhere/notify"})
    assert heard(running.address(), authority) == "one"
    assert "cannot notify systemd" in running.program.log


@pytest.mark.needs("systemd-analyze")
class TestUnits:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The units, with a program that is there and what an older systemd knows instead of `notify-reload`."""
        old = int(re.search(r"systemd (\d+)", output(["systemd-analyze", "--version"]))[1]) < 253  # type: ignore[index]
        for unit in UNITS.iterdir():
            text = unit.read_text().replace("/usr/local/bin/mitu", shutil.which("true") or "/bin/true")
            (tmp_path / unit.name).write_text(text.replace("Type=notify-reload", "Type=notify") if old else text)
        return tmp_path

    def test_systemd_understands_them(self, folder: Path) -> None:
        assert sorted(unit.name for unit in folder.iterdir()) == ["mitu.service", "mitu.socket"]
        done = run(["systemd-analyze", "verify", "--man=no", *sorted(folder.iterdir())])
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", "")

    def test_a_mistake_would_be_noticed(self, folder: Path) -> None:
        service = folder / "mitu.service"
        service.write_text(service.read_text().replace("ProtectHome=yes", "ProtectHouse=yes"))
        assert b"ProtectHouse" in run(["systemd-analyze", "verify", "--man=no", service]).stderr

    def test_the_service_is_locked_down(self, folder: Path) -> None:
        command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", folder / "mitu.service"]
        done = run(command)
        assert done.returncode == 0, done.stdout.decode()[-200:]

    def test_the_service_reloads_and_ends_as_the_gateway_does(self) -> None:
        text = (UNITS / "mitu.service").read_text()
        settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        assert settings["Type"] == "notify-reload"
        assert settings["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
        drain = re.search(r"--drain-timeout (\d+)", settings["ExecStart"])
        assert drain is not None
        assert int(settings["TimeoutStopSec"]) > int(drain[1])
        assert "WatchdogSec" not in settings
