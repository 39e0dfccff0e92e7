"""Requests in field sections and frames, for HTTP/2 and whatever frames them likewise (RFC 9113, 8; RFC 9114, 4).

What is written into a section here would be another request, header or framing in HTTP/1.1.
"""

from __future__ import annotations

from attack.case import (
    CUT,
    OWN,
    REFUSED,
    SMUGGLED,
    Hangup,
    Read,
    Row,
    Sections,
    Tables,
    early,
    either,
    forwarded,
    tunnel,
)
from attack.h1_framing import LIMIT, METHODS
from support.strict_http import Field, Fields

TABLES = Tables()
FRAGMENT = "a fragment in :path is cut off, not refused (RFC 9113, section 8.3.1)"
PSEUDO_BEHIND = "pseudo-header fields in trailers are passed over, not refused (RFC 9113, sections 8.1 and 8.3)"
N = len(SMUGGLED)
GET = Read(method=b"GET")
LENGTH = (b"content-length", b"%d" % N)
HIDDEN = b"0\r\n\r\n" + SMUGGLED
"""A body that ends a chunked one early, where it is passed on as it is."""


def fields(
    *more: Field,
    method: bytes | None = b"POST",
    scheme: bytes | None = b"https",
    authority: bytes | None = b"localhost",
    path: bytes | None = b"/",
) -> Fields:
    """A request's fields; a pseudo-header field that is None is left out."""
    pseudo = ((b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path))
    return (*((name, value) for name, value in pseudo if value is not None), *more)


def post(*more: Field, body: tuple[bytes, ...] = (SMUGGLED,), **pseudo: bytes | None) -> Sections:
    """A request with a body that looks like one."""
    return Sections(fields(*more, **pseudo), body)


TABLES.add(
    "control",
    ("a good POST", post(LENGTH), forwarded(SMUGGLED)),
    ("a good POST without a length", post(), forwarded(SMUGGLED)),
    ("a GET", post(method=b"GET", body=()), forwarded(GET)),
    ("a POST with trailers", Sections(fields(), (b"hello",), ((b"x-sum", b"7"),)), forwarded(b"hello")),
    ("a host as well", post((b"host", b"localhost")), forwarded(SMUGGLED)),
)

NAMES_BAD = {
    "upper-case": b"X-Test",
    "one upper-case letter": b"x-tesT",
    "empty": b"",
    "a colon within": b"x:y",
    "a colon behind": b"x-test:",
    "another header within": b"x-test: a\r\nx-other",
    "a request within": b"x: y\r\n\r\nGET /smuggled HTTP/1.1\r\nhost",
    "a CR LF within": b"x\r\ny",
    "a CR LF behind": b"x-test\r\n",
    "chunked within": b"x: y\r\ntransfer-encoding: chunked\r\nz",
    "chunked before a colon": b"transfer-encoding: chunked\r\nx",
    "a length before a colon": b"content-length: 0\r\nx",
    "transfer-encoding and a colon": b"transfer-encoding:",
    "transfer-encoding and a space": b"transfer-encoding ",
    "a space and transfer-encoding": b" transfer-encoding",
    "content-length and a NUL": b"content-length\x00",
    "content-length and a tab": b"content-length\t",
    **{f"{byte:#04x} within": b"x%cy" % byte for byte in b"\x00\x01\t\n\x0b\r\x1f (),/;<=>?@[\\]{}\x7f\x80\xa0\xff"},
}
VALUES_BAD = {
    "a CR": b"a\rb",
    "a LF": b"a\nb",
    "a NUL": b"a\x00b",
    "a CR behind": b"a\r",
    "a LF behind": b"a\n",
    "a header": b"a\r\nx-smuggled: b",
    "a header behind a LF": b"a\nx-smuggled: b",
    "chunked": b"a\r\ntransfer-encoding: chunked",
    "a length": b"a\r\ncontent-length: 0",
    "a host": b"a\r\nhost: other.test",
    "a fold": b"a\r\n b",
    "a request": b"a\r\n\r\n" + SMUGGLED,
    "a request behind a LF": b"a\n\n" + SMUGGLED,
    "a vertical tab": b"a\x0bb",
    "a DEL": b"a\x7fb",
}
SPACES = {
    "a space before": b" a",
    "a tab before": b"\ta",
    "a space behind": b"a ",
    "a tab behind": b"a\t",
    "a space": b" ",
}
TABLES.add(
    "names",
    *((name, post((text, b"chunked")), REFUSED) for name, text in NAMES_BAD.items()),
    Row("0x22 within", post((b'x"y', b"chunked")), REFUSED),
    ("every legal byte", post((b"!#$%&'*+-.^_`|~09az", b"a")), forwarded(SMUGGLED)),
)
TABLES.add(
    "values",
    *((name, post((b"x-test", text)), REFUSED) for name, text in VALUES_BAD.items()),
    *(Row(name, post((b"x-test", text)), REFUSED) for name, text in SPACES.items()),
    *((f"{name} in a cookie", post((b"cookie", text)), REFUSED) for name, text in VALUES_BAD.items()),
    ("cookies with a header", post((b"cookie", b"a=b"), (b"cookie", b"c=d\r\nx-smuggled: e")), REFUSED),
    ("empty", post((b"x-test", b"")), forwarded(SMUGGLED)),
    ("bytes beyond ASCII", post((b"x-test", b"\x80\x85\xa0\xff")), forwarded(SMUGGLED)),
)

