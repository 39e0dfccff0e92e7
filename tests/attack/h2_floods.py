"""Floods over HTTP/2: what one connection says, how often, and what may become of it."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from support import frames, hpack
from support.frames import CONTINUATION, frame, headers
from support.ground import Ground
from support.h2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PREFACE,
    SETTINGS,
)
from support.h2_raw import READY, REFUSED_STREAM, Raw, fields, get, post, reset, setting, window
from support.net import eventually

STREAMS = 16
"""Requests at once that a connection may make."""
RESETS = 400
"""Requests that one connection may take back before it is ended, at most: each may have been work upstream."""
ATTEMPTS = 3 * RESETS
COUNT = 20_000

Ends = Literal["calm", "error", "open", "either"]
"""Whether the connection is ended by ENHANCE_YOUR_CALM, by whatever error, or not; or may be, or not."""
Run = Callable[[Raw, Ground], None]
Piece = Callable[[int], bytes]
"""What is said about a stream."""


@dataclass(frozen=True)
class Flood:
    """`begun`: the most that the upstream may be asked. `first`: how the connection begins."""

    name: str
    ends: Ends
    run: Run
    begun: int = 0
    first: bytes = READY


def streams() -> Iterator[int]:
    """Those of requests behind the first ones."""
    yield from itertools.count(2 * STREAMS + 1, 2)


def repeated(piece: bytes, count: int, first: bytes = b"", *, reading: bool = True) -> Run:
    """`reading`: whether what the gateway says to it is read."""

    def run(client: Raw, ground: Ground) -> None:
        client.push(first + piece * count, reading=reading)

    return run


def on_streams(piece: Piece, count: int = ATTEMPTS) -> Run:
    """On a stream of its own each time, all at once."""

    def run(client: Raw, ground: Ground) -> None:
        client.push(b"".join(map(piece, itertools.islice(streams(), count))))

    return run


def answered(piece: Piece, count: int, first: bytes = b"") -> Run:
    """The same, with no more streams at once than are allowed."""

    def run(client: Raw, ground: Ground) -> None:
        client.push(first)
        coming = streams()
        for _ in range(count // STREAMS):
            these = list(itertools.islice(coming, STREAMS))
            client.push(b"".join(map(piece, these)))
            for one in these:
                client.pull(10, one)

    return run


def under_way(piece: Piece, at_once: int = 1) -> Run:
    """`piece` for each of `at_once` requests, when they are with the upstream; over and over."""

    def run(client: Raw, ground: Ground) -> None:
        coming = streams()
        for _ in range(ATTEMPTS // at_once):
            begun = ground.upstream.begun + at_once
            these = list(itertools.islice(coming, at_once))
            client.push(b"".join(get(one, b"/never") for one in these))
            eventually(functools.partial(_arrived, client, ground, begun), 10, 0.0005)
            client.push(b"".join(map(piece, these)))
            if client.ended is not None:
                return

    return run


def _arrived(client: Raw, ground: Ground, begun: int) -> bool:
    client.pull(0)
    return client.ended is not None or ground.upstream.begun >= begun


def partly_answered(client: Raw, ground: Ground) -> None:
    """Each request is reset when its response has begun."""
    for one in itertools.islice(streams(), ATTEMPTS):
        client.push(get(one, b"/begun"))
        client.pull(10, one)
        client.push(reset(one))
        if client.ended is not None:
            return


def now_and_then(client: Raw, ground: Ground) -> None:
    """What a browser does that is used in a hurry: most requests are answered, some are taken back."""
    for number, one in enumerate(itertools.islice(streams(), 600)):
        client.push(get(one, b"/quick"))
        if number % 10 == 0:
            client.push(reset(one))
        else:
            client.pull(10, one)


def over_the_limit(client: Raw, ground: Ground) -> None:
    these = list(itertools.islice(streams(), 5 * STREAMS))
    client.push(b"".join(get(one, b"/never") for one in these))
    refused = dict.fromkeys(these[STREAMS:], REFUSED_STREAM)

    def told() -> bool:
        client.pull(0)
        return client.resets == refused

    eventually(told)


def trash(client: Raw, ground: Ground) -> None:
    for _ in range(30):
        with Raw(ground.address, ground.ca, os.urandom(1 << 12)) as other:
            assert other.closed()


GET = hpack.block(fields(b"/health"))
NEVER = b"".join(get(1 + 2 * number, b"/never") for number in range(STREAMS))
ENDLESS = b"".join(get(1 + 2 * number, b"/endless") for number in range(STREAMS))
UPLOAD = post(1, b"/upload")
LENGTH = (b"content-length", b"1")
PRIORITY_FRAME, PUSH_PROMISE, PRIORITY_UPDATE, UNKNOWN = 2, 5, 16, 0xBE
WINDOW = 0x7FFFFFFF


def asked(one: int) -> bytes:
    return get(one, b"/health")


def block(one: int, *pieces: bytes) -> bytes:
    """A request whose header block comes in pieces."""
    middle = b"".join(frame(CONTINUATION, 0, one, piece) for piece in pieces[1:-1])
    return frame(HEADERS, END_STREAM, one, pieces[0]) + middle + frame(CONTINUATION, END_HEADERS, one, pieces[-1])


RAPID_RESETS = (
    Flood("reset at once", "calm", on_streams(lambda one: get(one, b"/never") + reset(one)), STREAMS),
    Flood("reset with a body to come", "calm", on_streams(lambda one: post(one, b"/upload") + reset(one)), STREAMS),
    Flood("reset under way", "error", under_way(reset), RESETS),
    Flood("reset under way, in batches", "error", under_way(reset, STREAMS), RESETS + STREAMS),
    Flood("reset when answered in part", "error", partly_answered, RESETS),
    Flood("reset now and then", "open", now_and_then, 600),
    Flood("reset again and again", "either", repeated(reset(1), COUNT, get(1, b"/never")), 1),
    Flood("reset before it was begun", "error", repeated(reset(1), 1)),
)


# What makes the gateway reset a stream itself, which must cost it no more (CVE-2025-8671).
BEHIND_THE_END: dict[str, Piece] = {
    "a window too large": lambda one: window(one, WINDOW),
    "a window of nothing more": lambda one: window(one, 0),
    "DATA behind the end": lambda one: frames.data(one, b"x"),
    "HEADERS behind the end": lambda one: headers(one, GET, end=True),
    "a priority of four bytes": lambda one: frame(PRIORITY_FRAME, 0, one, bytes(4)),
    "a stream that depends on itself": lambda one: frame(PRIORITY_FRAME, 0, one, one.to_bytes(4) + b"\x10"),
}
MALFORMED: dict[str, Piece] = {
    "more than was announced": lambda one: post(one, b"/upload", LENGTH) + frames.data(one, b"xx"),
    "less than was announced": lambda one: post(one, b"/upload", LENGTH) + frames.data(one, b"", end=True),
    "trailers that do not end it": lambda one: post(one, b"/upload") + headers(one, b""),
    "a capital in a name": lambda one: headers(one, GET + hpack.literal(b"X-A", b"1"), end=True),
    "nothing in the head": lambda one: headers(one, b"", end=True),
    "no path": lambda one: headers(one, hpack.block(fields(b"/")[:3]), end=True),
}


def made_to_reset() -> Iterator[Flood]:
    for name, piece in BEHIND_THE_END.items():
        at_once = on_streams(lambda one, piece=piece: get(one, b"/never") + piece(one))  # type: ignore[misc]
        yield Flood(f"made to reset: {name}", "error", at_once, STREAMS)
        yield Flood(f"made to reset under way: {name}", "error", under_way(piece), RESETS)
    for name, piece in MALFORMED.items():
        yield Flood(f"made to reset: {name}", "error", on_streams(piece), STREAMS)


def continued() -> Iterator[Flood]:
    full = (b"\x00\x01a\x7e" + b"b" * 126) * 120
    begin = frame(HEADERS, END_STREAM, 1, GET)
    trailers = UPLOAD + frame(HEADERS, END_STREAM, 1, hpack.literal(b"x-a", b"1"))
    for name, piece, count in (("empty", b"", 100_000), ("full", full, 5_000), ("of a byte", b"\x00", 100_000)):
        more = frame(CONTINUATION, 0, 1, piece)
        yield Flood(f"a head continued without end, {name}", "error", repeated(more, count, begin))
        yield Flood(f"trailers continued without end, {name}", "error", repeated(more, count, trailers), 1)
    in_four = answered(lambda one: block(one, GET[:3], b"", GET[3:], b""), 4000)
    yield Flood("heads in four frames", "open", in_four)
    in_bytes = answered(lambda one: block(one, *(GET[at : at + 1] for at in range(len(GET)))), 320)
    yield Flood("heads in frames of a byte", "either", in_bytes)
    yield Flood("a head continued by another stream", "error", repeated(begin + asked(3), 1))
    yield Flood("a head continued that did not begin", "error", repeated(frame(CONTINUATION, END_HEADERS, 1, GET), 1))


NOTHING, PINGED = frame(SETTINGS, 0, 0), frame(PING, 0, 0, b"x" * 8)
WINDOWS = b"".join(frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, size)) for size in (0, 1, 65_535))
TABLES = b"".join(frame(SETTINGS, 0, 0, setting(HEADER_TABLE_SIZE, size)) for size in (0, 4096, 0xFFFFFFFF))
TOO_LARGE = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, WINDOW + 1))
NO_ROOM = READY + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 0))
CONTROL = (
    Flood("settings", "either", repeated(NOTHING, COUNT)),
    Flood("settings, with nothing read", "either", repeated(NOTHING, 10 * COUNT, reading=False)),
    Flood("settings of many", "either", repeated(frame(SETTINGS, 0, 0, setting(0xF0F0, 1) * 2700), 300)),
    Flood("settings acknowledged that were not made", "either", repeated(frame(SETTINGS, ACK, 0), COUNT)),
    Flood("windows that change", "either", repeated(WINDOWS, 5000, NEVER), STREAMS),
    Flood("windows that change for responses", "either", repeated(WINDOWS, 5000, ENDLESS), STREAMS),
    Flood("tables that change", "either", answered(lambda one: TABLES + asked(one), 1600)),
    Flood("a window too large for all", "error", repeated(TOO_LARGE, 1)),
    Flood("pings", "either", repeated(PINGED, COUNT)),
    Flood("pings, with nothing read", "either", repeated(PINGED, 10 * COUNT, reading=False)),
    Flood("pings answered that were not made", "either", repeated(frame(PING, ACK, 0, bytes(8)), COUNT)),
    Flood("windows of a byte more", "either", repeated(window(0, 1), COUNT)),
    Flood("a stream's window of a byte more", "either", repeated(window(1, 1), COUNT, ENDLESS), STREAMS, NO_ROOM),
    Flood("windows of a stream that was reset", "either", repeated(window(1, 1), COUNT, UPLOAD + reset(1)), 1),
    Flood("a window too large", "error", repeated(window(0, WINDOW), 2)),
    Flood("a window of nothing more", "error", repeated(window(0, 0), 1)),
    Flood("GOAWAY", "either", repeated(frame(GOAWAY, 0, 0, bytes(8)), COUNT)),
)

PRIORITY = frame(PRIORITY_FRAME, 0, 99, b"\x00\x00\x00\x00\x10")
PROMISE = frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + GET)
IGNORED = (
    Flood("priorities", "either", repeated(PRIORITY, COUNT)),
    Flood("priorities of streams", "either", on_streams(lambda one: frame(PRIORITY_FRAME, 0, one, bytes(5)), COUNT)),
    Flood("new priorities", "either", repeated(frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\1u=1"), COUNT)),
    Flood("unknown frames", "either", repeated(frame(UNKNOWN, 0, 0), COUNT)),
    Flood("unknown frames on streams", "either", on_streams(lambda one: frame(UNKNOWN, 0, one), COUNT)),
    Flood("unknown frames that are large", "either", repeated(frame(UNKNOWN, 0, 0, bytes(16_384)), 1000)),
    Flood("a frame too large", "error", repeated(frame(UNKNOWN, 0, 0, bytes(16_385)), 1)),
    Flood("a promise", "error", repeated(PROMISE, 1)),
)

PADDING = frame(DATA, PADDED, 1, b"\xff" + bytes(255))
TRAILERS = hpack.literal(b"x-sum", b"1")
BODIES = (
    Flood("empty DATA", "either", repeated(frames.data(1, b""), COUNT, UPLOAD), 1),
    Flood("DATA of a byte", "either", repeated(frames.data(1, b"x"), COUNT, UPLOAD), 1),
    Flood("DATA of padding alone", "either", repeated(PADDING, COUNT, UPLOAD), 1),
    Flood("DATA on a stream that was reset", "either", repeated(frames.data(1, b""), COUNT, UPLOAD + reset(1)), 1),
    Flood("DATA before the head", "error", repeated(frames.data(1, b"x"), 1)),
    Flood("DATA beyond the window", "either", repeated(frames.data(1, bytes(16_384)), 100, post(1, b"/never")), 1),
    Flood(
        "trailers without a body",
        "either",
        answered(lambda one: post(one, b"/upload") + headers(one, TRAILERS, end=True), 320),
        320,
    ),
    Flood(
        "empty trailers", "either", answered(lambda one: post(one, b"/upload") + headers(one, b"", end=True), 320), 320
    ),
)

LONG = headers(1, GET + hpack.literal(b"x-long", b"x" * 4000, indexed=True), end=True)
LONGS = GET + hpack.integer(62, 7, 0x80) * 10_000
CRUMBS = GET + hpack.literal(b"cookie", b"") * 1500
RESIZED = b"\x20\x3f\xe1\x1f" * 4000 + GET
PUSHED_OUT = GET + b"".join(hpack.literal(b"a%d" % at, b"", indexed=True) for at in range(90))
CODED = GET + hpack.literal(b"x-coded", b"0" * 24_000, huffman=True)


def asks(piece: bytes, count: int, first: bytes = b"") -> Run:
    return answered(lambda one: headers(one, piece, end=True), count, first)


# Header blocks that are small on the wire.
COMPRESSED = (
    Flood("one long field ten thousand times", "either", asks(LONGS, 160, LONG)),
    Flood("empty fields", "either", asks(CRUMBS, 320)),
    Flood("tables emptied and filled", "either", asks(RESIZED, 320)),
    Flood("entries that push others out", "either", asks(PUSHED_OUT, 480)),
    Flood("fields in Huffman code", "either", asks(CODED, 320)),
    Flood("an index beyond the table", "error", repeated(headers(1, b"\xff\x7f", end=True), 1)),
    Flood("a table too large", "error", repeated(headers(1, b"\x3f\xff\xff\xff\x7f" + GET, end=True), 1)),
    Flood("an integer without end", "error", repeated(headers(1, b"\xff" + b"\x80" * 1000, end=True), 1)),
)

WIDE = window(0, WINDOW - 65_535) + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, WINDOW))
CONNECTIONS = (
    Flood("streams over the limit", "either", over_the_limit, STREAMS),
    Flood("streams over the limit, without end", "either", on_streams(lambda one: get(one, b"/never"), 5000), STREAMS),
    Flood("streams that go back", "error", repeated(asked(7) + asked(5), 1)),
    Flood("a stream of the gateway's", "error", repeated(asked(2), 1)),
    Flood("responses that nobody reads", "either", repeated(WIDE + ENDLESS, 1, reading=False), STREAMS),
    Flood("random bytes", "error", repeated(b"", 0), first=os.urandom(1 << 16)),
    Flood("HTTP/1.1", "error", repeated(b"", 0), first=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    Flood("a preface that is wrong at its end", "error", repeated(b"", 0), first=PREFACE[:-1] + b"x"),
    Flood("connections of random bytes", "open", trash),
)

FLOODS = (
    *RAPID_RESETS,
    *made_to_reset(),
    *continued(),
    *CONTROL,
    *IGNORED,
    *BODIES,
    *COMPRESSED,
    *CONNECTIONS,
)
