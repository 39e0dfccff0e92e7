"""Clients over HTTP/3 that ask again and again by the rules, as those of `support.steady` do over TCP.

A request counts as failed once it was sent on a connection that the server took up, unless a GOAWAY says that it was
not looked at. A client that is told of the connection's end goes on to the next one; one that is refused has finished.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from support import h3
from support.client import Address
from support.h3 import Http3, connected
from support.load import Count
from support.servers import Loop

CONNECTION_REFUSED = 2
# Under load a handshake may have to wait for its turn.
_TIMEOUT = 30
_SILENCE = 10
_PAUSE = 0.01


class Unreachable(Exception):  # noqa: N818 - how it ends, no mistake
    """Connections are refused, or nobody is there."""


class SteadyH3:
    """`each` clients that stay on a connection, and as many that open one for each round, until `stop`.

    A round is a request for each of `paths` at once. `same`: a path that has to answer those who stay as at first.
    `told`: connections whose end was announced; `silent`: those on which nobody said a word.
    """

    def __init__(
        self, loop: Loop, address: Address, ca: Path, paths: Sequence[str], *, each: int = 2, same: str | None = None
    ) -> None:
        self.count = Count()
        self.connections = self.told = self.silent = 0
        self._address, self._ca, self._paths, self._same = address, ca, paths, same
        self._stopping = False
        self._ended = loop.submit(self._run(each))

    def wait(self, timeout: float = 60) -> None:
        """Until every client has found the server gone."""
        self._ended.result(timeout)

    def stop(self) -> None:
        self._stopping = True
        self.wait()

    async def _run(self, each: int) -> None:
        async with asyncio.TaskGroup() as clients:
            for _ in range(each):
                clients.create_task(self._until_gone(stays=True))
                clients.create_task(self._until_gone(stays=False))

    async def _until_gone(self, *, stays: bool) -> None:
        with contextlib.suppress(Unreachable):
            while not self._stopping:
                async with self._connection() as client:
                    await (self._stay(client) if stays else self._round(client))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Http3]:
        self.connections += 1
        async with connected(self._address, self._ca, wait_connected=False, seconds=600) as client:
            yield client

    async def _stay(self, client: Http3) -> None:
        first = await self._remembered(client)
        while not self._stopping and client.goaway is None and client.ended is None:
            await self._round(client)
            if await self._remembered(client) not in (first, None):
                self._failed(f"h3 {self._same}: another answer than {first!r}")
            await asyncio.sleep(_PAUSE)
        if client.goaway is None:
            if not self._stopping:
                self._failed(f"h3: the connection ended without GOAWAY: {client.ended}")
            return
        self.told += 1
        try:
            ended = await client.closed(_TIMEOUT)
        except TimeoutError:
            self._failed("h3: the connection stays open after GOAWAY")
            return
        if ended.error_code != h3.NO_ERROR:
            self._failed(f"h3: the connection ended with {ended}")

    async def _remembered(self, client: Http3) -> bytes | None:
        """The answer from `same`; None when it was refused, or there is none."""
        return None if self._same is None else await self._finish(client, self._same, client.begin(self._same))

    async def _round(self, client: Http3) -> None:
        begun = [(path, client.begin(path)) for path in self._paths]
        for path, stream in begun:
            await self._finish(client, path, stream)

    async def _finish(self, client: Http3, path: str, stream: int) -> bytes | None:
        """The body of an answer that is as it should be."""
        answer = client.answers[stream]
        with contextlib.suppress(TimeoutError):
            await client.until(lambda: client.heard, _SILENCE)
            await client.until(lambda: answer.ended or answer.reset is not None or client.refused(stream), _TIMEOUT)
        if not client.heard:
            self.silent += 1
            raise Unreachable
        if client.ended is not None and client.ended.error_code == CONNECTION_REFUSED:
            raise Unreachable
        if not answer.ended and client.refused(stream):
            return None
        if not answer.ended or answer.status != 200:
            self._failed(f"h3 {path}: {answer.headers}, reset {answer.reset}, connection {client.ended}")
            return None
        self.count.answered += 1
        del client.answers[stream]
        return answer.body

    def _failed(self, why: str) -> None:
        self.count.failures.append(why)
