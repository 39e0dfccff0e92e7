"""Ports and connections, and waiting for things that take a moment."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago; only for programs that cannot take port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(what: Callable[[], T], timeout: float = 10, interval: float = 0.05) -> T:
    """The first true value of `what`, which is called until then; AssertionError, with the last value, when late.

    An AssertionError or OSError from `what` counts as "not yet".
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            value = what()
            if value:
                return value
            last = value
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s; last: {last!r}")
        time.sleep(interval)


async def until(what: Callable[[], object], timeout: float = 30) -> None:  # noqa: ASYNC109 - a bound
    """Wait until `what` is true, while the loop goes on; AssertionError when late."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


def wait_for_port(port: int, timeout: float = 10) -> None:
    """Until somebody accepts on 127.0.0.1:`port`."""

    def connect() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    eventually(connect, timeout)


class Dialled:
    """A TCP connection to a server, until the block ends."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._tcp = socket.create_connection(address, timeout=10)
        self._stream = self._tcp.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._tcp.close()
