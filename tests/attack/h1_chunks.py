"""HTTP/1.1: chunks, their extensions and ends, and the trailers behind them (RFC 9112, section 7.1).

"Funky chunks" calls the classes by what each side takes a line's end or a chunk's end for.
"""

from __future__ import annotations

from attack.case import CHUNKED, CUT, REFUSED, SECOND, SECOND_READ, SMUGGLED, Row, Tables, either, forwarded, head

TABLES = Tables()
HEAD = head(CHUNKED)
END = b"0\r\n\r\n"
HELLO = b"\r\nhello\r\n" + END


def inside(line: bytes) -> bytes:
    """A chunk that begins with `line`, and a second one that holds an end and a request, for those who get there."""
    hidden = END + SMUGGLED
    return line + b"xx\r\n%x\r\n" % len(hidden) + hidden + b"\r\n" + END


SIZES_GOOD = {
    "one digit": b"5",
    "leading zeros": b"0005",
}
SIZES_PERHAPS = {
    "seventeen digits": b"0" * 16 + b"5",
    "three hundred zeros": b"0" * 300 + b"5",
    "an extension": b"5;a",
    "an extension with a value": b"5;a=b",
    "an extension with a quoted value": b'5;a="b"',
    "a semicolon in quotes": b'5;a="b;c"',
    "a quoted pair": b'5;a="b\\"c"',
    "two extensions": b"5;a=b;c=d",
    "spaces around the semicolon": b"5 ; a=b",
    "spaces around the equals sign": b"5;a = b",
    "tabs around the semicolon": b"5\t;\ta",
    "an extension of 200 bytes": b"5;a=" + b"b" * 200,
    "an extension of 5,000 bytes": b"5;a=" + b"b" * 5000,
    "an extension that looks like a size": b"5;0",
    "an extension that looks like a request": b"5;GET",
    "a semicolon alone": b"5;",
    "no name": b"5;=b",
    "two semicolons": b"5;;a",
    "a space in the value": b"5;a=b c",
    "bytes beyond ASCII": b"5;a=\x85\xa0",
}
SIZES_BAD = {
    "empty": b"",
    "an extension alone": b";a=b",
    "a space alone": b" ",
    "0x": b"0x5",
    "0X": b"0X5",
    "x": b"x5",
    "h behind": b"5h",
    "a plus": b"+5",
    "a minus": b"-5",
    "minus 0": b"-0",
    "a space before": b" 5",
    "a space behind": b"5 ",
    "a tab before": b"\t5",
    "a tab behind": b"5\t",
    "a vertical tab behind": b"5\x0b",
    "a form feed behind": b"5\x0c",
    "a NUL behind": b"5\x00",
    "a NUL before": b"\x005",
    "a hard space behind": b"5\xa0",
    "a NEL behind": b"5\x85",
    "a comma": b"5,5",
    "a colon": b"5:",
    "a point": b"5.0",
    "an underscore": b"5_0",
    "quoted": b'"5"',
    "two words": b"5 5",
    "a word behind": b"5 a=b",
    "a wide digit": "\uff15".encode(),
    "not hex": b"g",
    "2^64 and 5": b"10000000000000005",
    "2^64 and 5, with zeros": b"000010000000000000005",
    "2^128 and 5": b"1" + b"0" * 31 + b"5",
    "three hundred digits": b"5" * 300,
    "an extension of 20,000 bytes": b"5;a=" + b"b" * 20_000,
    "a NUL in an extension": b"5;a=\x00",
    "a DEL in an extension": b"5;a=\x7f",
    "a bare CR in an extension": b"5;a\rb",
    "a bare CR in quotes": b'5;a="\r"',
    "a bare LF in an extension": b"5;a\nb",
    "a bare LF in quotes": b'5;a="\n"',
    "CR CR LF": b"5\r",
    "LF CR LF": b"5\n",
}
TABLES.add(
    "chunk size",
    *((name, HEAD + size + HELLO, forwarded(b"hello")) for name, size in SIZES_GOOD.items()),
    *((name, HEAD + size + HELLO, either(b"hello")) for name, size in SIZES_PERHAPS.items()),
    *((name, HEAD + size + HELLO + SMUGGLED, REFUSED) for name, size in SIZES_BAD.items()),
    Row("an unclosed quote", HEAD + b'5;a="b' + HELLO + SMUGGLED, REFUSED),
    ("upper-case hex", HEAD + b"A\r\nhellohello\r\n" + END, forwarded(b"hellohello")),
    ("lower-case hex", HEAD + b"a\r\nhellohello\r\n" + END, forwarded(b"hellohello")),
    ("zeros at the end", HEAD + b"5\r\nhello\r\n000\r\n\r\n" + SECOND, forwarded(b"hello", SECOND_READ)),
    (
        "zeros and an extension at the end",
        HEAD + b"5\r\nhello\r\n00;a=b\r\n\r\n" + SECOND,
        either(b"hello", SECOND_READ),
    ),
    ("2^64 less 1", HEAD + b"ffffffffffffffff\r\nhello\r\n" + END + SMUGGLED, CUT),
    ("2^63", HEAD + b"8000000000000000\r\nhello\r\n" + END + SMUGGLED, CUT),
    ("2^32 and 5", HEAD + b"100000005\r\nhello\r\n" + END + SMUGGLED, CUT),
)

