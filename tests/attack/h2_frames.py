"""HTTP/2 alone: frames and header blocks that section by section cannot be written."""

from __future__ import annotations

import struct

from attack.case import CUT, REFUSED, SMUGGLED, Read, Tables, either, forwarded
from attack.fields import LENGTH, fields
from support import frames, hpack
from support.h2 import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITY, RST_STREAM
from support.strict_http import Field

TABLES = Tables()
N = len(SMUGGLED)
BLOCK = hpack.block(fields())
CANCEL = struct.pack("!I", 8)
WEIGHT = b"\x00\x00\x00\x00\x10"
BODY = frames.data(1, SMUGGLED, end=True)


def blocks(*pieces: bytes, end: bool = False) -> bytes:
    """One header block in several frames."""
    made = frames.frame(HEADERS, END_STREAM if end else 0, 1, pieces[0])
    for piece in pieces[1:-1]:
        made += frames.frame(frames.CONTINUATION, 0, 1, piece)
    return made + frames.frame(frames.CONTINUATION, END_HEADERS, 1, pieces[-1])


def coded(*more: Field) -> bytes:
    """Fields in Huffman code, with a body."""
    block = b"".join(hpack.literal(name, value, huffman=True) for name, value in fields(*more))
    return frames.headers(1, block) + BODY


def remembered(name: bytes, value: bytes) -> bytes:
    """A bad field that is put into the dynamic table, and a second request that only points to it."""
    first = frames.headers(1, BLOCK + hpack.literal(name, value, indexed=True)) + BODY
    return first + frames.headers(3, BLOCK + b"\xbe") + frames.data(3, SMUGGLED, end=True)


def static(index: int, value: bytes) -> bytes:
    """A field whose name is an entry of the static table."""
    return b"\x0f" + hpack.integer(index - 15, 7) + hpack.string(value)


