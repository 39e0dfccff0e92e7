"""An upstream's endpoint that answers with its name, and fails in whatever way the test wants from then on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Literal

from support import hpack
from support.frames import data, frame, headers, take
from support.h2 import ACK, HEADERS, PREFACE, SETTINGS
from support.servers import Loop, Reader, Server, Writer, http_body, http_head, http_response

Way = Literal["well", "stream", "reset mid-body", "hang", "slow", "held", "503", "half-close"]

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER: on, for no time."""


def reset(writer: Writer) -> None:
    """Ends a connection with a RST, once what was written is out."""
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


class Endpoint:
    """A server of HTTP/1.1, or of HTTP/2 where that is agreed by ALPN; `way`: how it answers from now on."""

    def __init__(self, loop: Loop, name: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.name, self._loop = name, loop
        self.way: Way = "well"
        self.delay = 0.0
        """Seconds that an answer takes when all is well, and one of the slow ones."""
        self.requests: list[str] = []
        """Methods, in order."""
        self.busy = self.most_busy = 0
        self.server = Server(loop, self._serve, tls=tls)

    @property
    def address(self) -> str:
        return self.server.endpoint

    def refuse(self) -> None:
        self.server.stop()

    def listen(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen on the same port again, with other TLS."""
        self.server.stop()
        self.server = Server(self._loop, self._serve, tls=tls, port=self.server.port)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        agreed: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        if agreed is not None and agreed.selected_alpn_protocol() == "h2":
            await self._serve_h2(reader, writer)
            return
        while (head := await http_head(reader)) is not None:
            line, fields = head
            method = line.split(" ")[0]
            self.requests.append(method)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            try:
                await http_body(reader, fields)
                if not await self._answer(reader, writer):
                    return
            finally:
                self.busy -= 1

    async def _answer(self, reader: Reader, writer: Writer) -> bool:
        """Whether the connection goes on."""
        match self.way:
            case "reset mid-body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbeginning")
                await writer.drain()
                # The gateway is to have read that.
                await asyncio.sleep(0.05)
                reset(writer)
                return False
            case "hang":
                await reader.read()
                return False
            case "stream":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                # Without an end: it is for the client to go.
                with contextlib.suppress(OSError):
                    while not reader.at_eof() and not writer.transport.is_closing():
                        writer.write(b"%x\r\n%s\r\n" % (len(self.name), self.name.encode()))
                        await writer.drain()
                        await asyncio.sleep(0.02)
                return False
            case "half-close":
                writer.write_eof()
                await reader.read()
                return False
            case "503":
                writer.write(http_response("503 Service Unavailable", b"not now"))
            case "slow" | "held" | "well":
                await asyncio.sleep(self.delay)
                # Until the test lets go, however long what it waits for takes.
                while self.way == "held":  # noqa: ASYNC110 - the test, in a thread of its own, changes it
                    await asyncio.sleep(0.01)
                writer.write(http_response("200 OK", self.name.encode()))
        await writer.drain()
        return True

    async def _serve_h2(self, reader: Reader, writer: Writer) -> None:
        """As much of HTTP/2 as small requests without a body need."""
        await reader.readexactly(len(PREFACE))
        writer.write(frame(SETTINGS, 0, 0))
        wire = bytearray()
        while piece := await reader.read(65536):
            wire += piece
            while (came := take(wire)) is not None:
                if came.kind == SETTINGS and not came.flags & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                if came.kind == HEADERS:
                    self.requests.append("h2")
                    writer.write(headers(came.stream, hpack.block([(b":status", b"200")])))
                    writer.write(data(came.stream, self.name.encode(), end=True))
            await writer.drain()