TABLES.add(
    "chunk lines",
    ("TERM.EXT, LF", HEAD + inside(b"2;\n"), REFUSED),
    ("TERM.EXT, CR", HEAD + inside(b"2;\r"), REFUSED),
    ("TERM.EXT, LF in a name", HEAD + inside(b"2;a\n"), REFUSED),
    ("TERM.EXT, LF in quotes", HEAD + inside(b'2;a="\n'), REFUSED),
    Row("TERM.EXT, CR LF in quotes", HEAD + b'2;a="\r\nxx\r\n0\r\n\r\n"' + SMUGGLED, REFUSED),
    Row(
        "TERM.EXT, CR LF in quotes at the end",
        HEAD + b'0;a="\r\n\r\n' + SMUGGLED + b'"\r\n\r\n',
        REFUSED,
    ),
    Row(
        "TERM.EXT, CR LF behind a backslash",
        HEAD + b'0;a="b\\\r\n\r\n' + SMUGGLED + b'"\r\n\r\n',
        REFUSED,
    ),
    ("LF", HEAD + inside(b"2\n"), REFUSED),
    ("CR", HEAD + inside(b"2\r"), REFUSED),
    ("LF CR", HEAD + inside(b"2\n\r"), REFUSED),
    ("LF everywhere", HEAD + b"5\nhello\n0\n\n" + SMUGGLED, REFUSED),
    ("CR everywhere", HEAD + b"5\rhello\r0\r\r" + SMUGGLED, REFUSED),
    ("an empty line before", HEAD + b"\r\n5" + HELLO + SMUGGLED, REFUSED),
    ("an empty line between", HEAD + b"5\r\nhello\r\n\r\n" + END + SMUGGLED, REFUSED),
)
TABLES.add(
    "chunk ends",
    ("missing", HEAD + b"5\r\nhello" + END + SMUGGLED, REFUSED),
    ("missing between chunks", HEAD + b"5\r\nhello5\r\nworld\r\n" + END + SMUGGLED, REFUSED),
    ("LF", HEAD + b"5\r\nhello\n" + END + SMUGGLED, REFUSED),
    ("CR", HEAD + b"5\r\nhello\r" + END + SMUGGLED, REFUSED),
    ("LF CR", HEAD + b"5\r\nhello\n\r" + END + SMUGGLED, REFUSED),
    ("CR CR LF", HEAD + b"5\r\nhello\r\r\n" + END + SMUGGLED, REFUSED),
    ("a space before", HEAD + b"5\r\nhello \r\n" + END + SMUGGLED, REFUSED),
    ("a byte too much", HEAD + b"5\r\nhello!\r\n" + END + SMUGGLED, REFUSED),
    ("any two bytes (TERM.SPILL)", HEAD + b"5\r\nhelloXX" + END + SMUGGLED, REFUSED),
    ("two bytes that are a size (SPILL.TERM)", HEAD + b"5\r\nhello0\r\n\r\n" + SMUGGLED, REFUSED),
    ("digits (SPILL.TERM)", HEAD + b"5\r\nhello2c\r\n" + SMUGGLED + b"\r\n" + END, REFUSED),
)
TABLES.add(
    "last chunk",
    ("LF behind 0", HEAD + b"5\r\nhello\r\n0\n\r\n" + SMUGGLED, REFUSED),
    ("CR behind 0", HEAD + b"5\r\nhello\r\n0\r\r\n" + SMUGGLED, REFUSED),
    ("LF for the empty line", HEAD + b"5\r\nhello\r\n0\r\n\n" + SMUGGLED, REFUSED),
    ("CR for the empty line", HEAD + b"5\r\nhello\r\n0\r\n\r" + SMUGGLED, REFUSED),
    ("LF LF", HEAD + b"5\r\nhello\r\n0\n\n" + SMUGGLED, REFUSED),
    ("no empty line", HEAD + b"5\r\nhello\r\n0\r\n" + SMUGGLED, REFUSED),
    ("a space for the empty line", HEAD + b"5\r\nhello\r\n0\r\n \r\n\r\n" + SMUGGLED, REFUSED),
    ("two empty lines", HEAD + b"5\r\nhello\r\n0\r\n\r\n\r\n" + SECOND, forwarded(b"hello", SECOND_READ)),
    ("garbage behind", HEAD + b"5\r\nhello\r\n0\r\n\r\n\x00\r\n\r\n", forwarded(b"hello", after="refused")),
    Row("missing", HEAD + b"5\r\nhello\r\n", CUT),
    Row("missing, and a FIN", HEAD + b"5\r\nhello\r\n", CUT, hangup="fin"),
    Row("missing, and the end of TLS", HEAD + b"5\r\nhello\r\n", CUT, hangup="notify"),
    Row("missing, and a reset", HEAD + b"5\r\nhello\r\n", CUT, hangup="reset"),
    Row("half, and a FIN", HEAD + b"5\r\nhello\r\n0\r\n", CUT, hangup="fin"),
    Row("half a chunk, and a FIN", HEAD + b"5\r\nhel", CUT, hangup="fin"),
    Row("half a size, and a FIN", HEAD + b"5", CUT, hangup="fin"),
)

