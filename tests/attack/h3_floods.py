"""Floods over HTTP/3 and QUIC: what one connection says, how often, and what may become of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from aioquic.quic.connection import QuicConnectionId

from support import h3, quic_raw
from support.ground import Ground
from support.h3 import Headers, Http3, frame, section, varint
from support.quic_raw import numbers, push, stream_frame, withhold

STREAMS = 128
"""Requests at once that a connection may make."""
RESETS = 400
"""Requests that one connection may take back before it is ended, at most: each may have been work upstream."""
ATTEMPTS = 3 * RESETS
COUNT = 20_000

Ends = Literal["excessive", "error", "open", "either"]
"""Whether the connection is ended by H3_EXCESSIVE_LOAD, by whatever error, or not; or may be, or not."""
Run = Callable[[Http3, Ground], Awaitable[None]]
After = Callable[[Http3, int], None]
"""What follows a request on its stream."""


@dataclass(frozen=True)
class Flood:
    """`begun`: the most that the upstream may be asked."""

    name: str
    ends: Ends
    run: Run
    begun: int = 0


def head(path: str, method: str = "GET", more: Headers = ()) -> bytes:
    fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path), *more]
    return frame(h3.HEADERS, section(fields))


HEALTH, NEVER, QUICK, BEGUN, ENDLESS = map(head, ("/health", "/never", "/quick", "/begun", "/endless"))
UPLOAD = head("/upload", "POST")
CONTROL, PUSH, ENCODER, DECODER = (varint(kind) for kind in range(4))
SETTINGS = CONTROL + frame(h3.SETTINGS)
GREASE = 0x1F * 7 + 0x21
PRIORITY_UPDATE = 0xF0700


async def room(client: Http3, *, one_way: bool = False) -> bool:
    """Waits until one more stream may be opened. False: the connection has ended."""
    quic = client.quic
    for _ in range(4000):
        # What raises the limit is told to nobody.
        most = quic._remote_max_streams_uni if one_way else quic._remote_max_streams_bidi
        if client.ended is not None or quic.get_next_available_stream_id(is_unidirectional=one_way) // 4 < most:
            break
        await asyncio.sleep(0.002)
    return client.ended is None


async def arrived(client: Http3, ground: Ground, begun: int) -> None:
    """Waits until the upstream was asked so often, or the connection has ended."""
    async with asyncio.timeout(10):
        while client.ended is None and ground.upstream.begun < begun:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


async def taken(client: Http3, stream: int) -> None:
    """Waits until the gateway has taken everything on the stream, has stopped it, or takes no more."""
    sender = client.quic._streams[stream].sender
    for _ in range(100):
        if client.ended is not None or client.answers[stream].stopped is not None or sender.buffer_is_empty:
            break
        await asyncio.sleep(0.005)


def on_request(sent: bytes) -> Run:
    """All of it on one stream."""

    async def run(client: Http3, ground: Ground) -> None:
        await taken(client, client.open(sent))

    return run


def one_way(sent: bytes) -> Run:
    """The same on a stream of the client's alone."""

    async def run(client: Http3, ground: Ground) -> None:
        await taken(client, client.open(sent, one_way=True))

    return run


def on_control(sent: bytes) -> Run:
    """Behind the settings."""

    async def run(client: Http3, ground: Ground) -> None:
        client.send(2, sent)
        await taken(client, 2)

    return run


def of_quic(piece: Callable[[int], bytes], count: int = COUNT, first: bytes = b"") -> Run:
    """Frames of QUIC. `first`: on stream 0."""

    async def run(client: Http3, ground: Ground) -> None:
        client.open(first)
        await push(client, map(piece, range(count)))

    return run


def on_streams(sent: bytes, after: After, *, end: bool = False, count: int = ATTEMPTS) -> Run:
    """A request on a stream of its own each time, and `after`, in one packet."""

    async def run(client: Http3, ground: Ground) -> None:
        for _ in range(count):
            if not await room(client):
                return
            stream = client.quic.get_next_available_stream_id()
            client.quic.send_stream_data(stream, sent, end)
            after(client, stream)
            client.transmit()

    return run