TRANSFER_ENCODING, CONTENT_LENGTH, HOST = 57, 28, 38
TABLES.add(
    "header blocks",
    ("in pieces", blocks(*(BLOCK[at : at + 19] for at in range(0, len(BLOCK), 19))) + BODY, forwarded(SMUGGLED)),
    ("a piece that is empty", blocks(BLOCK, b"") + BODY, forwarded(SMUGGLED)),
    ("in Huffman code", coded(), forwarded(SMUGGLED)),
    ("a CR LF in Huffman code", coded((b"x-test", b"a\r\nx-smuggled: b")), REFUSED),
    ("a name with a CR LF in Huffman code", coded((b"x: y\r\nx-smuggled", b"b")), REFUSED),
    ("a request in Huffman code", coded((b"x-test", b"a\r\n\r\n" + SMUGGLED)), REFUSED),
    ("chunked in Huffman code", coded((b"transfer-encoding", b"chunked")), REFUSED),
    ("a NUL in Huffman code", coded((b"x-test", b"a\0b")), REFUSED),
    ("upper-case in Huffman code", coded((b"X-Test", b"a")), REFUSED),
    ("a CR LF that is remembered", remembered(b"x-test", b"a\r\nx-smuggled: b"), REFUSED),
    ("chunked that is remembered", remembered(b"transfer-encoding", b"chunked"), REFUSED),
    ("upper-case that is remembered", remembered(b"X-Test", b"a"), REFUSED),
    ("chunked by index", frames.headers(1, BLOCK + static(TRANSFER_ENCODING, b"chunked")) + BODY, REFUSED),
    ("a length by index", frames.headers(1, BLOCK + static(CONTENT_LENGTH, b"5")) + BODY, REFUSED),
    ("another host by index", frames.headers(1, BLOCK + static(HOST, b"other.test")) + BODY, either(SMUGGLED)),
    ("an index beyond the table", frames.headers(1, BLOCK + b"\xff\x7f") + BODY, REFUSED),
    ("index 0", frames.headers(1, BLOCK + b"\x80") + BODY, REFUSED),
    ("a string cut short", frames.headers(1, BLOCK + b"\x00\x05x") + BODY, REFUSED),
    ("bad padding", frames.headers(1, BLOCK + b"\x00\x01x\x81\x00") + BODY, REFUSED),
    ("an end of string in Huffman code", frames.headers(1, BLOCK + b"\x00\x01x\x84\xff\xff\xff\xff") + BODY, REFUSED),
    ("cut in a name", blocks(BLOCK + b"\x00\x11transfer-", b"encoding\x07chunked") + BODY, REFUSED),
    ("cut off by DATA", frames.frame(HEADERS, 0, 1, BLOCK[:20]) + BODY, REFUSED),
    (
        "cut off by another stream",
        frames.frame(HEADERS, 0, 1, BLOCK[:20]) + frames.headers(3, BLOCK, end=True),
        REFUSED,
    ),
    ("a continuation of nothing", frames.frame(frames.CONTINUATION, END_HEADERS, 1, BLOCK) + BODY, REFUSED),
)
TABLES.add(
    "frames",
    ("a weight", frames.frame(HEADERS, END_HEADERS | PRIORITY, 1, WEIGHT + BLOCK) + BODY, forwarded(SMUGGLED)),
    (
        "padding in both",
        frames.frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05" + BLOCK + b"\0" * 5)
        + frames.frame(DATA, END_STREAM | PADDED, 1, b"\x09" + SMUGGLED + b"\0" * 9),
        forwarded(SMUGGLED),
    ),
    (
        "padding that looks like a request",
        frames.headers(1, BLOCK) + frames.frame(DATA, END_STREAM | PADDED, 1, b"%chello" % N + SMUGGLED),
        either(b"hello"),
    ),
    (
        "padding that counts towards the length",
        frames.headers(1, hpack.block(fields(LENGTH)))
        + frames.frame(DATA, END_STREAM | PADDED, 1, b"%chello" % (N - 5) + b"\0" * (N - 5)),
        REFUSED,
    ),
    (
        "more padding than payload",
        frames.headers(1, BLOCK) + frames.frame(DATA, END_STREAM | PADDED, 1, b"\xff" + SMUGGLED),
        REFUSED,
    ),
    ("DATA before HEADERS", BODY + frames.headers(1, BLOCK, end=True), REFUSED),
    ("DATA behind the end", frames.headers(1, BLOCK) + BODY + BODY, either(SMUGGLED)),
    (
        "DATA behind an end without a body",
        frames.headers(1, hpack.block(fields(method=b"GET")), end=True) + BODY,
        either(Read(method=b"GET")),
    ),
    (
        "DATA behind trailers",
        frames.headers(1, BLOCK)
        + frames.data(1, b"hello")
        + frames.headers(1, hpack.block([(b"x-sum", b"7")]))
        + BODY,
        REFUSED,
    ),
    (
        "trailers that do not end the stream",
        frames.headers(1, BLOCK) + frames.data(1, b"hello") + frames.headers(1, hpack.block([(b"x-sum", b"7")])),
        REFUSED,
    ),
    ("a second head", frames.headers(1, BLOCK) + frames.headers(1, BLOCK) + BODY, REFUSED),
    (
        "DATA behind a reset",
        frames.headers(1, BLOCK) + frames.data(1, b"hello") + frames.frame(RST_STREAM, 0, 1, CANCEL) + BODY,
        CUT,
    ),
    ("a stream of the server's", frames.headers(2, BLOCK) + frames.data(2, SMUGGLED, end=True), REFUSED),
    ("stream 0", frames.headers(0, BLOCK) + frames.data(0, SMUGGLED, end=True), REFUSED),
    ("a promise", frames.frame(5, END_HEADERS, 1, struct.pack("!I", 2) + BLOCK), REFUSED),
    ("HTTP/1.1 behind the preface", SMUGGLED, REFUSED),
    ("a frame of 20,000 bytes", frames.headers(1, BLOCK) + frames.data(1, SMUGGLED * 455, end=True), REFUSED),
    ("an unknown frame", frames.headers(1, BLOCK) + frames.frame(0x42, 0xFF, 1, SMUGGLED) + BODY, forwarded(SMUGGLED)),
)
