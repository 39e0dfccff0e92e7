"""HTTP/1.1: where a body ends. CL.TE, TE.CL, TE.TE, TE.0, CL.0, 0.CL, and spellings of lengths.

The classes are PortSwigger's ("HTTP Desync Attacks", "Browser-Powered Desync Attacks", "HTTP/1.1 must die") and
"Unveiling TE.0"; what is right is from RFC 9112, section 6, and RFC 9110, sections 8.6 and 10.1.1. Wherever one of two
readings ends a body early, what follows there is `SMUGGLED`.
"""

from __future__ import annotations

from attack.case import (
    CHUNKED,
    CUT,
    OWN,
    REFUSED,
    SECOND,
    SECOND_READ,
    SMUGGLED,
    Read,
    Row,
    Tables,
    chunks,
    early,
    either,
    forwarded,
    head,
    length,
)

LIMIT = 64 << 10
"""Bytes that the gateway takes as a body."""

N = len(SMUGGLED)
FULL = length(N)
SMUGGLED_CHUNK = chunks(SMUGGLED)
FIRST_LINE = SMUGGLED_CHUNK.index(b"\r\n") + 2
"""Of the chunked body, up to where the smuggled request begins."""

BY_CHUNKS = either(SMUGGLED, after="closed")
"""Both framings: refused, or by the chunks; the connection must end either way (RFC 9112, section 6.3)."""
EMPTY_BY_CHUNKS = either(b"", after="closed")

TABLES = Tables()

