"""Upstream servers whose behaviour is the test's: coroutines on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]


class Loop:
    """An event loop in a thread, for servers that run beside blocking clients."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.servers: list[Server] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-servers", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        return self.submit(work).result(timeout)

    def close(self) -> None:
        """Stop every server and the thread."""
        for server in self.servers:
            server.stop()

        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Server:
    """A TCP or Unix server that runs `handler` on each connection and counts them."""

    def __init__(
        self,
        loop: Loop,
        handler: Handler,
        *,
        tls: ssl.SSLContext | None = None,
        unix: Path | None = None,
        port: int = 0,
    ) -> None:
        self._loop, self._handler, self._tls, self._unix, self._wanted = loop, handler, tls, unix, port
        self.accepted = 0
        self._open: set[Writer] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        loop.servers.append(self)
        self.start()

    @property
    def endpoint(self) -> str:
        """As an item of an upstream's `endpoints`."""
        return f"unix:{self._unix}" if self._unix else f"127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections that the handler has not finished."""
        return len(self._open)

    def start(self) -> None:
        """Listen, again after `stop` on the same port."""
        self._server = self._loop.run(self._listen())

    async def _listen(self) -> asyncio.Server:
        if self._unix:
            return await asyncio.start_unix_server(self._serve, str(self._unix), ssl=self._tls)
        wanted = self.port or self._wanted
        server = await asyncio.start_server(self._serve, "127.0.0.1", wanted, ssl=self._tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        self.accepted += 1
        self._open.add(writer)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # The peer went away; what that means is the test's to judge.
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    def stop(self) -> None:
        """Stop listening and reset what is open."""

        async def stop() -> None:
            if self._server is not None:
                # Whom it is just accepting has to be with it first: asyncio leaks a connection to a closed server.
                for listening in self._server.sockets:
                    self._loop.loop.remove_reader(listening.fileno())
                for _ in range(3):
                    await asyncio.sleep(0)
                self._server.close()
                self._server = None
            for writer in list(self._open):
                writer.transport.abort()

        self._loop.run(stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


async def echo(reader: Reader, writer: Writer) -> None:
    """Returns every byte, and the end."""
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def http_head(reader: Reader) -> tuple[str, list[tuple[str, str]]] | None:
    """A request line and the headers; None when the connection ends instead."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *fields = text[:-4].split("\r\n")
    return line, [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]


async def http_body(reader: Reader, headers: list[tuple[str, str]]) -> tuple[bytes, list[tuple[str, str]]]:
    """A request's body and its trailers."""
    known = {name.lower(): value for name, value in headers}
    if known.get("transfer-encoding", "").lower() == "chunked":
        pieces = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        trailers = []
        while line := (await reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            trailers.append((name, value.strip()))
        return b"".join(pieces), trailers
    return await reader.readexactly(int(known.get("content-length", "0"))), []


def http_response(status: str, body: bytes = b"", *headers: tuple[str, str]) -> bytes:
    """A whole response with its length."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode("latin-1") + body


async def mirror(reader: Reader, writer: Writer) -> None:
    """Answers each request with a JSON description of it; keeps the connection.

    The body is told by its length and SHA-256, and by its text when it is short.
    """
    while (head := await http_head(reader)) is not None:
        line, headers = head
        body, trailers = await http_body(reader, headers)
        method, target, _ = line.split(" ")
        seen = {
            "method": method,
            "target": target,
            "headers": headers,
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": body.decode("latin-1") if len(body) < 4096 else None,
            "trailers": trailers,
        }
        answer = json.dumps(seen).encode()
        response = http_response("200 OK", answer, ("Content-Type", "application/json"))
        writer.write(response[: -len(answer)] if method == "HEAD" else response)
        await writer.drain()