PATHS_BAD = {
    "empty": b"",
    "no slash": b"x",
    "a star": b"*",
    "a URL": b"http://other.test/",
    "an authority": b"@other.test/",
    "a colon": b":80/",
    "a space": b"/ x",
    "a space before": b" /",
    "a space behind": b"/ ",
    "a tab": b"/\tx",
    "a vertical tab": b"/\x0bx",
    "a NUL": b"/\x00x",
    "a DEL": b"/\x7fx",
    "a CR": b"/\rx",
    "a LF": b"/\nx",
    "a hard space": b"/\xa0HTTP/1.1",
    "a NEL": b"/\x85HTTP/1.1",
    "a version": b"/ HTTP/1.1",
    "HTTP/0.9": b"/smuggled\r\n",
    "a header": b"/ HTTP/1.1\r\nx-smuggled: b",
    "a host": b"/ HTTP/1.1\r\nhost: other.test\r\nx: ",
    "chunked": b"/ HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: ",
    "a request": b"/ HTTP/1.1\r\nhost: localhost\r\n\r\n" + SMUGGLED[:-4],
    "a request behind a LF": b"/ HTTP/1.1\nhost: localhost\n\nGET /smuggled",
    "a request in a query": b"/?x HTTP/1.1\r\nhost: localhost\r\n\r\nGET /smuggled",
    "above the root": b"/../smuggled",
}
TABLES.add(
    ":path",
    *((name, post(path=path), REFUSED) for name, path in PATHS_BAD.items()),
    Row("a fragment", post(path=b"/x#y"), REFUSED, known=FRAGMENT),
    Row("a fragment alone", post(path=b"#/smuggled"), REFUSED, known=FRAGMENT),
    ("two slashes", post(path=b"//other.test/"), either(Read(SMUGGLED, target=b"//other.test/"))),
    ("encoded line ends", post(path=b"/a%0d%0aX:%20y"), either(Read(SMUGGLED, target=b"/a%0d%0aX:%20y"))),
    ("OPTIONS of a star", post(path=b"*", method=b"OPTIONS"), either(Read(SMUGGLED, b"OPTIONS", b"*"))),
)
METHODS_BAD = {
    "empty": b"",
    "a space": b"GET /smuggled",
    "a space before": b" GET",
    "a space behind": b"GET ",
    "a tab": b"GET\t/smuggled",
    "a colon": b"GET:",
    "a NUL": b"GET\x00",
    "a CR LF": b"GET\r\n",
    "a request line": b"GET /smuggled HTTP/1.1\r\nx: ",
    "a request": SMUGGLED + b"POST",
    "a request behind a LF": b"GET /smuggled HTTP/1.1\nhost: localhost\n\nPOST",
    "bytes beyond ASCII": b"G\xcbT",
    "quotes": b'"GET"',
}
TABLES.add(
    ":method",
    *((name, post(method=method), REFUSED) for name, method in METHODS_BAD.items()),
    ("lower-case", post(method=b"post"), either(Read(SMUGGLED, b"post"))),
    ("TRACE", post(method=b"TRACE"), REFUSED),
    ("CONNECT", Sections(fields(method=b"CONNECT", scheme=None, path=None), (SMUGGLED,)), REFUSED),
    ("CONNECT with a path", post(method=b"CONNECT"), REFUSED),
    (
        "CONNECT for a WebSocket",
        Sections(((b":method", b"CONNECT"), (b":protocol", b"websocket"), *fields(method=None)), (SMUGGLED,)),
        tunnel(Read(method=b"GET")),
    ),
    (
        "CONNECT for a WebSocket that is agreed to",
        Sections(
            ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *fields(method=None, path=b"/switch")),
            (SMUGGLED,),
        ),
        tunnel(Read(method=b"GET", target=b"/switch"), tunnelled=SMUGGLED),
    ),
    (
        "CONNECT for another protocol",
        Sections(((b":method", b"CONNECT"), (b":protocol", b"h2c"), *fields(method=None)), (SMUGGLED,)),
        REFUSED,
    ),
    (
        "CONNECT for a WebSocket with a length",
        Sections(
            ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *fields((b"content-length", b"44"), method=None)),
            (SMUGGLED,),
        ),
        REFUSED,
    ),
)
AUTHORITIES_BAD = {
    "empty": b"",
    "a path": b"localhost/smuggled",
    "a query": b"localhost?x",
    "a fragment": b"localhost#x",
    "a user": b"user@localhost",
    "a scheme": b"https://localhost",
    "a bad port": b"localhost:x",
    "two ports": b"localhost:1:2",
    "two": b"localhost, other.test",
    "a space": b"localhost other.test",
    "a space before": b" localhost",
    "a space behind": b"localhost ",
    "a tab": b"local\thost",
    "a NUL": b"localhost\x00",
    "a CR LF": b"localhost\r\n",
    "a header": b"localhost\r\nx-smuggled: b",
    "chunked": b"localhost\r\ntransfer-encoding: chunked",
    "a request": b"localhost\r\n\r\n" + SMUGGLED,
    "a request behind a LF": b"localhost\n\n" + SMUGGLED,
    "a quote": b'localhost"',
    "a backslash": b"localhost\\x",
    "a hard space": b"localhost\xa0",
    "a bad address": b"[::1",
}
TABLES.add(
    ":authority",
    *((name, post(authority=authority), REFUSED) for name, authority in AUTHORITIES_BAD.items()),
    ("none, and no host", post(authority=None), REFUSED),
    ("none, and a host", post((b"host", b"localhost"), authority=None), either(SMUGGLED)),
    ("a port", post(authority=b"localhost:1"), forwarded(Read(SMUGGLED, authority=b"localhost:1"))),
    ("another host", post((b"host", b"other.test")), either(SMUGGLED)),
    ("another port", post((b"host", b"localhost:1")), either(SMUGGLED)),
    ("two hosts", post((b"host", b"localhost"), (b"host", b"other.test")), REFUSED),
    ("two hosts alike", post((b"host", b"localhost"), (b"host", b"localhost")), REFUSED),
    ("an empty host", post((b"host", b"")), either(SMUGGLED)),
    ("a host with a header", post((b"host", b"localhost\r\nx-smuggled: b")), REFUSED),
    ("a host with a space", post((b"host", b"localhost other.test")), REFUSED),
    ("empty, and a host", post((b"host", b"localhost"), authority=b""), either(SMUGGLED)),
)
SCHEMES_BAD = {
    "empty": b"",
    "a space": b"https ",
    "a colon": b"https:",
    "a URL": b"https://other.test/",
    "a NUL": b"https\x00",
    "a CR LF": b"https\r\n",
    "a request": b"https://localhost/smuggled HTTP/1.1\r\nx: ",
    "a whole request": SMUGGLED,
    "ftp": b"ftp",
    "bytes beyond ASCII": b"https\xa0",
}
TABLES.add(
    ":scheme",
    *((name, post(scheme=scheme), REFUSED) for name, scheme in SCHEMES_BAD.items()),
    ("http", post(scheme=b"http"), either(SMUGGLED)),
    ("upper-case", post(scheme=b"HTTPS"), either(SMUGGLED)),
)
PSEUDO = fields()
TABLES.add(
    "pseudo-header fields",
    *((f"{one[0].decode()} twice", Sections((one, *PSEUDO), (SMUGGLED,)), REFUSED) for one in PSEUDO),
    *(
        (f"{name.decode()} twice, and another value", Sections((*PSEUDO, (name, value)), (SMUGGLED,)), REFUSED)
        for name, value in fields(method=b"GET", scheme=b"http", authority=b"other.test", path=b"/smuggled")
    ),
    *(
        (
            f"{one[0].decode()} behind a regular one",
            Sections((*(other for other in PSEUDO if other != one), (b"x-test", b"a"), one), (SMUGGLED,)),
            REFUSED,
        )
        for one in PSEUDO
    ),
    *(
        (
            f"{one[0].decode()} again behind a regular one",
            Sections((*PSEUDO, (b"x-test", b"a"), one), (SMUGGLED,)),
            REFUSED,
        )
        for one in PSEUDO
    ),
    *(
        (f"no {one[0].decode()}", Sections(tuple(other for other in PSEUDO if other != one), (SMUGGLED,)), REFUSED)
        for one in PSEUDO
    ),
    ("none", Sections(((b"host", b"localhost"),), (SMUGGLED,)), REFUSED),
    (":status", Sections((*PSEUDO, (b":status", b"200")), (SMUGGLED,)), REFUSED),
    (":status first", Sections(((b":status", b"200"), *PSEUDO), (SMUGGLED,)), REFUSED),
    (":protocol", Sections((*PSEUDO, (b":protocol", b"websocket")), (SMUGGLED,)), REFUSED),
    ("an unknown one", Sections((*PSEUDO, (b":test", b"a")), (SMUGGLED,)), REFUSED),
    ("an unknown one behind", post((b":test", b"a")), REFUSED),
    ("a colon alone", Sections((*PSEUDO, (b":", b"a")), (SMUGGLED,)), REFUSED),
    ("upper-case", Sections((*PSEUDO[:3], (b":Path", b"/")), (SMUGGLED,)), REFUSED),
    ("a space behind", Sections((*PSEUDO[:3], (b":path ", b"/")), (SMUGGLED,)), REFUSED),
)

