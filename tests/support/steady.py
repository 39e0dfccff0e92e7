"""Clients that ask again and again, keep to the rules of their protocol, and count what was not kept to with them.

A request counts as failed once it was sent on a connection that the server had accepted: a client that is told of the
connection's end (`Connection: close`, GOAWAY, or its end while nothing is asked) goes on to the next one, and one that
cannot connect any more has finished.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from support.client import Address, Http1, context
from support.h2 import Http2
from support.load import Count

# Under load a handshake may have to wait for its turn.
_TIMEOUT = 30


class Unreachable(Exception):  # noqa: N818 - how it ends, no mistake
    """Nobody accepts any more."""


class Steady:
    """`each` threads of every kind, until `stop` or the server is gone.

    `told`: connections whose end was announced, by protocol.
    """

    def __init__(self, address: Address, ca: Path, paths: Sequence[str], *, each: int = 2) -> None:
        self.count = Count()
        self.told = {"h1": 0, "h2": 0}
        self.unreachable = 0
        self._address, self._ca, self._paths = address, ca, paths
        self._stop = threading.Event()
        self._lock = threading.Lock()
        kinds: tuple[Callable[[], None], ...] = (self._h1, self._fresh, self._h2)
        self._threads = [threading.Thread(target=self._until_gone, args=(one,)) for one in kinds * each]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float = 60) -> Self:
        """Until every client has found the server gone."""
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), "a client hangs"
        return self

    def stop(self) -> Self:
        self._stop.set()
        return self.wait()

    def _until_gone(self, connection: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                connection()
        except Unreachable:
            with self._lock:
                self.unreachable += 1

    def _connect(self, alpn: str) -> ssl.SSLSocket | None:
        """A finished handshake; None, and a failure, when an accepted connection comes to none."""
        try:
            tcp = socket.create_connection(self._address, timeout=_TIMEOUT)
        except OSError as error:
            raise Unreachable from error
        try:
            return context(self._ca, [alpn]).wrap_socket(tcp, server_hostname="localhost")
        except OSError as error:
            tcp.close()
            self._failed(f"{alpn} handshake: {error!r}")
            return None

    def _h1(self) -> None:
        """Requests one after the other on one connection."""
        stream = self._connect("http/1.1")
        if stream is None:
            return
        with Http1(stream) as client:
            while not self._stop.is_set() and not _ended(stream):
                if not self._ask(client):
                    return

    def _fresh(self) -> None:
        """One request on a connection of its own, which the client ends."""
        stream = self._connect("http/1.1")
        if stream is not None:
            with Http1(stream) as client:
                self._ask(client)

    def _ask(self, client: Http1) -> bool:
        """One request with each path; whether the connection goes on."""
        for path in self._paths:
            try:
                response = client.request(path)
            except (OSError, EOFError) as error:
                self._failed(f"h1 {path}: {error!r}")
                return False
            self._answered(response.status, f"h1 {path}")
            if response.header("connection") == "close":
                if not client.closed():
                    self._failed("h1: closing was announced, and not done")
                self._was_told("h1")
                return False
        return True

    def _h2(self) -> None:
        """Several requests at once, again and again, on one connection."""
        stream = self._connect("h2")
        if stream is None:
            return
        try:
            with Http2.begin(stream) as client:
                while not self._stop.is_set() and client.last is None:
                    numbers = [client.send(path) for path in self._paths]
                    for number in numbers:
                        answer = client.finish(number)
                        if answer.reset is not None:
                            self._failed(f"h2: a stream was reset with {answer.reset}")
                        elif not client.refused(number):
                            self._answered(answer.status, "h2")
                if client.last is not None:
                    self._was_told("h2")
                    if not client.closed():
                        self._failed("h2: the connection stays open after GOAWAY")
        except (OSError, EOFError) as error:
            self._failed(f"h2: {error!r}")

    def _answered(self, status: int, what: str) -> None:
        with self._lock:
            self.count.answered += 1
        if status != 200:
            self._failed(f"{what}: status {status}")

    def _was_told(self, kind: str) -> None:
        with self._lock:
            self.told[kind] += 1

    def _failed(self, why: str) -> None:
        with self._lock:
            self.count.failures.append(why)


def _ended(stream: ssl.SSLSocket) -> bool:
    """Whether the peer has ended the connection while nothing was asked."""
    stream.settimeout(0)
    try:
        return stream.recv(1) == b""
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        stream.settimeout(_TIMEOUT)
