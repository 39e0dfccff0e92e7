"""The end in good order: what is in progress is finished, what is idle is let go, and how long that may take."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.h2 import Http2
from support.mqtt import Session, SessionError
from support.net import eventually
from support.process import Program
from support.servers import Loop, Reader, Server, Writer, http_head, http_response

from .conftest import Start


class Slow:
    """An HTTP upstream that answers when it is told to."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._go = asyncio.Event()
        self.waiting = 0
        self.server = Server(loop, self._serve)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        while (head := await http_head(reader)) is not None:
            if "/stream" in head[0]:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nfirst ")
            self.waiting += 1
            await self._go.wait()
            self.waiting -= 1
            writer.write(b"second" if "/stream" in head[0] else http_response("200 OK", b"done"))
            await writer.drain()

    def answer(self) -> None:
        self._loop.loop.call_soon_threadsafe(self._go.set)


@pytest.fixture
def slow(loop: Loop) -> Iterator[Slow]:
    upstream = Slow(loop)
    yield upstream
    upstream.server.stop()


def routed(edge: Pair, slow: Slow, **settings: object) -> Settings:
    return configuration(
        [listener(edge, routes=[health(), to_app()], **settings)], upstream("app", slow.server.endpoint)
    )


def by_signal(gateway: Gateway) -> None:
    gateway.program.signal(signal.SIGTERM)


def by_interrupt(gateway: Gateway) -> None:
    gateway.program.signal(signal.SIGINT)


def by_request(gateway: Gateway) -> None:
    assert gateway.admin("/drain", "POST")[0] == 202


def nobody_listens(gateway: Gateway, address: tuple[str, int]) -> bool:
    """Whether a connection is refused, and not only kept waiting."""
    with contextlib.suppress(TimeoutError), contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(address, timeout=0.3).close()
        return False
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("end", [by_signal, by_interrupt, by_request])
def test_what_is_in_progress_is_finished(
    gateway: Start, authority: Authority, edge: Pair, slow: Slow, end: Callable[[Gateway], None]
) -> None:
    running = gateway(routed(edge, slow))
    address, ca = running.address(), authority.certificate
    with (
        Http1.open(address, ca, timeout=30) as h1,
        Http1.open(address, ca, timeout=30) as begun,
        Http2.open(address, ca, timeout=30) as h2,
    ):
        h1.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begun.send(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = begun.head()
        assert head.header("connection") is None
        number = h2.send("/slow")
        eventually(lambda: slow.waiting == 3)
        end(running)
        assert eventually(lambda: running.status()["state"] == "draining")
        assert eventually(lambda: nobody_listens(running, address))
        assert running.admin("/readyz")[0] == 503
        # Longer than an idle connection is left alone: these are not idle.
        time.sleep(1.5)
        assert running.status()["connections"] == 3
        slow.answer()
        response = h1.response()
        assert (response.body, response.header("connection")) == (b"done", "close")
        assert begun.exactly(12) == b"first second"
        assert h2.finish(number).body == b"done"
        assert h1.closed()
        assert begun.closed()
        assert h2.closed()
        assert (h2.last, h2.goaway_error) == (number, 0)
    assert running.program.wait() == 0, running.program.log


def test_idle_connections_are_closed(gateway: Start, authority: Authority, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow))
    address, ca = running.address(), authority.certificate
    with Http1.open(address, ca) as used, Http1.open(address, ca) as unused, Http2.open(address, ca) as h2:
        assert used.request("/health").status == 200
        assert h2.get("/health").status == 200
        running.program.signal(signal.SIGTERM)
        assert h2.closed()
        assert used.closed()
        assert unused.closed()
        assert (h2.last, h2.goaway_error) == (1, 0)
    assert running.program.wait() == 0, running.program.log


def test_a_busy_connection_is_told_before_it_is_closed(
    gateway: Start, authority: Authority, edge: Pair, slow: Slow
) -> None:
    """A request may have been on the wire when the drain began: it is answered, and says that it is the last."""
    running = gateway(routed(edge, slow))
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/health").header("connection") is None
        running.program.signal(signal.SIGTERM)
        while (response := client.request("/health")).header("connection") is None:
            assert response.status == 200
        assert (response.status, response.header("connection")) == (200, "close")
        assert client.closed()
    assert running.program.wait() == 0, running.program.log


def test_what_does_not_finish_is_cut_off(gateway: Start, authority: Authority, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow), flags=["--drain-timeout", "1.5"])
    with Http1.open(running.address(), authority.certificate) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: slow.waiting == 1)
        begun = time.monotonic()
        running.program.signal(signal.SIGTERM)
        assert running.program.wait() == 1
        assert time.monotonic() - begun >= 1.5
        with pytest.raises((EOFError, OSError)):
            client.response()
    assert "cut off" in running.program.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    gateway: Start, authority: Authority, edge: Pair, slow: Slow, number: signal.Signals
) -> None:
    running = gateway(routed(edge, slow), flags=["--drain-timeout", "3600"])
    with Http1.open(running.address(), authority.certificate) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: slow.waiting == 1)
        running.program.signal(signal.SIGTERM)
        eventually(lambda: running.status()["state"] == "draining")
        running.program.signal(number)
        assert running.program.wait() == 1
        with pytest.raises((EOFError, OSError)):
            client.response()
    assert "stopping at once" in running.program.log


