"""What a client put on the wire of HTTP/2, whatever it says of it itself."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.certificates import Pair
from support.client import Address, context
from support.h2 import DATA, END_STREAM, GOAWAY, HEADERS, PREFACE
from support.servers import Loop, Reader, Server, Writer


@dataclass
class Connection:
    """The streams of one connection."""

    opened: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    told: bool = False
    """Whether the server has sent a GOAWAY."""


class H2Tap(Server):
    """Passes frames on to a TLS server and back, and notes those that begin and end streams."""

    def __init__(self, loop: Loop, edge: Pair, target: Address, ca: Path) -> None:
        self.connections: list[Connection] = []
        self._target, self._ca = target, ca
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(edge.certificate, edge.key)
        tls.set_alpn_protocols(["h2"])
        super().__init__(loop, self._pass_on, tls=tls)

    @property
    def address(self) -> Address:
        return "127.0.0.1", self.port

    async def _pass_on(self, reader: Reader, writer: Writer) -> None:
        tls = context(self._ca, ["h2"])
        server_reader, server_writer = await asyncio.open_connection(
            *self._target, ssl=tls, server_hostname="localhost"
        )
        connection = Connection()
        self.connections.append(connection)

        async def requests() -> None:
            server_writer.write(await reader.readexactly(len(PREFACE)))
            while True:
                kind, _, number = await _frame(reader, server_writer)
                if kind == HEADERS:
                    connection.opened.add(number)

        async def responses() -> None:
            while True:
                kind, flags, number = await _frame(server_reader, writer)
                if kind in (HEADERS, DATA) and flags & END_STREAM:
                    connection.answered.add(number)
                connection.told |= kind == GOAWAY

        await asyncio.gather(_until_the_end(requests(), server_writer), _until_the_end(responses(), writer))


async def _until_the_end(work: Coroutine[Any, Any, None], writer: Writer) -> None:
    """Either direction's end is the other's: TLS does not close by halves."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await work
    writer.close()


async def _frame(reader: Reader, writer: Writer) -> tuple[int, int, int]:
    """Pass one frame on; its type, flags and stream."""
    head = await reader.readexactly(9)
    length, kind, flags, number = struct.unpack("!IBBI", b"\0" + head)
    writer.write(head + await reader.readexactly(length))
    await writer.drain()
    return kind, flags, number
