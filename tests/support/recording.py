"""Upstream servers that keep what reaches them as it came, and read it with the strict parser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from support import frames, hpack
from support.h2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from support.servers import Loop, Reader, Server, Writer
from support.strict_http import Fields, MalformedError, Message, from_h2, read_head, read_request

PAUSE = 0.005
SWITCH, EARLY = b"/switch", b"/early"
"""Targets: an upgrade is agreed to; the response does not wait for the body."""


@dataclass
class Recording:
    """What has come since the last look."""

    messages: list[Message]
    malformed: list[str]
    incomplete: list[str]
    """What began and did not end, where the upstream can tell: its connection or stream has ended."""
    waiting: list[str]
    """The same, where it cannot: whatever comes next would be taken for the rest."""
    tunnelled: bytes
    """What came after a 101."""
    wire: list[str]


class Tape(Protocol):
    """One connection."""

    open: bool

    def look(self) -> tuple[list[str], list[str], bytes, list[str]]:
        """Incomplete, waiting, tunnelled and wire since the last look."""

    def waits(self) -> bool:
        """Whether a message has begun that may still be completed."""


class Recorder(Server):
    """What both versions have in common. Requests are answered with what was seen of them, in the header `x-seen`."""

    def __init__(self, loop: Loop) -> None:
        self._messages: list[Message] = []
        self._malformed: list[str] = []
        self._tapes: list[Tape] = []
        super().__init__(loop, self._record)

    async def _record(self, reader: Reader, writer: Writer) -> None:
        raise NotImplementedError

    def look(self, patience: float) -> Recording:
        """Everything since the last look; waits until what is incomplete has been given up by the peer."""

        async def look() -> Recording:
            for _ in range(round(patience / PAUSE)):
                if not any(tape.waits() for tape in self._tapes):
                    break
                await asyncio.sleep(PAUSE)
            looks = [tape.look() for tape in self._tapes]
            self._tapes = [tape for tape in self._tapes if tape.open]
            recording = Recording(
                self._messages,
                self._malformed,
                [one for incomplete, _, _, _ in looks for one in incomplete],
                [one for _, waiting, _, _ in looks for one in waiting],
                b"".join(tunnelled for _, _, tunnelled, _ in looks),
                [one for _, _, _, wire in looks for one in wire],
            )
            self._messages, self._malformed = [], []
            return recording

        return self._loop.run(look())


def seen(message: Message) -> bytes:
    return b"%b %b %d" % (message.method, message.target, len(message.body))


@dataclass
class H1Tape:
    """Bytes. `at`: where the next message begins; `answered`: where the last one began that was answered early."""

    wire: bytearray = field(default_factory=bytearray)
    at: int = 0
    looked: int = 0
    answered: int = -1
    tunnel: bool = False
    broken: bool = False
    open: bool = True

    def waits(self) -> bool:
        return self.open and not self.tunnel and self.at < len(self.wire)

    def look(self) -> tuple[list[str], list[str], bytes, list[str]]:
        rest, tunnelled = bytes(self.wire[self.at :]), b""
        if self.tunnel:
            rest, tunnelled = b"", rest
        wire = bytes(self.wire[self.looked :])
        waiting = [repr(rest)] if self.waits() else []
        incomplete = [repr(rest)] if rest and not waiting else []
        self.looked = len(self.wire)
        if tunnelled:
            self.at = len(self.wire)
        return incomplete, waiting, tunnelled, [repr(wire)] if wire else []


class H1Recorder(Recorder):
    """An HTTP/1.1 upstream."""

    async def _record(self, reader: Reader, writer: Writer) -> None:
        tape = H1Tape()
        self._tapes.append(tape)
        try:
            while piece := await reader.read(65536):
                tape.wire += piece
                if not tape.broken:
                    await self._read(tape, reader, writer)
        finally:
            tape.open = False

    async def _read(self, tape: H1Tape, reader: Reader, writer: Writer) -> None:
        try:
            while not tape.tunnel and (found := read_request(bytes(tape.wire), tape.at)):
                message, end = found
                early, tape.at = tape.answered == tape.at, end
                self._messages.append(message)
                if message.target == SWITCH and message.all(b"upgrade"):
                    await self._switch(tape, message, reader, writer)
                elif not early:
                    writer.write(_h1_response(message))
            if not tape.tunnel and tape.answered != tape.at and (head := read_head(bytes(tape.wire), tape.at)):
                if head.message.target.startswith(EARLY):
                    writer.write(_h1_response(head.message))
                    tape.answered = tape.at
                elif head.message.all(b"expect"):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except MalformedError as error:
            self._malformed.append(str(error))
            tape.broken = True
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def _switch(self, tape: H1Tape, message: Message, reader: Reader, writer: Writer) -> None:
        """Give bytes that were sent too early the time to show."""
        with contextlib.suppress(TimeoutError):
            tape.wire += await asyncio.wait_for(reader.read(65536), 0.05)
        if len(tape.wire) > tape.at:
            raise MalformedError("bytes of the next protocol before it was agreed on")
        tape.tunnel = True
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n")
        for key in message.all(b"sec-websocket-key"):
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
            writer.write(b"Sec-WebSocket-Accept: %b\r\n" % base64.b64encode(digest))
        writer.write(b"\r\n")


def _h1_response(message: Message) -> bytes:
    text = seen(message)
    head = b"HTTP/1.1 200 OK\r\nX-Seen: %b\r\nContent-Length: %d\r\n\r\n" % (text, len(text))
    return head if message.method == b"HEAD" else head + text


@dataclass
class _Stream:
    fields: Fields | None = None
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = ()
    ended: bool = False
    reset: bool = False
    early: bool = False


@dataclass
class H2Tape:
    """Frames, and the streams they make."""

    streams: dict[int, _Stream] = field(default_factory=dict)
    wire: list[str] = field(default_factory=list)
    open: bool = True

    def waits(self) -> bool:
        return self.open and any(self._unfinished())

    def _unfinished(self) -> Iterator[str]:
        for number, stream in self.streams.items():
            if not stream.ended and not stream.reset:
                yield f"stream {number}: {stream}"

    def look(self) -> tuple[list[str], list[str], bytes, list[str]]:
        waiting = list(self._unfinished())
        given_up = ((number, stream) for number, stream in self.streams.items() if stream.reset and not stream.ended)
        incomplete = [f"stream {number}: {stream}" for number, stream in given_up]
        if not self.open:
            incomplete, waiting = incomplete + waiting, []
        self.streams = {
            number: stream for number, stream in self.streams.items() if not stream.ended and not stream.reset
        }
        wire, self.wire = self.wire, []
        return incomplete, waiting, b"", wire


class H2Recorder(Recorder):
    """An HTTP/2 upstream in the clear, by prior knowledge."""

    async def _record(self, reader: Reader, writer: Writer) -> None:
        tape = H2Tape()
        self._tapes.append(tape)
        decoder = hpack.Decoder()
        wire = bytearray()
        try:
            if await reader.readexactly(len(PREFACE)) != PREFACE:
                raise MalformedError("no preface")
            settings = struct.pack("!HI", frames.INITIAL_WINDOW_SIZE, frames.WINDOW)
            writer.write(frames.frame(SETTINGS, 0, 0, settings))
            while piece := await reader.read(65536):
                wire += piece
                while frame := frames.take(wire):
                    self._read(tape, frame, decoder, writer)
                await writer.drain()
        except (MalformedError, hpack.HpackError) as error:
            self._malformed.append(f"{type(error).__name__}: {error}")
        finally:
            tape.open = False

    def _read(self, tape: H2Tape, frame: frames.Frame, decoder: hpack.Decoder, writer: Writer) -> None:
        kind, flags, number, payload = frame
        if kind not in (DATA, HEADERS, RST_STREAM):
            if kind == SETTINGS and not flags & ACK:
                writer.write(frames.frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                writer.write(frames.frame(PING, ACK, 0, payload))
            elif kind not in (SETTINGS, PING, WINDOW_UPDATE, GOAWAY):
                raise MalformedError(f"the frame {frame}")
            return
        stream = tape.streams.setdefault(number, _Stream())
        if kind == RST_STREAM:
            tape.wire.append(str(frame))
            stream.reset = True
            return
        if stream.ended:
            raise MalformedError(f"{frame} after the stream's end")
        if kind == DATA:
            tape.wire.append(str(frame))
            stream.body += frame.content
            if payload:
                update = struct.pack("!I", len(payload))
                writer.write(b"".join(frames.frame(WINDOW_UPDATE, 0, which, update) for which in (0, number)))
        else:
            if not flags & END_HEADERS:
                raise MalformedError("a header block in several frames, which no case needs")
            fields = tuple(decoder.decode(frame.content))
            tape.wire.append(f"HEADERS flags={flags:#x} stream={number} {fields}")
            if stream.fields is None:
                stream.fields = fields
            elif flags & END_STREAM:
                stream.trailers = fields
            else:
                raise MalformedError("trailers that do not end the stream")
        self._react(tape, number, stream, bool(flags & END_STREAM), writer)

    def _react(self, tape: H2Tape, number: int, stream: _Stream, ended: bool, writer: Writer) -> None:
        if stream.fields is None:
            raise MalformedError("DATA before HEADERS")
        stream.ended = ended
        try:
            if ended:
                message = from_h2(stream.fields, bytes(stream.body), stream.trailers)
                self._messages.append(message)
                if not stream.early:
                    writer.write(_h2_response(number, message))
            elif dict(stream.fields).get(b":path", b"").startswith(EARLY) and not stream.early:
                stream.early = True
                known = dict(stream.fields)
                writer.write(_h2_response(number, Message(known[b":method"], known[b":path"], b"", ())))
        except MalformedError as error:
            self._malformed.append(str(error))
            writer.write(frames.headers(number, hpack.block([(b":status", b"400")]), end=True))


def _h2_response(number: int, message: Message) -> bytes:
    text = seen(message)
    fields = ((b":status", b"200"), (b"x-seen", text), (b"content-length", b"%d" % len(text)))
    return frames.request(number, fields, () if message.method == b"HEAD" else (text,))