CONNECTION = {
    "transfer-encoding": (b"transfer-encoding", b"chunked"),
    "transfer-encoding: identity": (b"transfer-encoding", b"identity"),
    "transfer-encoding, empty": (b"transfer-encoding", b""),
    "connection: close": (b"connection", b"close"),
    "connection: content-length": (b"connection", b"content-length"),
    "connection: transfer-encoding": (b"connection", b"transfer-encoding"),
    "connection, empty": (b"connection", b""),
    "keep-alive": (b"keep-alive", b"timeout=5"),
    "proxy-connection": (b"proxy-connection", b"keep-alive"),
    "upgrade: websocket": (b"upgrade", b"websocket"),
    "upgrade: h2c": (b"upgrade", b"h2c"),
    "te: chunked": (b"te", b"chunked"),
    "te: trailers, chunked": (b"te", b"trailers, chunked"),
}
TABLES.add(
    "H2.TE and the connection's",
    *((name, post(field, body=(HIDDEN,)), REFUSED) for name, field in CONNECTION.items()),
    ("chunked and a length", post((b"transfer-encoding", b"chunked"), LENGTH), REFUSED),
    ("chunked in another case", post((b"Transfer-Encoding", b"chunked"), body=(HIDDEN,)), REFUSED),
    ("chunked twice", post(*[(b"transfer-encoding", b"chunked")] * 2, body=(HIDDEN,)), REFUSED),
    ("an underscore", post((b"transfer_encoding", b"chunked"), body=(HIDDEN,)), either(HIDDEN)),
    ("te: trailers", post((b"te", b"trailers")), forwarded(SMUGGLED)),
    ("http2-settings", post((b"http2-settings", b"AAMAAABk")), either(SMUGGLED, absent=(b"http2-settings",))),
    ("a body that ends chunks", post(body=(HIDDEN,)), forwarded(HIDDEN)),
    ("a body that ends chunks, with its length", post((b"content-length", b"49"), body=(HIDDEN,)), forwarded(HIDDEN)),
    ("a body that begins chunks", post(body=(b"5\r\nhello\r\n" + HIDDEN,)), forwarded(b"5\r\nhello\r\n" + HIDDEN)),
    ("expecting", post((b"expect", b"100-continue")), forwarded(SMUGGLED)),
    ("expecting, with a length", post((b"expect", b"100-continue"), LENGTH), forwarded(SMUGGLED)),
    ("expecting something else", post((b"expect", b"y 100-continue")), either(SMUGGLED)),
)

