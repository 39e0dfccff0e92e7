"""Crowds of clients that each hold a connection to a gateway, and do nothing more with it.

The gateway answers `/health`, has an upstream that never answers `/never`, and relays `mqtt` to one that echoes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from support import h3
from support.client import Address, Http1, connect, context
from support.h2 import Http2
from support.net import eventually
from support.raw_tls import Hello
from support.servers import Loop

CONNECT = b"\x10\x0c\0\4MQTT\4\2\0\x3c\0\0"
"""Of MQTT."""

Opening = Callable[[Address, Path], socket.socket]


def idle(address: Address, _: Path) -> socket.socket:
    return socket.create_connection(address, timeout=5)


def in_hello(address: Address, ca: Path) -> socket.socket:
    """In the midst of its hello."""
    tcp = idle(address, ca)
    tcp.sendall(Hello().wire()[:100])
    return tcp


def h1(address: Address, ca: Path) -> socket.socket:
    client = Http1.open(address, ca, timeout=5)
    assert client.request("/health").status == 200
    return client.stream


def h2(address: Address, ca: Path) -> socket.socket:
    client = Http2.open(address, ca, timeout=5)
    assert client.get("/health").status == 200
    return client.stream


def waiting(address: Address, ca: Path) -> socket.socket:
    """For an upstream that does not answer: two files."""
    client = Http1.open(address, ca, timeout=5)
    client.send(b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client.stream


def mqtt(address: Address, ca: Path) -> socket.socket:
    """A relay: two files."""
    stream = connect(address, context(ca, ["mqtt"]), timeout=5)
    stream.sendall(CONNECT)
    assert stream.recv(100) == CONNECT
    return stream


OPENINGS: dict[str, Opening] = {
    "idle": idle, "in its hello": in_hello, "h1": h1, "h2": h2, "h1 that waits": waiting, "mqtt": mqtt,
}  # fmt: skip
KINDS = [*OPENINGS, "h3"]


@contextlib.contextmanager
def crowd(kind: str, count: int, address: Address, ca: Path) -> Iterator[None]:
    """So many clients, of whom some are refused."""
    if kind == "h3":
        with _h3_crowd(count, address, ca):
            yield
        return
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError, EOFError, AssertionError):
                stack.enter_context(OPENINGS[kind](address, ca))
        yield


@contextlib.contextmanager
def _h3_crowd(count: int, address: Address, ca: Path) -> Iterator[None]:
    loop, over = Loop(), asyncio.Event()
    there: list[bool] = []

    async def client() -> None:
        served = False
        with contextlib.suppress(OSError, TimeoutError):
            async with h3.connected(address, ca, seconds=30) as connection:
                served = (await connection.get("/health")).status == 200
                there.append(served)
                await over.wait()
        if not served:
            there.append(False)

    clients = [loop.submit(client()) for _ in range(count)]
    try:
        eventually(lambda: len(there) == count, 30)
        assert any(there)
        yield
    finally:
        loop.loop.call_soon_threadsafe(over.set)
        for one in clients:
            one.result(30)
        loop.close()
