"""A refused reload that would have renamed a listener: its socket, and all who are connected to it, notice nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Address, Http1, client_hello, connect, context
from support.gateway import Settings, configuration, listener, upstream
from support.h2 import Http2
from support.net import free_port
from support.servers import echo

from .conftest import Serve, Start

# Sockets that are bound after the renamed listener's and before the refusal: time in which a client could be lost.
OTHERS = 50
NO_ALPN_IN_COMMON = b"\x02\x78"
LISTENING = "0A"


class Arrivals:
    """Clients that come one after the other, in two threads, until the end of the block; each must be answered."""

    def __init__(self, address: Address, ca: Path) -> None:
        self.answered = 0
        self.lost: list[str] = []
        # A refusal is an answer as well, and the quickest.
        self._address, self._hello = address, client_hello(context(ca, ["unheard-of"]))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> Arrivals:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection(self._address, timeout=10) as stream:
                    stream.sendall(self._hello)
                    answer = stream.recv(100)
            except OSError as error:
                self.lost.append(repr(error))
                continue
            if answer.endswith(NO_ALPN_IN_COMMON):
                self.answered += 1
            else:
                self.lost.append(repr(answer))


def listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on an IPv4 port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}


def a_pattern_too_large(settings: Settings) -> str:
    settings["listeners"][-1]["routes"] = [{"match": {"path_regex": "/a{2000}{2000}"}, "respond": {"body": ""}}]
    return "listener 'other-49'"


def a_port_that_is_taken(settings: Settings) -> str:
    settings["listeners"][-1]["bind"] = settings["upstreams"][0]["endpoints"][0]
    return "Address already in use"


def a_log_that_is_a_folder(settings: Settings) -> str:
    settings["logging"] = {"access": {"path": "/tmp"}}  # noqa: S108 - a folder that is there
    return "access log: cannot open /tmp"


@pytest.mark.parametrize("spoil", [a_pattern_too_large, a_port_that_is_taken, a_log_that_is_a_folder])
def test_nobody_notices(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, spoil: Callable[[Settings], str]
) -> None:
    port, target = free_port(), serve(echo).endpoint
    ca = authority.certificate

    def named(name: str, text: str, others: int = 0) -> Settings:
        routes: list[Settings] = [{"respond": {"body": text}}]
        protocols = ["h2", "http/1.1", {"alpn": "echo", "relay": "echo"}]
        bound = listener(edge, name=name, bind=f"127.0.0.1:{port}", protocols=protocols, routes=routes)
        more = [listener(edge, name=f"other-{number}", routes=routes) for number in range(others)]
        return configuration([bound, *more], upstream("echo", target))

    running = gateway(named("edge", "one"), flags=["--no-watch"])
    address = running.address()
    sockets = listening(port)
    assert len(sockets) == 1
    renamed = named("renamed", "two", OTHERS)
    wanted = spoil(renamed)
    running.write(renamed)
    with (
        Http1.open(address, ca) as h1,
        Http2.open(address, ca) as h2,
        connect(address, context(ca, ["echo"])) as relay,
        socket.create_connection(address, timeout=10) as silent,
        Arrivals(address, ca) as arrivals,
    ):
        for _ in range(3):
            status, body = running.admin("/reload", "POST")
            assert (status, wanted in body.decode()) == (422, True), body
            assert listening(port) == sockets
            assert h1.request("/").body == b"one"
            assert h2.get("/").body == b"one"
            relay.sendall(b"bytes")
            assert Http1(relay).exactly(5) == b"bytes"
        # Its handshake begins only now.
        with context(ca).wrap_socket(silent, server_hostname="localhost") as late:
            assert Http1(late).request("/").body == b"one"
        assert h2.last is None, "GOAWAY"
    assert arrivals.lost == []
    assert arrivals.answered > 0
    assert list(running.addresses()) == ["edge"]
    # What was refused can be had once nothing is wrong with it.
    running.apply(named("renamed", "two"))
    with Http1.open(address, ca) as client:
        assert client.request("/").body == b"two"
    assert list(running.addresses()) == ["renamed"]