LENGTHS_BAD = {
    "smaller": b"5",
    "0": b"0",
    "greater": b"45",
    "much greater": b"%d" % (1 << 32),
    "2^64 and 44": b"%d" % ((1 << 64) + N),
    "400 digits": b"4" * 400,
    "empty": b"",
    "a plus": b"+44",
    "a minus": b"-44",
    "hex": b"0x2c",
    "a fraction": b"44.0",
    "a space before": b" 44",
    "a space behind": b"44 ",
    "a space within": b"4 4",
    "two in one": b"44, 45",
    "a comma": b"44,",
    "a header": b"44\r\nx-smuggled: b",
    "a second one": b"44\r\ncontent-length: 0",
    "chunked": b"44\r\ntransfer-encoding: chunked",
    "not a number": b"x",
}


def lengths(*values: bytes) -> tuple[Field, ...]:
    return tuple((b"content-length", value) for value in values)


TABLES.add(
    "H2.CL",
    *((name, post(*lengths(value)), REFUSED) for name, value in LENGTHS_BAD.items()),
    ("leading zeros", post(*lengths(b"0044")), either(SMUGGLED)),
    ("twice", post(*lengths(b"44", b"44")), either(SMUGGLED)),
    ("twice in one", post(*lengths(b"44, 44")), either(SMUGGLED)),
    ("two", post(*lengths(b"44", b"0")), REFUSED),
    ("two, 0 first", post(*lengths(b"0", b"44")), REFUSED),
    ("two, the second too small", post(*lengths(b"44", b"5")), REFUSED),
    ("in another case", post((b"Content-Length", b"0")), REFUSED),
    ("without a body", post(LENGTH, body=()), REFUSED),
    ("with an empty body", post(LENGTH, body=(b"",)), REFUSED),
    ("0 without a body", post(*lengths(b"0"), body=()), forwarded(b"")),
    ("0 with an empty body", post(*lengths(b"0"), body=(b"",)), forwarded(b"")),
    ("greater, in two frames", post(*lengths(b"45"), body=(SMUGGLED[:9], SMUGGLED[9:])), REFUSED),
    ("smaller, in two frames", post(*lengths(b"9"), body=(SMUGGLED[:9], SMUGGLED[9:])), REFUSED),
    ("greater, with trailers", Sections(fields(*lengths(b"45")), (SMUGGLED,), ((b"x-sum", b"7"),)), REFUSED),
    ("smaller, with trailers", Sections(fields(*lengths(b"9")), (SMUGGLED,), ((b"x-sum", b"7"),)), REFUSED),
    ("GET, smaller", post(*lengths(b"0"), method=b"GET"), REFUSED),
    ("GET, greater, without a body", post(*lengths(b"44"), method=b"GET", body=()), REFUSED),
    ("HEAD, smaller", post(*lengths(b"0"), method=b"HEAD"), REFUSED),
    ("an underscore", post((b"content_length", b"0")), either(SMUGGLED)),
    ("over the limit", post(*lengths(b"%d" % (LIMIT + 1))), REFUSED),
    ("over the limit in frames", post(body=(b"a" * (16 << 10),) * 5), REFUSED),
    *((f"{one.decode()} without a length", post(method=one), forwarded(Read(SMUGGLED, one))) for one in METHODS),
    *((f"{one.decode()} with a length", post(LENGTH, method=one), forwarded(Read(SMUGGLED, one))) for one in METHODS),
)

