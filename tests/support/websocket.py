"""A WebSocket echo server on aiohttp."""

from __future__ import annotations

from typing import Self

from aiohttp import WSMsgType, web

from support.servers import Loop


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
