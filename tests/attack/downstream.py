"""How a case is sent over each protocol, and what came back; a third protocol is a third class, named at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pylsqpack

from attack import fields, h1_chunks, h1_framing, h1_heads, h2_frames
from attack.case import Case, Hangup, Sections
from support import frames, h3, hpack
from support.client import Address, Http1, Response, connect, context
from support.h2 import ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE

PATIENCE = 5.0
SILENCE = 0.1
"""Seconds without one, where the gateway may rightly wait for more."""
REFUSALS = {*range(400, 500), 501, 505}


@dataclass
class Answer:
    """One response. `seen`: what the upstream says it was asked; `reset`: the stream was reset instead."""

    status: int = 0
    seen: bytes | None = None
    reset: int | None = None

    @property
    def refused(self) -> bool:
        return self.reset is not None or (self.seen is None and self.status in REFUSALS)


@dataclass
class Outcome:
    """What the client saw. `marker`: the answer to the request behind the case, where there was one."""

    answers: list[Answer] = field(default_factory=list)
    marker: Answer | None = None
    ended: bool = False
    silent: bool = False


class Downstream(Protocol):
    """A protocol that clients speak."""

    name: str

    @property
    def cases(self) -> Sequence[Case]: ...

    def talk(self, address: Address, ca: Path, case: Case, marker: bytes, patience: float = PATIENCE) -> Outcome:
        """Send the case, and then a GET of `marker` on the same connection if it stays open.

        `patience`: seconds for an answer that must come.
        """


@functools.cache
def _tls(ca: Path, alpn: str) -> ssl.SSLContext:
    """Made once: reading the certificates takes as long as a handshake."""
    return context(ca, [alpn])


def _hang_up(stream: ssl.SSLSocket, how: Hangup) -> None:
    """End the connection, and give the gateway the time to notice: nothing comes back that could be waited for."""
    if how == "fin":
        # Closed with something unread, it would be reset.
        stream.shutdown(socket.SHUT_WR)
    elif how == "reset":
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
    else:
        stream.settimeout(SILENCE)
        with contextlib.suppress(OSError):
            stream.unwrap()
    time.sleep(SILENCE / 2)
    stream.close()


class H1:
    """HTTP/1.1: bytes as they are."""

    name = "http/1.1"
    cases = (*h1_framing.TABLES.cases, *h1_chunks.TABLES.cases, *h1_heads.TABLES.cases)

    def talk(self, address: Address, ca: Path, case: Case, marker: bytes, patience: float = PATIENCE) -> Outcome:
        outcome = Outcome()
        with Http1(connect(address, _tls(ca, self.name))) as client:
            client.stream.settimeout(SILENCE if case.expect.must == "cut" else patience)
            try:
                self._talk(client, case, marker, outcome, patience)
            except TimeoutError:
                outcome.silent = True
            except (EOFError, ConnectionError, ssl.SSLError):
                outcome.ended = True
        return outcome

    def _talk(self, client: Http1, case: Case, marker: bytes, outcome: Outcome, patience: float) -> None:
        assert isinstance(case.row.sent, bytes)
        # What is refused early is not read to its end; the refusal can be read all the same.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            client.send(case.row.sent)
        if case.row.hangup:
            assert isinstance(client.stream, ssl.SSLSocket)
            _hang_up(client.stream, case.row.hangup)
            outcome.ended = True
            return
        methods = [read.method for read in case.expect.reads] or [b"POST"]
        late = case.row.late
        for method in methods:
            answer = self._answer(client, method, late)
            late = b""
            outcome.answers.append(answer)
            if answer.refused or answer.status == 101:
                break
        if outcome.answers[-1].status == 101:
            return
        client.stream.settimeout(patience)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            client.send(b"GET " + marker + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        outcome.marker = self._answer(client, b"GET", b"")
        outcome.ended = outcome.marker.refused and client.closed()

    def _answer(self, client: Http1, method: bytes, late: bytes) -> Answer:
        """The next final response; `late` is sent when anything has come."""
        if late and (first := client.head()):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                client.send(late)
            if first.status >= 200:
                client.exactly(int(first.header("content-length") or 0))
                return _answer(first)
        return _answer(client.response(method.decode("latin-1")))


def _answer(response: Response) -> Answer:
    seen = response.header("x-seen")
    return Answer(response.status, None if seen is None else seen.encode("latin-1"))


class H2:
    """HTTP/2: sections in frames, or frames as they are."""

    name = "h2"
    cases = (*fields.TABLES.cases, *h2_frames.TABLES.cases)

    def talk(self, address: Address, ca: Path, case: Case, marker: bytes, patience: float = PATIENCE) -> Outcome:
        outcome = Outcome()
        with connect(address, _tls(ca, self.name)) as stream:
            stream.settimeout(SILENCE if case.expect.must == "cut" else patience)
            client = _H2Client(stream)
            try:
                self._talk(client, case, marker, outcome, patience)
            except TimeoutError:
                outcome.silent = True
            except (EOFError, ConnectionError, ssl.SSLError):
                outcome.ended = True
        return outcome

    def _talk(self, client: _H2Client, case: Case, marker: bytes, outcome: Outcome, patience: float) -> None:
        sent, late = case.row.sent, case.row.late
        if isinstance(sent, Sections):
            wire = frames.request(1, sent.fields, sent.body, sent.trailers, end=sent.end == "fin")
            if sent.end == "reset":
                wire += frames.frame(RST_STREAM, 0, 1, struct.pack("!I", 8))
        else:
            wire = sent
        client.send(PREFACE + frames.frame(SETTINGS, 0, 0) + wire)
        if case.row.hangup:
            _hang_up(client.stream, case.row.hangup)
            outcome.ended = True
            return
        for number in range(1, 2 * max(1, len(case.expect.reads)), 2):
            if not (isinstance(sent, Sections) and sent.end == "reset"):
                outcome.answers.append(client.answer(number))
            if late:
                client.send(frames.data(number, late, end=True))
                # Until the gateway has taken it or turned it away, the next request would not tell which.
                client.settle()
        client.stream.settimeout(patience)
        get = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", marker))
        client.send(frames.request(101, get))
        outcome.marker = client.answer(101)


class _H2Client:
    """Reads frames; answers by stream."""

    def __init__(self, stream: ssl.SSLSocket) -> None:
        self.stream = stream
        self._wire = bytearray()
        self._answers: dict[int, Answer] = {}
        self._ended: set[int] = set()
        self._decoder = hpack.Decoder()
        self._pongs = 0

    def send(self, wire: bytes) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.stream.sendall(wire)

    def answer(self, number: int) -> Answer:
        """Wait until the stream has ended. EOFError at the connection's end, GOAWAY included."""
        while number not in self._ended:
            self._read()
        return self._answers[number]

    def settle(self) -> None:
        """Wait until the gateway has read everything so far."""
        self.send(frames.frame(PING, 0, 0, b"settling"))
        wanted = self._pongs + 1
        while self._pongs < wanted:
            self._read()

    def _read(self) -> None:
        while (frame := frames.take(self._wire)) is None:
            piece = self.stream.recv(65536)
            if not piece:
                raise EOFError("the connection ended")
            self._wire += piece
        kind, flags, number, payload = frame
        answer = self._answers.setdefault(number, Answer())
        if kind == SETTINGS and not flags & ACK:
            self.send(frames.frame(SETTINGS, ACK, 0))
        elif kind == PING:
            self._pongs += 1
        elif kind == GOAWAY:
            # Without an error it only says that no further streams are wanted.
            raise EOFError(f"GOAWAY {struct.unpack('!II', payload[:8])}")
        elif kind == RST_STREAM:
            # A response that has been read to its end stays one: the reset is for the rest of the request.
            if number not in self._ended:
                answer.reset = struct.unpack("!I", payload)[0]
            self._ended.add(number)
        elif kind == HEADERS:
            found = dict(self._decoder.decode(frame.content))
            if b":status" in found:
                answer.status, answer.seen = int(found[b":status"]), found.get(b"x-seen")
        elif kind not in (DATA, SETTINGS, WINDOW_UPDATE):
            raise AssertionError(f"the frame {frame}")
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self._ended.add(number)