TABLES.add(
    "bodies",
    ("in bytes", post(body=tuple(b"%c" % byte for byte in SMUGGLED)), forwarded(SMUGGLED)),
    ("with empty pieces", post(body=(b"", SMUGGLED, b"")), forwarded(SMUGGLED)),
    ("empty", post(body=(b"",)), forwarded(b"")),
    ("an empty end of a GET", post(method=b"GET", body=(b"",)), forwarded(GET)),
    ("answered by the gateway", post(path=b"/health"), OWN),
    ("redirected by the gateway", post(path=b"/moved"), OWN),
    ("answered early", post(path=b"/early"), early(Read(SMUGGLED, target=b"/early"))),
    Row(
        "answered early, before half",
        Sections(fields(LENGTH, path=b"/early"), (SMUGGLED[:9],), end="open"),
        early(Read(SMUGGLED, target=b"/early")),
        late=SMUGGLED[9:],
    ),
    Row(
        "answered early, before any of it",
        Sections(fields(path=b"/early"), end="open"),
        early(Read(SMUGGLED, target=b"/early")),
        late=SMUGGLED,
    ),
)
HALF = Sections(fields(), (SMUGGLED,), end="open")
HALF_OF_LENGTH = Sections(fields((b"content-length", b"%d" % (N + 5))), (SMUGGLED,), end="open")
WHOLE_BUT_END = Sections(fields(LENGTH), (SMUGGLED,), end="open")
ENDS: dict[str, Hangup] = {"a FIN": "fin", "the end of TLS": "notify", "a connection reset": "reset"}
TABLES.add(
    "cut short",
    ("a reset", Sections(fields(), (SMUGGLED,), end="reset"), CUT),
    ("a reset within the length", Sections(fields((b"content-length", b"49")), (SMUGGLED,), end="reset"), CUT),
    ("a reset before the body", Sections(fields(), end="reset"), CUT),
    Row("silence", HALF, CUT),
    Row("silence within the length", HALF_OF_LENGTH, CUT),
    *(
        Row(f"{name}, and {end}", sent, CUT, hangup=hangup)
        for name, sent in {"a body": HALF, "half of the length": HALF_OF_LENGTH}.items()
        for end, hangup in ENDS.items()
    ),
    # The length has been reached, so the upstream may rightly take it as a whole; h2 alone could tell.
    Row("the length reached, and a FIN", WHOLE_BUT_END, either(SMUGGLED), hangup="fin"),
)