def under_way(after: After, at_once: int = 1) -> Run:
    """The same when as many requests are with the upstream; over and over."""

    async def run(client: Http3, ground: Ground) -> None:
        for _ in range(ATTEMPTS // at_once):
            begun, streams = ground.upstream.begun + at_once, []
            for _ in range(at_once):
                if not await room(client):
                    return
                streams.append(client.open(NEVER, end=True))
            await arrived(client, ground, begun)
            for stream in streams:
                after(client, stream)
            client.transmit()

    return run


def reset(client: Http3, stream: int) -> None:
    client.quic.reset_stream(stream, h3.REQUEST_CANCELLED)


def stop(client: Http3, stream: int) -> None:
    client.quic.stop_stream(stream, h3.REQUEST_CANCELLED)


def cancel(client: Http3, stream: int) -> None:
    reset(client, stream)
    stop(client, stream)


def nothing(client: Http3, stream: int) -> None:
    pass


async def partly_answered(client: Http3, ground: Ground) -> None:
    """Each request is cancelled when its response has begun."""
    for _ in range(ATTEMPTS):
        if not await room(client):
            return
        stream = client.open(BEGUN, end=True)
        answer = client.answers[stream]
        await client.until(lambda answer=answer: answer.raw or answer.reset is not None)
        client.cancel(stream)


async def now_and_then(client: Http3, ground: Ground) -> None:
    """What a browser does that is used in a hurry: most requests are answered, some are taken back."""
    for number in range(400):
        assert await room(client)
        stream = client.open(QUICK, end=True)
        if number % 10 == 0:
            client.cancel(stream)
        else:
            await client.answer(stream)


CANCELLED = (
    Flood("cancelled at once", "excessive", on_streams(NEVER, cancel), RESETS),
    Flood("reset at once", "excessive", on_streams(UPLOAD, reset), RESETS),
    Flood("stopped at once", "excessive", on_streams(NEVER, stop, end=True), RESETS),
    Flood("reset before they begin", "excessive", on_streams(b"", reset), RESETS),
    Flood("cancelled under way", "excessive", under_way(cancel), RESETS),
    Flood("stopped under way", "excessive", under_way(stop), RESETS),
    Flood("cancelled under way, in batches", "excessive", under_way(cancel, 32), RESETS + 32),
    Flood("cancelled when answered in part", "excessive", partly_answered, RESETS),
    Flood("cancelled now and then", "open", now_and_then, 400),
)


def asks(sent: bytes, count: int) -> Run:
    return on_streams(sent, nothing, end=True, count=count)


NO_PATH = frame(h3.HEADERS, section([(":method", "GET"), ("X-A", "1")]))
MORE = head("/upload", "POST", [("content-length", "1")]) + frame(h3.DATA, b"xx")
HUGE = head("/health", more=[(f"x-{at}", "x" * 1000) for at in range(200)])
# :authority from the static table, which has no value: a field of 42 bytes.
TINY = frame(h3.HEADERS, b"\0\0" + b"\xc0" * 16_000)
CRUMBS = head("/health", more=[("cookie", "")] * 1500)
TRAILERS = UPLOAD + frame(h3.HEADERS, section([(f"x-{at}", "x" * 1000) for at in range(50)]))
REQUESTS = (
    Flood("no path", "either", asks(NO_PATH, 1000)),
    Flood("no head", "either", asks(b"", 1000)),
    Flood("more than was announced", "either", asks(MORE, 1000), 1000),
    Flood("a head of a terabyte", "either", on_request(varint(h3.HEADERS) + varint(1 << 40) + bytes(1 << 16))),
    Flood("huge heads", "open", asks(HUGE, 60)),
    Flood("sixteen thousand fields of a byte", "either", asks(TINY, 60)),
    Flood("empty fields", "either", asks(CRUMBS, 200)),
    Flood("long trailers", "either", asks(TRAILERS, 100), 100),
)

WITHOUT_END = varint(GREASE) + varint(1 << 40) + bytes(1 << 20)
LARGE = varint(h3.SETTINGS) + varint(1 << 30) + bytes(1 << 16)
FRAMES = (
    Flood("unknown frames", "either", on_request(UPLOAD + frame(GREASE) * COUNT), 1),
    Flood("unknown frames that are large", "either", on_request(UPLOAD + frame(GREASE, bytes(1 << 16)) * 20), 1),
    Flood("an unknown frame without end", "either", on_request(WITHOUT_END)),
    Flood("empty DATA", "either", on_request(UPLOAD + frame(h3.DATA) * COUNT), 1),
    Flood("DATA of a byte", "either", on_request(UPLOAD + frame(h3.DATA, b"x") * COUNT), 1),
    Flood("reserved frames on control", "either", on_control(frame(GREASE) * COUNT)),
    Flood("priorities", "either", on_control(frame(PRIORITY_UPDATE, b"\0u=1") * COUNT)),
    Flood("most pushes, again and again", "either", on_control(frame(h3.MAX_PUSH_ID, b"\4") * COUNT)),
    Flood("GOAWAY", "either", on_control(frame(h3.GOAWAY, b"\4") * COUNT)),
    Flood("settings again and again", "error", on_control(frame(h3.SETTINGS) * COUNT)),
    Flood("a large frame on control", "error", on_control(LARGE)),
)

QPACK = (
    Flood("an encoder that has no room, without end", "either", one_way(ENCODER + b"\x20" * 100_000)),
    Flood("an encoder that inserts", "error", one_way(ENCODER + b"\x41a\x01b" * 10_000)),
    Flood("a decoder that gives up streams", "either", one_way(DECODER + b"\x40" * 100_000)),
    Flood("a decoder that counts insertions", "error", one_way(DECODER + b"\x01" * 100_000)),
    Flood("a number without end", "either", one_way(DECODER + b"\x7f" + b"\xff" * 100_000)),
)


async def of_unknown_kinds(client: Http3, ground: Ground) -> None:
    for number in range(1000):
        if not await room(client, one_way=True):
            return
        client.open(varint(GREASE + 0x1F * number) + b"x", one_way=True, end=True)


async def of_no_kind(client: Http3, ground: Ground) -> None:
    """They are open, and do not say what they are."""
    while client.quic.get_next_available_stream_id(is_unidirectional=True) // 4 < 8:
        client.open(b"\x40", one_way=True)


async def over_the_limit(client: Http3, ground: Ground) -> None:
    begun = ground.upstream.begun
    for _ in range(STREAMS):
        client.open(NEVER, end=True)
    await arrived(client, ground, begun + STREAMS)
    client.quic._remote_max_streams_bidi += 10
    client.open(NEVER, end=True)


async def unread(client: Http3, ground: Ground) -> None:
    """Responses without end, for which there is no room."""
    withhold(client)
    begun = ground.upstream.begun
    for _ in range(STREAMS):
        client.open(ENDLESS, end=True)
    await arrived(client, ground, begun + STREAMS)


async def replaced(client: Http3, ground: Ground) -> None:
    """Connection IDs of the client's, each of which retires those before it."""
    quic = client.quic
    made = [
        QuicConnectionId(
            cid=os.urandom(8), sequence_number=100 + at, stateless_reset_token=os.urandom(16), was_sent=True
        )
        for at in range(2000)
    ]
    quic._host_cids.extend(made)
    quic._host_cid_seq = 10_000
    await push(client, (identified(one) for one in made))


def identified(one: QuicConnectionId) -> bytes:
    begin = numbers(quic_raw.NEW_CONNECTION_ID, one.sequence_number, one.sequence_number)
    return begin + b"\x08" + one.cid + one.stateless_reset_token


STREAM_FLOODS = (
    Flood("streams of unknown kinds", "either", of_unknown_kinds),
    Flood("streams of no kind", "open", of_no_kind),
    Flood("streams over the limit", "error", over_the_limit, STREAMS),
    Flood("responses that nobody reads", "either", unread, STREAMS),
)


def challenge(at: int) -> bytes:
    return numbers(quic_raw.PATH_CHALLENGE) + at.to_bytes(8)


def retired(at: int) -> bytes:
    return numbers(quic_raw.RETIRE_CONNECTION_ID, 1 + at)


def every_other(at: int) -> bytes:
    return stream_frame(0, 100 + 2 * at, b"x")


def from_behind(at: int) -> bytes:
    return stream_frame(0, 60_000 - 2 * at, b"x")


def handshake(at: int) -> bytes:
    return numbers(quic_raw.CRYPTO, 100 + 2 * at, 1) + b"x"


TRANSPORT = (
    Flood("pings", "open", of_quic(lambda _: numbers(quic_raw.PING))),
    Flood("paths to be validated", "either", of_quic(challenge, 5000)),
    Flood("room for data", "open", of_quic(lambda at: numbers(quic_raw.MAX_DATA, (1 << 20) + at))),
    Flood(
        "room for a stream's data",
        "open",
        of_quic(lambda at: numbers(quic_raw.MAX_STREAM_DATA, 0, (1 << 20) + at), first=UPLOAD),
        1,
    ),
    Flood("room for streams", "open", of_quic(lambda at: numbers(quic_raw.MAX_STREAMS, 200 + at))),
    Flood("no room for data", "open", of_quic(lambda at: numbers(quic_raw.DATA_BLOCKED, at))),
    Flood("no room for streams", "open", of_quic(lambda at: numbers(quic_raw.STREAMS_BLOCKED, at))),
    Flood("new connection IDs", "either", replaced),
    Flood("connection IDs that are retired", "either", of_quic(retired, 5000)),
    Flood("empty STREAM frames", "either", of_quic(lambda _: stream_frame(0, len(UPLOAD), b""), first=UPLOAD), 1),
    Flood("the same bytes again", "either", of_quic(lambda _: stream_frame(0, 0, UPLOAD), 5000, UPLOAD), 1),
    Flood("every other byte of a stream", "either", of_quic(every_other, first=UPLOAD), 1),
    Flood("every other byte from behind", "either", of_quic(from_behind, first=UPLOAD), 1),
    Flood("every other byte of a handshake", "either", of_quic(handshake)),
    Flood("a byte far beyond the window", "error", of_quic(lambda _: stream_frame(0, 1 << 30, b"x"), 1)),
    Flood("a handshake that the client calls done", "error", of_quic(lambda _: numbers(quic_raw.HANDSHAKE_DONE), 1)),
    Flood("unknown frames of QUIC", "error", of_quic(lambda _: numbers(0x2F), 1)),
)

FLOODS = (*CANCELLED, *REQUESTS, *FRAMES, *QPACK, *STREAM_FLOODS, *TRANSPORT)