class H3:
    """HTTP/3: sections in frames, on a stream in QUIC."""

    name = "h3"
    cases = tuple(fields.TABLES.cases)

    def talk(self, address: Address, ca: Path, case: Case, marker: bytes, patience: float = PATIENCE) -> Outcome:
        outcome = Outcome()
        asyncio.run(self._talk(address, ca, case, marker, outcome, patience))
        return outcome

    async def _talk(
        self, address: Address, ca: Path, case: Case, marker: bytes, outcome: Outcome, patience: float
    ) -> None:
        sent, late = case.row.sent, case.row.late
        assert isinstance(sent, Sections)
        # Responses are read here: the library's reading has rules of its own, for HEAD above all.
        async with h3.connected(address, ca, raw=True) as client:
            client.open(h3.varint(0) + h3.frame(h3.SETTINGS), one_way=True)
            stream = client.open(_h3_request(sent), end=sent.end == "fin" and not case.row.hangup)
            if sent.end == "reset":
                client.quic.reset_stream(stream, h3.REQUEST_CANCELLED)
                client.transmit()
            if case.row.hangup:
                await asyncio.sleep(SILENCE / 2)
                client.close()
                outcome.ended = True
                return
            silence = SILENCE if case.expect.must == "cut" else patience
            try:
                if sent.end != "reset":
                    outcome.answers.append(_h3_answer(await client.answer(stream, silence)))
                if late:
                    # A client that was asked for no more sends no more.
                    with contextlib.suppress(RuntimeError):
                        client.send(stream, h3.frame(h3.DATA, late), end=True)
                    await asyncio.sleep(SILENCE)
                get = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", marker))
                asked = client.open(_h3_request(Sections(get)), end=True)
                outcome.marker = _h3_answer(await client.answer(asked, patience))
            except TimeoutError:
                outcome.silent = True
            except ConnectionError:
                outcome.ended = True


def _h3_request(sent: Sections) -> bytes:
    wire = h3.frame(h3.HEADERS, h3.section_of(sent.fields))
    wire += b"".join(h3.frame(h3.DATA, piece) for piece in sent.body)
    return wire if sent.trailers is None else wire + h3.frame(h3.HEADERS, h3.section_of(sent.trailers))


def _h3_answer(answer: h3.Answer) -> Answer:
    if not answer.raw:
        return Answer(reset=answer.reset)
    _, head = h3.frames(answer.raw, whole=False)[0]
    _, found = pylsqpack.Decoder(0, 0).feed_header(0, head)
    known = dict(found)
    return Answer(int(known[b":status"]), known.get(b"x-seen"))


DOWNSTREAMS: tuple[Downstream, ...] = (H1(), H2(), H3())