TRAILERS_PSEUDO = {
    ":path": (b":path", b"/smuggled"),
    ":method": (b":method", b"GET"),
    ":status": (b":status", b"200"),
}
TRAILERS_BAD = {
    "upper-case": (b"X-Sum", b"7"),
    "a CR LF in a value": (b"x-sum", b"7\r\n\r\n" + SMUGGLED),
    "a LF in a value": (b"x-sum", b"7\n\n" + SMUGGLED),
    "a NUL in a value": (b"x-sum", b"\x00"),
    "a CR LF in a name": (b"x-sum: 7\r\n\r\nGET /smuggled HTTP/1.1\r\nhost", b"localhost"),
    "a colon in a name": (b"x-sum:", b"7"),
    "an empty name": (b"", b"7"),
    "transfer-encoding": (b"transfer-encoding", b"chunked"),
    "connection": (b"connection", b"close"),
    "upgrade": (b"upgrade", b"h2c"),
}
OWNED = (
    *(b"content-length", b"host", b"te", b"trailer", b"expect", b"authorization", b"cookie", b"content-type"),
    *(b"content-encoding", b"x-forwarded-for", b"x_forwarded_for", b"forwarded", b"x-client-verified"),
    b"http2-settings",
)
TABLES.add(
    "trailers",
    *(
        Row(name, Sections(fields(), (SMUGGLED,), (field,)), REFUSED, known=PSEUDO_BEHIND)
        for name, field in TRAILERS_PSEUDO.items()
    ),
    *(
        Row(f"{name} behind a length", Sections(fields(LENGTH), (SMUGGLED,), (field,)), REFUSED, known=PSEUDO_BEHIND)
        for name, field in TRAILERS_PSEUDO.items()
    ),
    *((name, Sections(fields(), (SMUGGLED,), (field,)), REFUSED) for name, field in TRAILERS_BAD.items()),
    *(
        (f"{name} behind a length", Sections(fields(LENGTH), (SMUGGLED,), (field,)), REFUSED)
        for name, field in TRAILERS_BAD.items()
    ),
    *(
        (name.decode(), Sections(fields(), (b"hello",), ((name, b"44"),)), either(b"hello", untrailed=(name,)))
        for name in OWNED
    ),
    Row("0x22 in a name", Sections(fields(), (SMUGGLED,), ((b'x"y', b"7"),)), REFUSED),
    Row("a space before", Sections(fields(), (SMUGGLED,), ((b"x-sum", b" 7"),)), REFUSED),
    Row("a space behind", Sections(fields(), (SMUGGLED,), ((b"x-sum", b"7 "),)), REFUSED),
    ("without a body", Sections(fields(), (), ((b"x-sum", b"7"),)), forwarded(b"")),
    ("of a GET", Sections(fields(method=b"GET"), (), ((b"x-sum", b"7"),)), forwarded(GET)),
    ("behind a length", Sections(fields(LENGTH), (SMUGGLED,), ((b"x-sum", b"7"),)), forwarded(SMUGGLED)),
    ("empty", Sections(fields(), (SMUGGLED,), ()), forwarded(SMUGGLED)),
)