def test_asking_for_a_drain_again_changes_nothing(
    gateway: Start, authority: Authority, edge: Pair, slow: Slow
) -> None:
    running = gateway(routed(edge, slow))
    with Http1.open(running.address(), authority.certificate, timeout=30) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: slow.waiting == 1)
        for _ in range(3):
            assert running.admin("/drain", "POST")[0] == 202
        assert running.status()["connections"] == 1
        slow.answer()
        assert client.response().body == b"done"
    assert running.program.wait() == 0, running.program.log


def test_no_reload_while_it_drains(gateway: Start, authority: Authority, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow))
    with Http1.open(running.address(), authority.certificate, timeout=30) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: slow.waiting == 1)
        running.program.signal(signal.SIGTERM)
        eventually(lambda: running.status()["state"] == "draining")
        again = [listener(edge, routes=[health()]), listener(edge, name="second", routes=[health()])]
        running.write(configuration(again))
        status, body = running.admin("/reload", "POST")
        assert (status, "the gateway is draining" in body.decode()) == (422, True), body
        assert list(running.addresses()) == ["edge"]
        slow.answer()
        assert client.response().body == b"done"
    assert running.program.wait() == 0, running.program.log


def test_mitu_drain_waits_for_the_end(gateway: Start, authority: Authority, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow))
    with Http1.open(running.address(), authority.certificate, timeout=30) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: slow.waiting == 1)
        command = [*running.program.command[:3], "drain", "--socket", running.socket]
        with Program(command, running.folder / "drain.log") as drain:
            eventually(lambda: running.status()["state"] == "draining")
            assert drain.alive()
            slow.answer()
            assert client.response().body == b"done"
            assert drain.wait() == 0, drain.log
            assert "draining: 1 connections have to finish" in drain.log
            assert "drained in" in drain.log
    assert running.program.wait() == 0
    assert not running.socket.exists()


@pytest.mark.needs("mosquitto")
def test_mqtt_sessions_go_on_until_their_moment_has_come(
    gateway: Start, authority: Authority, edge: Pair, clients: Loop, mosquitto: int
) -> None:
    protocols = ["http/1.1", {"alpn": "mqtt", "relay": "broker"}]
    settings = configuration(
        [listener(edge, protocols=protocols, routes=[health()])], upstream("broker", f"127.0.0.1:{mosquitto}")
    )
    running = gateway(settings, flags=["--drain-timeout", "5"])
    address, tls = running.address(), context(authority.certificate, ["mqtt"])
    sessions = [clients.run(Session.open(address, tls, f"drained-{number}")) for number in range(20)]
    for session in sessions:
        clients.run(session.subscribe(f"drain/{session.name}"))
    running.program.signal(signal.SIGTERM)
    begun = time.monotonic()
    eventually(lambda: running.status()["state"] == "draining")
    rounds = []
    while staying := [session for session in sessions if not session.lost]:
        for session in staying:
            # One that is sent away amid this has not lost what it has been promised: it was not.
            with contextlib.suppress(SessionError, ConnectionError):
                clients.run(session.publish(f"drain/{session.name}", b"still here"))
                assert clients.run(session.inbox.get()) == (f"drain/{session.name}", b"still here")
        rounds.append(len(staying))
        assert time.monotonic() - begun < 20
    assert running.program.wait() == 0, running.program.log
    assert len(set(rounds)) > 3, rounds
    for session in sessions:
        clients.run(session.close())


def test_a_silent_client_does_not_hold_it_up(gateway: Start, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow, timeouts={"handshake": "5m"}))
    with socket.create_connection(running.address(), timeout=10) as silent:
        eventually(lambda: running.status()["connections"] == 1)
        running.program.signal(signal.SIGTERM)
        assert running.program.wait() == 0, running.program.log
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""


def test_without_a_connection_it_ends_at_once(gateway: Start, edge: Pair, slow: Slow) -> None:
    running = gateway(routed(edge, slow), flags=["--drain-timeout", "3600"])
    running.program.signal(signal.SIGTERM)
    assert running.program.wait() == 0, running.program.log


def test_half_a_request_is_waited_for(gateway: Start, authority: Authority, edge: Pair, slow: Slow) -> None:
    """Its headers have begun to arrive: it is not idle."""
    running = gateway(routed(edge, slow))
    with connect(running.address(), context(authority.certificate)) as stream:
        stream.sendall(b"GET /health HTTP/1.1\r\n")
        # Until the gateway has read it, nothing tells of it.
        time.sleep(1)
        running.program.signal(signal.SIGTERM)
        time.sleep(1.5)
        stream.sendall(b"Host: localhost\r\n\r\n")
        response = Http1(stream).response()
        assert (response.status, response.header("connection")) == (200, "close")
    assert running.program.wait() == 0, running.program.log