OWNED = (
    *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"Keep-Alive", b"Proxy-Connection", b"TE"),
    *(b"Trailer", b"Upgrade", b"HTTP2-Settings", b"Expect", b"Authorization", b"Cookie", b"Content-Type"),
    *(b"Content-Encoding", b"X-Forwarded-For", b"X_Forwarded_For", b"Forwarded", b"X-Client-Verified"),
)


def trailed(*lines: bytes, announced: bytes = b"X-A: b") -> bytes:
    return head(CHUNKED, announced) + b"5\r\nhello\r\n0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


TABLES.add(
    "trailers",
    ("a good one", trailed(b"X-Sum: 7"), forwarded(b"hello")),
    ("a good one, announced", trailed(b"X-Sum: 7", announced=b"Trailer: X-Sum"), forwarded(b"hello")),
    ("a good one, then a request", trailed(b"X-Sum: 7") + SECOND, forwarded(b"hello", SECOND_READ)),
    *(
        (f"{name.decode()} in them", trailed(name + b": 44"), either(b"hello", untrailed=(name.lower(),)))
        for name in OWNED
    ),
    ("chunked in them", trailed(CHUNKED) + SECOND, either(b"hello", SECOND_READ)),
    Row(
        "a nominated one",
        trailed(b"X-Secret: 7", announced=b"Connection: x-secret"),
        either(b"hello", absent=(b"x-secret",)),
    ),
    ("a request line", HEAD + b"5\r\nhello\r\n0\r\n" + SMUGGLED, REFUSED),
    ("a pseudo-header field", trailed(b":path: /smuggled"), REFUSED),
    ("a space before the colon", trailed(b"X-Sum : 7") + SMUGGLED, REFUSED),
    ("a space before the name", trailed(b" X-Sum: 7") + SMUGGLED, REFUSED),
    ("no name", trailed(b": 7") + SMUGGLED, REFUSED),
    ("no colon", trailed(b"X-Sum") + SMUGGLED, REFUSED),
    ("folded", trailed(b"X-Sum: 7", b" 8"), either(b"hello")),
    ("a NUL in the name", trailed(b"X-\x00Sum: 7") + SMUGGLED, REFUSED),
    ("a NUL in the value", trailed(b"X-Sum: \x00") + SMUGGLED, REFUSED),
    ("a bare CR", trailed(b"X-Sum: a\rX-B: c") + SMUGGLED, REFUSED),
    ("a bare LF", trailed(b"X-Sum: a\nX-B: c") + SMUGGLED, REFUSED),
    ("an end of bare LFs", HEAD + b"0\r\nX-Sum: 7\n\n" + SMUGGLED, REFUSED),
    ("two thousand", trailed(*[b"X-Sum: 7"] * 2000) + SMUGGLED, REFUSED),
    ("of 100,000 bytes", trailed(b"X-Sum: " + b"7" * 100_000) + SMUGGLED, REFUSED),
)
