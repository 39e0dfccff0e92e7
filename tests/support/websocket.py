"""WebSocket servers: one that echoes, on aiohttp, and one that does what tests of WebSocket itself need."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Self

from aiohttp import WSMsgType, web
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from support.servers import Loop

MAX_SIZE = 64 << 20
PIECE = os.urandom(65536)
"""Nothing that `permessage-deflate` could make smaller."""


class WebSocketEcho:
    """Echoes text and binary messages; speaks the subprotocol `chat` when it is asked for."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.port = 0
        self.requests: list[dict[str, str]] = []
        self._runner = loop.run(self._start())

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._serve)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({name.lower(): value for name, value in request.headers.items()})
        socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=1 << 24)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    def stop(self) -> None:
        self._loop.run(self._runner.cleanup())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class WebSocketServer:
    """The server of `websockets`. What it does is the path's.

    /flood sends without end, /deaf reads nothing, /close closes with 4001, /no declines with 403, all others echo.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.requests: list[Request] = []
        self.closed: list[int | None] = []
        """The code that each connection was closed with, 1006 where there was none."""
        self.sent = 0
        """Bytes of floods that went out."""
        self._done = asyncio.Event()
        self._server = loop.run(self._start())

    async def _start(self) -> Server:
        return await serve(
            self._serve,
            "127.0.0.1",
            0,
            process_request=self._admit,
            select_subprotocol=lambda _, offered: next(iter(offered), None),
            max_size=MAX_SIZE,
            ping_interval=None,
        )

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        return socket.respond(403, "not here\n") if request.path == "/no" else None

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        with contextlib.suppress(ConnectionClosed):
            match socket.request.path:
                case "/flood":
                    while True:
                        await socket.send(PIECE)
                        self.sent += len(PIECE)
                case "/deaf":
                    socket.transport.pause_reading()
                    await self._done.wait()
                    socket.transport.abort()
                case "/close":
                    await socket.close(4001)
                case _:
                    async for message in socket:
                        await socket.send(message)
        await socket.wait_closed()
        self.closed.append(socket.close_code)

    def wake(self) -> None:
        """Let go of whom it is deaf to."""

        async def wake() -> None:
            self._done.set()
            self._done = asyncio.Event()

        self._loop.run(wake())

    def stop(self) -> None:
        async def stop() -> None:
            self._done.set()
            self._server.close()

        self._loop.run(stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