TABLES.add(
    "control",
    ("a good POST", head(FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("a good POST in chunks", head(CHUNKED) + SMUGGLED_CHUNK, forwarded(SMUGGLED)),
    ("a GET", head(method=b"GET"), forwarded(Read(method=b"GET"))),
    ("two good POSTs at once", head(length(5)) + b"hello" + head(FULL) + SMUGGLED, forwarded(b"hello", SMUGGLED)),
    ("chunks, then a request", head(CHUNKED) + chunks(b"hel", b"lo") + SECOND, forwarded(b"hello", SECOND_READ)),
)

CHUNKED_END = b"0\r\n\r\n"
TABLES.add(
    "CL.TE",
    ("length first", head(length(5 + N), CHUNKED) + CHUNKED_END + SMUGGLED, EMPTY_BY_CHUNKS),
    ("chunked first", head(CHUNKED, length(5 + N)) + CHUNKED_END + SMUGGLED, EMPTY_BY_CHUNKS),
    ("GET", head(length(5 + N), CHUNKED, method=b"GET") + CHUNKED_END + SMUGGLED, either(Read(method=b"GET"))),
    ("length twice", head(length(5 + N), length(5 + N), CHUNKED) + CHUNKED_END + SMUGGLED, EMPTY_BY_CHUNKS),
    ("other case", head(b"CONTENT-length: 49", b"transfer-ENCODING: cHUNKED") + SMUGGLED_CHUNK, BY_CHUNKS),
    ("length nominated", head(b"Connection: content-length", FULL, CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("chunked nominated", head(b"Connection: transfer-encoding", FULL, CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("a bad length", head(b"Content-Length: x", CHUNKED) + SMUGGLED_CHUNK, REFUSED),
    ("an empty length", head(b"Content-Length:", CHUNKED) + SMUGGLED_CHUNK, REFUSED),
    ("a spaced length", head(b"Content-Length : 49", CHUNKED) + SMUGGLED_CHUNK, REFUSED),
    ("chunked behind many headers", head(FULL, *[b"X-A: b"] * 97, CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("chunked beyond the limit of headers", head(FULL, *[b"X-A: b"] * 200, CHUNKED) + SMUGGLED_CHUNK, REFUSED),
    ("chunked beyond the limit of bytes", head(FULL, b"X-A: " + b"b" * LIMIT, CHUNKED) + SMUGGLED_CHUNK, REFUSED),
    ("a folded length", head(b"X-A: b", b" Content-Length: 3", CHUNKED) + SMUGGLED_CHUNK, either(SMUGGLED)),
)
TABLES.add(
    "TE.CL",
    ("length first", head(length(FIRST_LINE), CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("chunked first", head(CHUNKED, length(FIRST_LINE)) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("length 0", head(length(0), CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("length 0 last", head(CHUNKED, length(0)) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("length of all", head(CHUNKED, length(len(SMUGGLED_CHUNK))) + SMUGGLED_CHUNK, BY_CHUNKS),
    ("two lengths", head(length(FIRST_LINE), length(0), CHUNKED) + SMUGGLED_CHUNK, REFUSED),
)

# RFC 9110's grammar takes them for `chunked` alone.
TE_CHUNKED = {
    "lower-case name": b"transfer-encoding: chunked",
    "odd-case name": b"tRANSFER-eNCODING: chunked",
    "upper-case value": b"Transfer-Encoding: CHUNKED",
    "odd-case value": b"Transfer-Encoding: cHuNkEd",
    "no space": b"Transfer-Encoding:chunked",
    "two spaces": b"Transfer-Encoding:  chunked",
    "a tab": b"Transfer-Encoding:\tchunked",
    "a trailing space": b"Transfer-Encoding: chunked ",
    "a trailing tab": b"Transfer-Encoding: chunked\t",
}
# The same, but a gateway may refuse them: empty list elements, a coding that is no longer one, a folded line.
TE_PERHAPS = {
    "an empty element behind": b"Transfer-Encoding: chunked,",
    "an empty element before": b"Transfer-Encoding: , chunked",
    "an empty second field": b"Transfer-Encoding: chunked\r\nTransfer-Encoding:",
    "an empty first field": b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    "identity before": b"Transfer-Encoding: identity, chunked",
    "identity before, in two": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "folded": b"Transfer-Encoding:\r\n chunked",
    "folded by a tab": b"Transfer-Encoding:\r\n\tchunked",
}
# Transfer codings all the same, but not those that end the body.
TE_WRONG = {
    "empty": b"Transfer-Encoding:",
    "identity": b"Transfer-Encoding: identity",
    "identity behind": b"Transfer-Encoding: chunked, identity",
    "identity behind, in two": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "chunked twice": b"Transfer-Encoding: chunked, chunked",
    "chunked twice, in two": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "an unknown second field": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "an unknown first field": b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    "gzip behind": b"Transfer-Encoding: chunked, gzip",
    "xchunked": b"Transfer-Encoding: xchunked",
    "chunkedx": b"Transfer-Encoding: chunkedx",
    "chunk": b"Transfer-Encoding: chunk",
    "two words": b"Transfer-Encoding: chunked chunked",
    "a space within": b"Transfer-Encoding: chun ked",
    "a parameter": b"Transfer-Encoding: chunked;q=1",
    "a semicolon": b"Transfer-Encoding: chunked;",
    "quoted": b'Transfer-Encoding: "chunked"',
    "half quoted": b'Transfer-Encoding: "chunked',
    "in apostrophes": b"Transfer-Encoding: 'chunked'",
    "two colons": b"Transfer-Encoding:: chunked",
    "an equals sign": b"Transfer-Encoding:=chunked",
    "a vertical tab before": b"Transfer-Encoding: \x0bchunked",
    "a vertical tab behind": b"Transfer-Encoding: chunked\x0b",
    "a form feed before": b"Transfer-Encoding: \x0cchunked",
    "a form feed behind": b"Transfer-Encoding: chunked\x0c",
    "a NUL before": b"Transfer-Encoding: \x00chunked",
    "a NUL behind": b"Transfer-Encoding: chunked\x00",
    "a NUL within": b"Transfer-Encoding: chun\x00ked",
    "a DEL behind": b"Transfer-Encoding: chunked\x7f",
    "a backspace behind": b"Transfer-Encoding: chunked\x08",
    "a NEL before": b"Transfer-Encoding: \x85chunked",
    "a hard space before": b"Transfer-Encoding: \xa0chunked",
    "a Kelvin sign": b"Transfer-Encoding: chun\xe2\x84\xaaed",
    "high bits": b"Transfer-Encoding: " + bytes(byte | 0x80 for byte in b"chunked"),
    "a bare CR before": b"Transfer-Encoding: \rchunked",
    "a bare CR behind": b"Transfer-Encoding: chunked\r",
    "a bare LF before": b"Transfer-Encoding:\nchunked",
    "a space before the colon": b"Transfer-Encoding : chunked",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "a NUL before the colon": b"Transfer-Encoding\x00: chunked",
    "a vertical tab before the colon": b"Transfer-Encoding\x0b: chunked",
    "a fold before the colon": b"Transfer-Encoding\r\n : chunked",
    "a space in the name": b"Transfer Encoding: chunked",
    "a space before the name": b" Transfer-Encoding: chunked",
    "a NUL in the name": b"Transfer-\x00Encoding: chunked",
    "a soft hyphen in the name": b"Transfer\xad-Encoding: chunked",
    "no colon": b"Transfer-Encoding chunked",
    "an equals sign for the colon": b"Transfer-Encoding=chunked",
    "behind a bare LF": b"X-A: b\nTransfer-Encoding: chunked",
    "behind a bare CR": b"X-A: b\rTransfer-Encoding: chunked",
    "behind CR CR LF": b"X-A: b\r\r\nTransfer-Encoding: chunked",
    "behind a NUL": b"X-A: b\x00\r\nTransfer-Encoding: chunked",
}
# Other fields, as good as any.
TE_NOT = {
    "an underscore": b"Transfer_Encoding: chunked",
    "a prefix": b"X-Transfer-Encoding: chunked",
    "a suffix": b"Transfer-Encoding-: chunked",
    "a plus in the name": b"Transfer+Encoding: chunked",
    "folded into another": b"X-A: b\r\n Transfer-Encoding: chunked",
}
TABLES.add(
    "TE.TE",
    *((name, head(line) + SMUGGLED_CHUNK, forwarded(SMUGGLED)) for name, line in TE_CHUNKED.items()),
    *((name, head(line) + SMUGGLED_CHUNK, either(SMUGGLED)) for name, line in TE_PERHAPS.items()),
    *((name, head(line) + SMUGGLED_CHUNK, REFUSED) for name, line in TE_WRONG.items()),
    *((name, head(line) + SMUGGLED_CHUNK, either(b"", after="refused")) for name, line in TE_NOT.items()),
)
TABLES.add(
    "TE.TE with a length",
    *(
        (name, head(length(FIRST_LINE), line) + SMUGGLED_CHUNK, BY_CHUNKS)
        for name, line in (TE_CHUNKED | TE_PERHAPS).items()
    ),
    *((name, head(length(FIRST_LINE), line) + SMUGGLED_CHUNK, REFUSED) for name, line in TE_WRONG.items()),
    *(
        (name, head(length(len(SMUGGLED_CHUNK)), line) + SMUGGLED_CHUNK, either(SMUGGLED_CHUNK))
        for name, line in TE_NOT.items()
    ),
)

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"X-ANY")
TABLES.add(
    "TE.0",
    *(
        (method.decode(), head(CHUNKED, method=method) + SMUGGLED_CHUNK, forwarded(Read(SMUGGLED, method)))
        for method in METHODS
    ),
    ("an empty chunked body", head(CHUNKED, method=b"OPTIONS") + CHUNKED_END, forwarded(Read(method=b"OPTIONS"))),
    ("a body of many chunks", head(CHUNKED) + chunks(*[SMUGGLED] * 50), forwarded(SMUGGLED * 50)),
    ("answered by the gateway", head(CHUNKED, target=b"/health") + SMUGGLED_CHUNK, OWN),
    ("redirected by the gateway", head(CHUNKED, target=b"/moved") + SMUGGLED_CHUNK, OWN),
    ("a refused method", head(CHUNKED, method=b"TRACE") + SMUGGLED_CHUNK, REFUSED),
    ("over the limit", head(CHUNKED) + chunks(b"a" * LIMIT, SMUGGLED), REFUSED),
)
TABLES.add(
    "CL.0",
    *(
        (method.decode(), head(FULL, method=method) + SMUGGLED, forwarded(Read(SMUGGLED, method)))
        for method in METHODS
    ),
    (
        "a static file",
        head(FULL, target=b"/favicon.ico") + SMUGGLED,
        forwarded(Read(SMUGGLED, target=b"/favicon.ico")),
    ),
    ("keep-alive", head(b"Connection: keep-alive", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("length first", b"POST / HTTP/1.1\r\n" + FULL + b"\r\nHost: localhost\r\n\r\n" + SMUGGLED, forwarded(SMUGGLED)),
    ("answered by the gateway", head(FULL, target=b"/health") + SMUGGLED, OWN),
    ("redirected by the gateway", head(FULL, target=b"/moved") + SMUGGLED, OWN),
    ("a refused method", head(FULL, method=b"TRACE") + SMUGGLED, REFUSED),
    ("CONNECT", head(FULL, method=b"CONNECT", target=b"localhost:443") + SMUGGLED, REFUSED),
    ("no length", head() + SECOND, forwarded(b"", SECOND_READ)),
    ("over the limit", head(length(LIMIT + 1)) + SMUGGLED, REFUSED),
)

EARLY = b"/early"
EARLY_READ = Read(SMUGGLED, target=EARLY)
EXPECT = b"Expect: 100-continue"
TABLES.add(
    "0.CL",
    ("length 0 first", head(length(0), FULL) + SMUGGLED, REFUSED),
    ("length 0 last", head(FULL, length(0)) + SMUGGLED, REFUSED),
    ("length 0 first in one", head(b"Content-Length: 0, 44") + SMUGGLED, REFUSED),
    ("length 0 alone", head(length(0)) + SECOND, forwarded(b"", SECOND_READ)),
    Row("an early response", head(FULL, target=EARLY), early(EARLY_READ), late=SMUGGLED),
    Row(
        "an early response to GET",
        head(FULL, method=b"GET", target=EARLY),
        early(Read(SMUGGLED, b"GET", EARLY)),
        late=SMUGGLED,
    ),
    Row("an early response and half", head(FULL, target=EARLY) + SMUGGLED[:9], early(EARLY_READ), late=SMUGGLED[9:]),
    Row("an early response, chunked", head(CHUNKED, target=EARLY), early(EARLY_READ), late=SMUGGLED_CHUNK),
    Row(
        "an early response in a chunk",
        head(CHUNKED, target=EARLY) + SMUGGLED_CHUNK[:FIRST_LINE],
        early(EARLY_READ),
        late=SMUGGLED_CHUNK[FIRST_LINE:],
    ),
    ("an early response and more", head(FULL, target=EARLY) + SMUGGLED + SECOND, early(EARLY_READ, SECOND_READ)),
    Row("an early response, expected", head(EXPECT, FULL, target=EARLY), early(EARLY_READ), late=SMUGGLED),
)
TABLES.add(
    "Expect",
    ("with the body", head(EXPECT, FULL) + SMUGGLED, forwarded(SMUGGLED)),
    Row("before the body", head(EXPECT, FULL), forwarded(SMUGGLED), late=SMUGGLED),
    Row("before chunks", head(EXPECT, CHUNKED), forwarded(SMUGGLED), late=SMUGGLED_CHUNK),
    ("behind the length", head(FULL, EXPECT) + SMUGGLED, forwarded(SMUGGLED)),
    ("GET", head(EXPECT, FULL, method=b"GET") + SMUGGLED, forwarded(Read(SMUGGLED, b"GET"))),
    ("other case", head(b"expect: 100-Continue", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("twice", head(EXPECT, EXPECT, FULL) + SMUGGLED, either(SMUGGLED)),
    ("length 0", head(EXPECT, length(0)) + SECOND, forwarded(b"", SECOND_READ)),
    ("no length", head(EXPECT) + SECOND, forwarded(b"", SECOND_READ)),
    ("nominated", head(b"Connection: expect", EXPECT, FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("empty", head(b"Expect:", FULL) + SMUGGLED, either(SMUGGLED)),
    ("unknown", head(b"Expect: y", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a word before", head(b"Expect: y 100-continue", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a list", head(b"Expect: 100-continue, y", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a parameter", head(b"Expect: 100-continue;q=1", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a letter less", head(b"Expect: 100-continu", FULL) + SMUGGLED, either(SMUGGLED)),
    ("folded", head(b"Expect:\r\n 100-continue", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a vertical tab", head(b"Expect: \x0b100-continue", FULL) + SMUGGLED, REFUSED),
    ("a space before the colon", head(b"Expect : 100-continue", FULL) + SMUGGLED, REFUSED),
    ("answered by the gateway", head(EXPECT, FULL, target=b"/health") + SMUGGLED, OWN),
    ("with both framings", head(EXPECT, FULL, CHUNKED) + SMUGGLED_CHUNK, BY_CHUNKS),
)

# The body is SMUGGLED, so a length that is read as 0 or as another shows.
LENGTHS_GOOD = {
    "lower-case": b"content-length: 44",
    "no space": b"Content-Length:44",
    "a tab": b"Content-Length:\t44",
    "spaces around": b"Content-Length:   44 \t ",
}
LENGTHS_PERHAPS = {
    "leading zeros": b"Content-Length: 0044",
    "thirty leading zeros": b"Content-Length: " + b"0" * 30 + b"44",
    "twice": b"Content-Length: 44\r\nContent-Length: 44",
    "twice, apart": b"Content-Length: 44\r\nX-A: b\r\ncontent-length: 44",
    "twice in one": b"Content-Length: 44, 44",
    "twice in one, without a space": b"Content-Length: 44,44",
    "folded": b"Content-Length:\r\n 44",
    "folded by a tab": b"Content-Length:\r\n\t44",
    "nominated": b"Connection: content-length\r\nContent-Length: 44",
    "after a fold": b"X-A: b\r\n Content-Length: 0\r\nContent-Length: 44",
}
LENGTHS_BAD = {
    "empty": b"Content-Length:",
    "a space": b"Content-Length:  ",
    "a plus": b"Content-Length: +44",
    "a minus": b"Content-Length: -44",
    "minus 0": b"Content-Length: -0",
    "hex": b"Content-Length: 0x2c",
    "bare hex": b"Content-Length: 2c",
    "octal": b"Content-Length: 0o54",
    "a fraction": b"Content-Length: 44.0",
    "an exponent": b"Content-Length: 44e0",
    "a suffix": b"Content-Length: 44L",
    "an underscore": b"Content-Length: 4_4",
    "quoted": b'Content-Length: "44"',
    "in parentheses": b"Content-Length: (44)",
    "a semicolon": b"Content-Length: 44;",
    "a comma behind": b"Content-Length: 44,",
    "a comma before": b"Content-Length: ,44",
    "a space within": b"Content-Length: 4 4",
    "two in one": b"Content-Length: 44, 0",
    "two in one, 0 first": b"Content-Length: 0, 44",
    "two": b"Content-Length: 44\r\nContent-Length: 45",
    "two, smaller first": b"Content-Length: 5\r\nContent-Length: 44",
    "two, the second bad": b"Content-Length: 44\r\nContent-Length: x",
    "two, one with a zero": b"Content-Length: 44\r\nContent-Length: 0x2c",
    "folded in two": b"Content-Length: 44\r\n 0",
    "a vertical tab before": b"Content-Length: \x0b44",
    "a vertical tab behind": b"Content-Length: 44\x0b",
    "a NUL behind": b"Content-Length: 44\x00",
    "a hard space": b"Content-Length: \xa044",
    "wide digits": "Content-Length: \uff14\uff14".encode(),
    "Arabic digits": "Content-Length: \u0664\u0664".encode(),
    "not a number": b"Content-Length: NaN",
    "2^64 and 44": b"Content-Length: %d" % ((1 << 64) + N),
    "2^128 and 44": b"Content-Length: %d" % ((1 << 128) + N),
    "400 digits": b"Content-Length: " + b"4" * 400,
    "a space before the colon": b"Content-Length : 44",
    "a tab before the colon": b"Content-Length\t: 44",
    "a NUL before the colon": b"Content-Length\x00: 44",
    "a space before the name": b" Content-Length: 44",
    "a space in the name": b"Content Length: 44",
    "no colon": b"Content-Length 44",
    "behind a bare LF": b"X-A: b\nContent-Length: 44",
    "behind a bare CR": b"X-A: b\rContent-Length: 44",
    "before a bare CR": b"Content-Length: 44\rX-A: b",
    "0 behind a bare LF": b"Content-Length: 44\nContent-Length: 0",
}
TABLES.add(
    "Content-Length",
    *((name, head(line) + SMUGGLED, forwarded(SMUGGLED)) for name, line in LENGTHS_GOOD.items()),
    *((name, head(line) + SMUGGLED, either(SMUGGLED)) for name, line in LENGTHS_PERHAPS.items()),
    *((name, head(line) + SMUGGLED, REFUSED) for name, line in LENGTHS_BAD.items()),
    ("an underscore in the name", head(b"Content_Length: 44") + SECOND, either(b"", SECOND_READ)),
    ("a prefix", head(b"X-Content-Length: 44") + SECOND, forwarded(b"", SECOND_READ)),
    ("too small", head(length(5)) + b"hello" + SECOND, forwarded(b"hello", SECOND_READ)),
    ("too small for what is sent", head(length(5)) + b"hello\0\r\n\r\n", forwarded(b"hello", after="refused")),
    ("2^32 and 44", head(length((1 << 32) + N)) + SMUGGLED, CUT),
    ("2^63", head(length(1 << 63)) + SMUGGLED, CUT),
    Row("too large", head(length(N + 1)) + SMUGGLED, CUT),
    Row("too large, and a FIN", head(length(N + 1)) + SMUGGLED, CUT, hangup="fin"),
    Row("too large, and the end of TLS", head(length(N + 1)) + SMUGGLED, CUT, hangup="notify"),
    Row("too large, and a reset", head(length(N + 1)) + SMUGGLED, CUT, hangup="reset"),
    Row("no body, and a FIN", head(FULL), CUT, hangup="fin"),
)
