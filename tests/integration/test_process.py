"""The gateway as a process: how it starts, what it survives, and what it says when it cannot start."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, client_hello, connect, context
from support.gateway import MITU, Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually, free_port
from support.process import run
from support.servers import Server, echo, mirror

from .conftest import Serve, Start


def served(gateway: Gateway, authority: Authority, path: str = "/health") -> int:
    with Http1.open(gateway.address(), authority.certificate) as client:
        return client.request(path).status


def fixed(edge: Pair, **settings: object) -> Settings:
    """On one port, so that a second start wants the same."""
    return configuration([listener(edge, bind=f"127.0.0.1:{free_port()}", routes=[health()], **settings)])


def test_killed_and_started_again_at_once(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(fixed(edge))
    for _ in range(3):
        # Connections that the kernel has to clean up after.
        with Http1.open(running.address(), authority.certificate) as client:
            assert client.request("/health").status == 200
            running.program.process.kill()
            assert running.program.wait() == -signal.SIGKILL
            assert running.socket.exists(), "nothing was left behind to be replaced"
            running.restart()
        assert served(running, authority) == 200


def test_stopped_and_started_again_at_once(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(fixed(edge))
    assert running.stop() == 0
    assert not running.socket.exists()
    running.restart()
    assert served(running, authority) == 200


def test_a_second_one_is_refused(gateway: Start, authority: Authority, edge: Pair) -> None:
    """The first does not notice, and once it has gone the second may have its place."""
    settings = configuration([listener(edge, routes=[health()])])
    running = gateway(settings)
    settings["admin"] = {"socket": str(running.socket)}
    second = gateway(settings, wait=False)
    assert second.program.wait() == 1
    told = second.program.log.replace("\n", "")
    assert f"the gateway with process id {running.program.pid} has the admin socket {running.socket}" in told
    assert served(running, authority) == 200
    assert running.stop() == 0
    second.socket = running.socket
    second.restart()
    assert served(second, authority) == 200


def test_a_port_that_is_taken(gateway: Start, edge: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        running = gateway(configuration([listener(edge, bind=bind, routes=[health()])]), wait=False)
        assert running.program.wait() == 1
    assert f"listener 'edge': cannot bind {bind}: Address already in use" in running.program.log
    assert "another program has this port" in running.program.log
    assert not running.socket.exists()


def test_an_address_that_is_not_here(gateway: Start, edge: Pair) -> None:
    running = gateway(configuration([listener(edge, bind="192.0.2.1:0", routes=[health()])]), wait=False)
    assert running.program.wait() == 1
    assert "cannot bind 192.0.2.1:0: Cannot assign requested address" in running.program.log


def test_two_workers_share_a_port_and_no_other_program_does(gateway: Start, authority: Authority, edge: Pair) -> None:
    settings = configuration([listener(edge, bind=f"127.0.0.1:{free_port()}", routes=[health()])])
    running = gateway({**settings, "runtime": {"workers": 2}})
    second = gateway(settings, wait=False)
    assert second.program.wait() == 1
    assert "Address already in use" in second.program.log
    assert served(running, authority) == 200


def start(folder: Path, settings: Settings) -> tuple[int, str]:
    """Exit code and words of a gateway that cannot start."""
    file = folder / "mitu.yaml"
    file.write_text(json.dumps({"admin": {"socket": "admin.sock"}, **settings}))
    done = run([*MITU, "run", file], timeout=30)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_a_configuration_that_is_no_good(edge: Pair, tmp_path: Path) -> None:
    settings = configuration([listener(edge, routes=[health()])])
    code, told = start(tmp_path, {**settings, "listners": []})
    assert (code, "error[E0" in told, "did you mean 'listeners'?" in told) == (1, True, True), told
    settings["listeners"][0]["tls"]["certificates"][0]["key"] = str(edge.certificate)
    code, told = start(tmp_path, settings)
    assert (code, "error[E07" in told) == (1, True), told
    assert not (tmp_path / "admin.sock").exists()


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    done = run([*MITU, "run", tmp_path / "nowhere.yaml"])
    assert done.returncode == 2
    assert b"error[E001]: cannot read the configuration: no such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ({"file": "no-such-file"}, "cannot read admin.token from"),
        ({"file": "short"}, "admin.token is shorter than 16 characters"),
        ({"file": "binary"}, "it is not text"),
    ],
)
def test_a_token_that_is_no_good(edge: Pair, tmp_path: Path, token: Settings, told: str) -> None:
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    admin = {"socket": "admin.sock", "listen": "127.0.0.1:0", "token": token}
    code, words = start(tmp_path, configuration([listener(edge, routes=[health()])], admin=admin))
    assert (code, told in words.replace("\n", "")) == (1, True), words


def test_an_admin_socket_that_cannot_be_made(edge: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    admin = {"socket": "file/admin.sock"}
    code, words = start(tmp_path, configuration([listener(edge, routes=[health()])], admin=admin))
    assert code == 1
    assert "file/admin.sock.lock" in words.replace("\n", "")
    assert "set admin.socket to a path that this user can write" in words.replace("\n", " ")


def test_clients_that_say_nothing_are_closed(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(configuration([listener(edge, routes=[health()], timeouts={"handshake": "1s"})]))
    hello = client_hello(context(authority.certificate))
    begun = time.monotonic()
    silent = [socket.create_connection(running.address(), timeout=10) for _ in range(50)]
    halting = [socket.create_connection(running.address(), timeout=10) for _ in range(50)]
    for one in halting:
        one.sendall(hello[:100])
    # Nobody else has to wait for them.
    assert served(running, authority) == 200
    for one in (*silent, *halting):
        with one, contextlib.suppress(ConnectionError):
            assert one.recv(1) == b""
    assert time.monotonic() - begun >= 1
    timeouts = {"listener": "edge", "reason": "timeout"}
    assert eventually(lambda: running.metric("mitu_tls_handshake_failures_total", **timeouts) == 100)
    assert eventually(lambda: running.metric("mitu_connections_active", listener="edge") == 0)


def limited(files: int) -> tuple[str, ...]:
    """In front of a command that may have so many files open."""
    return ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")


def open_files(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.program.pid}/fd").iterdir()))


class TestFewFiles:
    """Clients cannot take them all: whoever runs the gateway still reaches it, and so do requests their upstream."""

    LIMIT = 300
    ALLOWED = LIMIT - 64 - 4
    """What is kept, and what one worker needs for itself and one listener."""

    def test_connections_leave_some(self, gateway: Start, authority: Authority, edge: Pair, app: Server) -> None:
        settings = configuration(
            [listener(edge, routes=[health(), to_app()], timeouts={"handshake": "2m"})],
            upstream("app", app.endpoint),
        )
        running = gateway(settings, wrapper=limited(self.LIMIT), flags=["--no-watch"])
        address = running.address()
        with Http1.open(address, authority.certificate) as client, contextlib.ExitStack() as stack:
            for _ in range(self.LIMIT):
                stack.enter_context(socket.create_connection(address, timeout=10))
            wanted = 1 + self.LIMIT - self.ALLOWED
            assert eventually(lambda: running.metric("mitu_connections_refused_total", reason="limit") == wanted)
            assert running.metric("mitu_connections_active", listener="edge") == self.ALLOWED
            assert running.metric("mitu_connections_refused_total", reason="resources") == 0
            assert client.request("/").status == 200
            done = running.mitu("status")
            assert (done.returncode, "serving" in done.stdout) == (0, True), done.stdout + done.stderr
            settings["listeners"].append(listener(edge, name="second", routes=[health()]))
            code, told = running.reload(settings)
            assert (code, "reloaded: configuration" in told) == (0, True), told
        assert eventually(lambda: running.metric("mitu_connections_active") == 0)
        assert served(running, authority) == 200

    def test_it_is_said(self, gateway: Start, edge: Pair) -> None:
        settings = configuration([listener(edge, routes=[health()], limits={"connections": 5000})])
        running = gateway(settings, wrapper=limited(self.LIMIT))
        (told,) = running.status()["config"]["warnings"]
        assert f"'edge' may have {self.ALLOWED} connections at once, not 5000" in told
        assert f"this process may have {self.LIMIT} files open" in told
        settings["listeners"][0]["timeouts"] = {"idle": "9s"}
        running.apply(settings)
        assert len(running.status()["config"]["warnings"]) == 1
        assert running.program.log.count("W011") == 1, "told again"
        settings["listeners"][0]["limits"]["connections"] = self.ALLOWED
        running.apply(settings)
        assert running.status()["config"]["warnings"] == []


def test_it_recovers_when_it_has_run_out_of_files(gateway: Start, authority: Authority, edge: Pair) -> None:
    limit = 70  # With so few, more connections are allowed than there are files for.
    settings = configuration([listener(edge, routes=[health()], timeouts={"handshake": "2m"})])
    running = gateway(settings, wrapper=limited(limit), flags=["--no-watch"])
    address = running.address()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * limit):
            stack.enter_context(socket.create_connection(address, timeout=10))
        assert eventually(lambda: running.metric("mitu_connections_refused_total", reason="resources") > 0)
        # Those that are kept are there for whoever runs it.
        assert open_files(running) < limit
        settings["listeners"].append(listener(edge, name="second", routes=[health()]))
        code, told = running.reload(settings)
        assert (code, "reloaded: configuration" in told) == (0, True), told
    assert eventually(lambda: running.metric("mitu_connections_active", listener="edge") == 0)
    assert served(running, authority) == 200
    assert running.status()["reloads"]["failed"] == 0
    assert running.stop() == 0


def test_upstreams_do_not_take_the_last_files(gateway: Start, authority: Authority, edge: Pair, serve: Serve) -> None:
    """Relays take two files each: more than are kept from clients."""
    limit = 120
    server = serve(echo)
    settings = configuration(
        [listener(edge, protocols=["http/1.1", {"alpn": "echo", "relay": "echo"}], routes=[health()])],
        upstream("echo", server.endpoint),
    )
    running = gateway(settings, wrapper=limited(limit), flags=["--no-watch"])
    with contextlib.ExitStack() as stack:
        for _ in range(limit):
            # Refused ones are closed in the midst of their handshake, or right after it.
            with contextlib.suppress(OSError):
                stack.enter_context(connect(running.address(), context(authority.certificate, ["echo"])))
        assert 0 < server.open < limit // 2
        assert open_files(running) < limit
        done = running.mitu("status")
        assert (done.returncode, "serving" in done.stdout) == (0, True), done.stdout + done.stderr
        settings["listeners"].append(listener(edge, name="second", routes=[health()]))
        code, told = running.reload(settings)
        assert (code, "reloaded: configuration" in told) == (0, True), told
    assert eventually(lambda: served(running, authority) == 200)


def test_it_takes_as_many_files_as_it_may(gateway: Start, edge: Pair) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = configuration([listener(edge, routes=[health()])])
    running = gateway(settings, wrapper=("sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh"))
    limits = Path(f"/proc/{running.program.pid}/limits").read_text()
    files = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert files.split()[3:5] == [str(most), str(most)]


def test_an_upstream_that_is_killed_and_comes_back(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve
) -> None:
    app = serve(mirror)
    running = gateway(configuration([listener(edge, routes=[health(), to_app()])], upstream("app", app.endpoint)))
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/").status == 200
        app.stop()
        assert client.request("/").status == 502
        assert client.request("/health").status == 200
        app.start()
        assert eventually(lambda: client.request("/").status == 200)
