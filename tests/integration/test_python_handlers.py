"""Python handlers behind a running gateway: what they are told, and what becomes of them in a reload and a drain."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, client_hello, connect, context
from support.gateway import MITU, Gateway, Settings, configuration, health, listener
from support.net import eventually
from support.process import run

from .conftest import Start

TESTS = Path(__file__).parents[1]


def mounted(edge: Pair, *functions: str, **more: Any) -> Settings:
    """Each function of `support.handlers` behind its own name."""
    protocols = ["http/1.1", *({"alpn": name, "handler": f"support.handlers:{name}"} for name in functions)]
    return configuration([listener(edge, protocols=protocols, routes=[health()], **more)])


def start_with(gateway: Start, settings: Settings, *folders: Path) -> Gateway:
    path = os.pathsep.join(map(str, (TESTS, *folders)))
    return gateway(settings, environment={"PYTHONPATH": path}, flags=["--no-watch"])


def speak(gateway: Gateway, authority: Authority, name: str, identity: Pair | None = None) -> ssl.SSLSocket:
    return connect(gateway.address(), context(authority.certificate, [name], identity=identity), name="edge.test")


def line(stream: ssl.SSLSocket) -> bytes:
    """One line, without its end."""
    read = b""
    while not read.endswith(b"\n"):
        piece = stream.recv(1)
        assert piece, read
        read += piece
    return read.removesuffix(b"\n")


class TestWhatItIsTold:
    @pytest.fixture
    def running(self, gateway: Start, authority: Authority, edge: Pair) -> Gateway:
        asks = {"client_auth": "optional", "client_ca": str(authority.certificate)}
        return start_with(gateway, mounted(edge, "shout", "Group.shout", "tell", tls=asks))

    @pytest.mark.parametrize("name", ["shout", "Group.shout"])
    def test_nothing_when_it_takes_two(self, running: Gateway, authority: Authority, name: str) -> None:
        with speak(running, authority, name) as stream:
            stream.sendall(b"hello\n")
            assert line(stream) == b"HELLO"
            stream.sendall(b"bye\n")
            assert Http1(stream).closed()

    def test_whose_connection_it_is(self, running: Gateway, authority: Authority) -> None:
        with speak(running, authority, "tell") as stream:
            told = json.loads(line(stream))
            cipher = stream.cipher()
            assert cipher is not None
            assert told == {
                "client": list(stream.getsockname()), "server": list(stream.getpeername()), "alpn": "tell",
                "server_name": "edge.test", "tls_version": "TLSv1.3", "cipher": cipher[0],
                "client_verified": False, "client_name": None,
            }  # fmt: skip

    def test_who_the_client_is(self, running: Gateway, authority: Authority) -> None:
        device = authority.issue("handler-device", common_name="Gerät 17", client=True)
        with speak(running, authority, "tell", device) as stream:
            told = json.loads(line(stream))
        assert (told["client_verified"], told["client_name"]) == (True, "Gerät 17")

    def test_nobody_is_verified_who_shows_nothing(self, running: Gateway, authority: Authority) -> None:
        stranger = Authority(authority.folder / "stranger", "Another CA").issue("stranger", client=True)
        with pytest.raises(ssl.SSLError), speak(running, authority, "tell", stranger) as stream:
            stream.recv(1)

    def test_its_data_goes_both_ways(self, running: Gateway, authority: Authority) -> None:
        with speak(running, authority, "tell") as stream:
            line(stream)
            for size in (1, 16_384, 300_000):
                data = os.urandom(size)
                stream.sendall(data)
                assert Http1(stream).exactly(size) == data

    def test_many_at_once(self, running: Gateway, authority: Authority) -> None:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(speak(running, authority, "tell")) for _ in range(50)]
            for number, stream in enumerate(streams):
                assert json.loads(line(stream))["client"] == list(stream.getsockname())
                stream.sendall(f"{number}\n".encode())
            for number, stream in enumerate(streams):
                assert line(stream) == str(number).encode()


def test_over_ipv6(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = start_with(gateway, mounted(edge, "tell", bind="[::1]:0"))
    with speak(running, authority, "tell") as stream:
        told = json.loads(line(stream))
        assert told["client"] == list(stream.getsockname()[:2])
        assert told["server"] == ["::1", running.address()[1]]


class TestReload:
    def test_it_is_kept(self, gateway: Start, authority: Authority, edge: Pair) -> None:
        running = start_with(gateway, mounted(edge, "shout"))
        with speak(running, authority, "shout") as stream:
            running.apply(mounted(edge, "shout", "tell"))
            stream.sendall(b"still here\n")
            assert line(stream) == b"STILL HERE"
            with speak(running, authority, "tell") as added:
                assert json.loads(line(added))["alpn"] == "tell"

    def test_it_is_removed_and_comes_back(self, gateway: Start, authority: Authority, edge: Pair) -> None:
        running = start_with(gateway, mounted(edge, "shout", "tell"))
        with speak(running, authority, "shout") as stream:
            running.apply(mounted(edge, "tell"))
            stream.sendall(b"still here\n")
            assert line(stream) == b"STILL HERE"
            with pytest.raises(ssl.SSLError):
                speak(running, authority, "shout").close()
            running.apply(mounted(edge, "shout"))
            with speak(running, authority, "shout") as again:
                again.sendall(b"back\n")
                assert line(again) == b"BACK"

    def test_it_serves_who_had_connected_before_it_was_removed(
        self, gateway: Start, authority: Authority, edge: Pair
    ) -> None:
        """A connection keeps its configuration from its first byte, handshake and all."""
        running = start_with(gateway, mounted(edge, "shout"))
        tls = context(authority.certificate, ["shout"])
        with socket.create_connection(running.address(), timeout=10) as tcp:
            # Accepted, but no further.
            eventually(lambda: running.status()["connections"] == 1)
            running.apply(configuration([listener(edge, routes=[health()])]))
            with tls.wrap_socket(tcp, server_hostname="localhost") as stream:
                stream.sendall(b"early\n")
                assert line(stream) == b"EARLY"

    @pytest.mark.parametrize(
        ("content", "function", "told"),
        [
            (None, "serve", "No module named 'freshly_written'"),
            ("def broken(:\n", "serve", "importing 'freshly_written' fails: SyntaxError"),
            ("raise RuntimeError('no [luck]')\n", "serve", "fails: RuntimeError: no [luck]"),
            ("import nowhere_at_all\n", "serve", "No module named 'nowhere_at_all'"),
            ("x = 1\n", "serve", "is not an 'async def' function of 'freshly_written'"),
            ("x = 1\n", "x", "is not an 'async def' function of 'freshly_written'"),
            ("def serve(reader, writer): ...\n", "serve", "is not an 'async def' function"),
            ("async def serve(reader): ...\n", "serve", "must take (reader, writer) or (reader, writer, connection)"),
        ],
    )
    def test_one_that_cannot_be_mounted_changes_nothing(
        self,
        gateway: Start,
        authority: Authority,
        edge: Pair,
        tmp_path: Path,
        content: str | None,
        function: str,
        told: str,
    ) -> None:
        running = start_with(gateway, mounted(edge, "shout"), tmp_path)
        module = tmp_path / "freshly_written.py"
        if content is not None:
            module.write_text(content)
        settings = mounted(edge, "shout")
        new = {"alpn": "new", "handler": f"freshly_written:{function}"}
        settings["listeners"][0]["protocols"].append(new)
        code, text = running.reload(settings)
        assert (code, told in text.replace("\n", "")) == (1, True), text
        with speak(running, authority, "shout") as stream:
            stream.sendall(b"as before\n")
            assert line(stream) == b"AS BEFORE"
        # Once the module is good, so is the reload.
        module.write_text("async def good(reader, writer):\n    writer.write(b'new\\n')\n")
        new["handler"] = "freshly_written:good"
        if content is None or "fails" in told or "nowhere" in told:
            running.apply(settings)
            with speak(running, authority, "new") as stream:
                assert line(stream) == b"new"


def test_it_stands_beside_the_configuration(gateway: Start, authority: Authority, edge: Pair, tmp_path: Path) -> None:
    """Before any other module of that name, wherever the gateway is started; and `mitu check` finds it, too."""
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    (elsewhere / "beside_it").mkdir(parents=True)
    (elsewhere / "beside_it" / "__init__.py").write_text("async def serve(reader, writer):\n    ...\n")
    (beside / "beside_it").mkdir(parents=True)
    (beside / "beside_it" / "__init__.py").touch()
    (beside / "beside_it" / "spoken.py").write_text(
        "async def serve(reader, writer):\n    import its_neighbour\n    writer.write(its_neighbour.LINE)\n"
    )
    (beside / "its_neighbour.py").write_text("LINE = b'from beside\\n'\n")
    settings = configuration([listener(edge, protocols=[{"alpn": "near", "handler": "beside_it.spoken:serve"}])])
    # As for the installed command, the folder that one is in does not count.
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(elsewhere)}
    running = gateway(settings, wait=False, environment=environment)
    assert running.program.wait() == 1
    assert "No module named 'beside_it.spoken'; put it beside the configuration" in running.program.log
    done = run([*MITU, "check", running.file])
    assert (done.returncode, b"error[E051]" in done.stdout) == (1, True), done.stdout.decode()
    for one in beside.iterdir():
        one.rename(running.folder / one.name)
    done = run([*MITU, "check", running.file])
    assert done.returncode == 0, done.stdout.decode()
    running.restart()
    with speak(running, authority, "near") as stream:
        assert line(stream) == b"from beside"


def test_one_that_cannot_be_mounted_keeps_it_from_starting(gateway: Start, edge: Pair) -> None:
    for name, told in (("greedy", "must take"), ("blocking", "is not an 'async def'"), ("NOTHING", "is not an")):
        environment = {"PYTHONPATH": str(TESTS)}
        running = gateway(mounted(edge, name), environment=environment, wait=False)
        assert running.program.wait() == 1
        assert f"handler 'support.handlers:{name}'" in running.program.log
        assert told in running.program.log.replace("\n", " ")


@pytest.mark.parametrize(("name", "last"), [("broken", "always fails"), ("leave", "goodbye")])
def test_one_that_fails_costs_its_own_connection(
    gateway: Start, authority: Authority, edge: Pair, name: str, last: str
) -> None:
    running = start_with(gateway, mounted(edge, name, "shout"))
    with speak(running, authority, "shout") as other:
        for _ in range(3):
            with speak(running, authority, name) as stream:
                stream.sendall(b"go on\n")
                assert Http1(stream).closed()
        other.sendall(b"and yet\n")
        assert line(other) == b"AND YET"
    eventually(lambda: running.program.log.count(f"'support.handlers:{name}' failed") == 3)
    # In the log's own form, the traceback within.
    failures = [json.loads(one) for one in running.program.log.splitlines() if last in one]
    assert {one["logger"] for one in failures} == {"mitu.handlers"}
    assert all("Traceback" in one["traceback"] for one in failures)


def test_a_client_that_goes_away_is_no_failure(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = start_with(gateway, mounted(edge, "shout", "tell"))
    for name in ("shout", "tell"):
        stream = speak(running, authority, name)
        stream.sendall(b"half a line")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        stream.close()
    eventually(lambda: running.metric("mitu_connections_active") == 0)
    assert running.stop() == 0
    assert "Traceback" not in running.program.log


@pytest.mark.parametrize("end", ["drain", "at once"])
def test_it_is_cancelled_at_the_end(
    gateway: Start, authority: Authority, edge: Pair, tmp_path: Path, end: str
) -> None:
    """When the drain's time is over, or there is none."""
    seconds = "1" if end == "drain" else "0"
    environment = {"PYTHONPATH": str(TESTS), "TMPDIR": str(tmp_path)}
    flags = ["--no-watch", "--drain-timeout", seconds]
    running = gateway(mounted(edge, "stay"), environment=environment, flags=flags)
    noted = tmp_path / "noted"
    with speak(running, authority, "stay") as stream:
        stream.sendall(f"{noted}\n".encode())
        assert line(stream) == b"hello"
        assert list(tmp_path.glob("mitu-*/*.sock"))
        running.program.signal(signal.SIGTERM)
        if end == "drain":
            # Its client is told to leave before the time is over.
            assert Http1(stream).closed()
            stream.close()
        assert running.program.wait() == (0 if end == "drain" else 1), running.program.log
        assert noted.read_text() == "ended"
    assert not list(tmp_path.glob("mitu-*"))


def test_only_its_owner_can_reach_it(gateway: Start, edge: Pair, tmp_path: Path) -> None:
    """Whoever connects to the socket says whose connection it is, so nobody else may."""
    environment = {"PYTHONPATH": str(TESTS), "TMPDIR": str(tmp_path)}
    gateway(mounted(edge, "tell"), environment=environment)
    (folder,) = tmp_path.glob("mitu-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    # And what is not the data plane's is closed without an answer.
    (path,) = folder.glob("*.sock")
    for nonsense in (
        b"hello\n" * 10,
        client_hello(ssl.create_default_context()),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01x",
    ):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5)
            stream.connect(str(path))
            stream.sendall(nonsense)
            assert Http1(stream).closed()
