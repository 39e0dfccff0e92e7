"""An MQTT 3.1.1 client: as much of the protocol as a session needs that publishes, subscribes and stays."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from dataclasses import dataclass, field
from typing import Self

from support.client import Address

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 13, 14


class SessionError(Exception):
    """The connection of a session ended, or the broker did not answer."""


@dataclass
class Session:
    """One session. Messages that arrive are kept in `inbox`."""

    name: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    inbox: asyncio.Queue[tuple[str, bytes]] = field(default_factory=asyncio.Queue)
    _answers: asyncio.Queue[tuple[int, bytes]] = field(default_factory=asyncio.Queue)
    _task: asyncio.Task[None] | None = None
    _number: int = 0
    lost: str | None = None
    """Why the connection ended, when that was not this side's wish."""
    is_present: bool = False
    """Whether the broker had the session already."""

    @classmethod
    async def open(
        cls, address: Address, tls: ssl.SSLContext, name: str, *, keep_alive: int = 60, clean: bool = True
    ) -> Self:
        """Connect and begin a clean session, or go on with the one that there is."""
        reader, writer = await asyncio.open_connection(*address, ssl=tls, server_hostname="localhost")
        session = cls(name, reader, writer)
        session._task = asyncio.create_task(session._receive())
        variable = _text("MQTT") + struct.pack("!BBH", 4, 0b10 if clean else 0, keep_alive)
        session._send(CONNECT, 0, variable + _text(name))
        kind, body = await session._answer(CONNACK)
        if body not in (b"\0\0", b"\1\0"):
            raise SessionError(f"{name}: the broker refused the session: {kind} {body!r}")
        session.is_present = body == b"\1\0"
        return session

    async def subscribe(self, topic: str) -> None:
        self._number += 1
        self._send(SUBSCRIBE, 0b10, struct.pack("!H", self._number) + _text(topic) + b"\x01")
        _, body = await self._answer(SUBACK)
        if body[2:] not in (b"\0", b"\1"):
            raise SessionError(f"{self.name}: the broker refused the subscription: {body!r}")

    async def publish(self, topic: str, message: bytes) -> None:
        """With QoS 1: returns once the broker has it."""
        self._number = self._number % 65535 + 1
        number = struct.pack("!H", self._number)
        self._send(PUBLISH, 0b10, _text(topic) + number + message)
        _, body = await self._answer(PUBACK)
        if body != number:
            raise SessionError(f"{self.name}: another message was acknowledged: {body!r}")

    async def ping(self) -> None:
        self._send(PINGREQ, 0, b"")
        await self._answer(PINGRESP)

    async def close(self) -> None:
        """End the session in good order."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.lost is None:
            self._send(DISCONNECT, 0, b"")
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.writer.write(bytes([kind << 4 | flags]) + length(len(body)) + body)

    async def _answer(self, kind: int, within: float = 20) -> tuple[int, bytes]:
        try:
            found = await asyncio.wait_for(self._answers.get(), within)
        except TimeoutError:
            raise SessionError(f"{self.name}: no answer within {within:g} s") from None
        if found[0] != kind:
            raise SessionError(f"{self.name}: {self.lost or f'packet {found[0]} in place of {kind}'}")
        return found

    async def _receive(self) -> None:
        """Sorts what arrives into messages and answers, until the connection ends."""
        try:
            while True:
                head, body = await self._packet()
                if head >> 4 != PUBLISH:
                    self._answers.put_nowait((head >> 4, body))
                    continue
                (size,) = struct.unpack_from("!H", body)
                topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
                if head & 0b110:
                    self._send(PUBACK, 0, rest[:2])
                    rest = rest[2:]
                self.inbox.put_nowait((topic, rest))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.lost = f"the connection ended: {error!r}"
            self._answers.put_nowait((0, b""))

    async def _packet(self) -> tuple[int, bytes]:
        (head,) = await self.reader.readexactly(1)
        length = shift = 0
        while True:
            (byte,) = await self.reader.readexactly(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        return head, await self.reader.readexactly(length)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def length(value: int) -> bytes:
    coded = b""
    while True:
        value, low = value >> 7, value & 0x7F
        coded += bytes([low | (0x80 if value else 0)])
        if not value:
            return coded
