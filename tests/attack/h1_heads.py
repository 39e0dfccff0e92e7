"""HTTP/1.1: lines, names and values, hosts and targets, and what belongs to one connection.

What is right is from RFC 9112, sections 2.2, 3 and 5, and RFC 9110, sections 5, 7.2, 7.6.1 and 7.8.
"""

from __future__ import annotations

from attack.case import (
    CHUNKED,
    CUT,
    OWN,
    OWN_ADDRESS,
    REFUSED,
    SECOND,
    SECOND_READ,
    SMUGGLED,
    Read,
    Row,
    Tables,
    chunks,
    either,
    forwarded,
    head,
    length,
)

TABLES = Tables()
FULL = length(len(SMUGGLED))
SMUGGLED_CHUNK = chunks(SMUGGLED)
GET = Read(method=b"GET")

TABLES.add(
    "line ends",
    ("LF everywhere", SECOND.replace(b"\r\n", b"\n"), either(SECOND_READ)),
    ("LF behind the request line", SECOND.replace(b"\r\n", b"\n", 1), either(SECOND_READ)),
    ("LF behind a header", SECOND.replace(b"localhost\r\n", b"localhost\n"), either(SECOND_READ)),
    ("LF for the empty line", SECOND[:-2] + b"\n", either(SECOND_READ)),
    ("LF LF, then a body", b"POST / HTTP/1.1\r\nHost: localhost\r\n" + FULL + b"\n\n" + SMUGGLED, either(SMUGGLED)),
    ("LF LF within the head", head(b"X-A: b\n\n" + SMUGGLED[:-4]), REFUSED),
    ("LF CR", b"POST / HTTP/1.1\n\rHost: localhost\n\r\n\r" + SMUGGLED, REFUSED),
    ("CR everywhere", SMUGGLED.replace(b"\r\n", b"\r") + SMUGGLED, REFUSED),
    ("CR behind the request line", b"POST / HTTP/1.1\rHost: localhost\r\n\r\n" + SMUGGLED, REFUSED),
    ("CR behind a header", head(b"X-A: b\rX-C: d") + SMUGGLED, REFUSED),
    ("CR for the empty line", b"POST / HTTP/1.1\r\nHost: localhost\r\n\r" + SMUGGLED, REFUSED),
    ("CR CR LF behind the request line", b"POST / HTTP/1.1\r\r\nHost: localhost\r\n\r\n" + SMUGGLED, REFUSED),
    ("CR CR LF behind a header", head(b"X-A: b\r") + SMUGGLED, REFUSED),
    ("CR CR LF for the empty line", b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\r\n" + SMUGGLED, REFUSED),
    ("CR before a header", head(b"\rX-A: b") + SMUGGLED, REFUSED),
    ("CR CR within the head", head(b"X-A: b\r\r" + SMUGGLED[:-4]), REFUSED),
    ("a NEL", head(b"X-A: b\x85X-C: d"), forwarded(b"")),
)
TABLES.add(
    "empty lines",
    ("one before", b"\r\n" + SECOND, forwarded(SECOND_READ)),
    ("five before", b"\r\n" * 5 + SECOND, either(SECOND_READ)),
    ("five thousand before", b"\r\n" * 5000 + SECOND, either(SECOND_READ)),
    ("one between", head(FULL) + SMUGGLED + b"\r\n" + SECOND, forwarded(SMUGGLED, SECOND_READ)),
    ("LF before", b"\n" + SECOND, either(SECOND_READ)),
    ("CR before", b"\r" + SMUGGLED, REFUSED),
    ("a space before", b" \r\n" + SMUGGLED, REFUSED),
    ("a NUL before", b"\0\r\n" + SMUGGLED, REFUSED),
)
TABLES.add(
    "folding",
    ("a space", head(b"X-A: b", b" c", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a tab", head(b"X-A: b", b"\tc", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a length within", head(b"X-A: b", b" Content-Length: 0", FULL) + SMUGGLED, either(SMUGGLED)),
    ("chunked within", head(b"X-A: b", b"\tTransfer-Encoding: chunked", FULL) + SMUGGLED, either(SMUGGLED)),
    ("the first line", b"POST / HTTP/1.1\r\n Host: localhost\r\n\r\n" + SMUGGLED, REFUSED),
    ("a space in front of a length", b"POST / HTTP/1.1\r\n Content-Length: 44\r\n" + SMUGGLED, REFUSED),
    ("the host", b"POST / HTTP/1.1\r\nHost:\r\n localhost\r\n\r\n", either(b"")),
    ("the host, more of it", b"POST / HTTP/1.1\r\nHost: localhost\r\n .test\r\n\r\n" + SMUGGLED, REFUSED),
    ("nothing", head(b"X-A: b", b" ", FULL) + SMUGGLED, either(SMUGGLED)),
    ("nothing, then a request", head(b"X-A: b", b" ", SMUGGLED[:-4]), REFUSED),
    ("the request line", b"POST\r\n / HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED, REFUSED),
)

ILLEGAL_IN_NAMES = b'"(),/;<=>?@[\\]{} \t\x00\x01\x08\x0b\x0c\x1f\x7f\x80\x85\xa0\xff'
TABLES.add(
    "names",
    *((f"{byte:#04x} within", head(b"X-%cA: b" % byte, FULL) + SMUGGLED, REFUSED) for byte in ILLEGAL_IN_NAMES),
    *((f"{byte:#04x} behind", head(b"X-A%c: b" % byte, FULL) + SMUGGLED, REFUSED) for byte in b" \t\x00\x0b\x0c\xa0"),
    *((f"{byte:#04x} before", head(b"%cX-A: b" % byte, FULL) + SMUGGLED, REFUSED) for byte in b"\x00\x0b\x0c\xa0:"),
    *(
        (f"a space behind {name.decode()}", head(name + b" : b", FULL) + SMUGGLED, REFUSED)
        for name in (b"Connection", b"Upgrade", b"Trailer", b"Authorization")
    ),
    ("empty", head(b": b", FULL) + SMUGGLED, REFUSED),
    ("no colon", head(b"X-A", FULL) + SMUGGLED, REFUSED),
    ("a request line", head(SMUGGLED[: SMUGGLED.index(b"\r\n")], FULL) + SMUGGLED, REFUSED),
    ("a colon in the value", head(b"X-A: b: c", FULL) + SMUGGLED, forwarded(SMUGGLED, present=[(b"x-a", b"b: c")])),
    ("every legal byte", head(b"!#$%&'*+-.^_`|~09azAZ: b", FULL) + SMUGGLED, forwarded(SMUGGLED)),
)
ILLEGAL_IN_VALUES = bytes([*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
TABLES.add(
    "values",
    *((f"{byte:#04x} within", head(b"X-A: b%cc" % byte, FULL) + SMUGGLED, REFUSED) for byte in ILLEGAL_IN_VALUES),
    ("empty", head(b"X-A:", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("a tab within", head(b"X-A: b\tc", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("bytes beyond ASCII", head(b"X-A: \x80\x85\xa0\xff", FULL) + SMUGGLED, forwarded(SMUGGLED)),
)


def at_host(*hosts: bytes, target: bytes = b"/", method: bytes = b"POST") -> bytes:
    lines = [b"Host: " + host for host in hosts]
    return head(*lines, FULL, host=None, target=target, method=method) + SMUGGLED


def elsewhere(target: bytes = b"/", authority: bytes = b"localhost", method: bytes = b"POST") -> Read:
    return Read(SMUGGLED, method, target, authority)


TABLES.add(
    "hosts",
    ("none", at_host(), REFUSED),
    ("two alike", at_host(b"localhost", b"localhost"), REFUSED),
    ("two", at_host(b"localhost", b"other.test"), REFUSED),
    ("two in one", at_host(b"localhost, other.test"), REFUSED),
    ("two in one, without a space", at_host(b"localhost other.test"), REFUSED),
    ("the second spaced", head(b"Host : other.test", FULL) + SMUGGLED, REFUSED),
    ("folded", head(b" X: y", FULL) + SMUGGLED, REFUSED),
    ("empty", at_host(b""), REFUSED),
    ("a path", at_host(b"localhost/smuggled"), REFUSED),
    ("a query", at_host(b"localhost?x"), REFUSED),
    ("a fragment", at_host(b"localhost#x"), REFUSED),
    ("a user", at_host(b"user@localhost"), REFUSED),
    ("a scheme", at_host(b"https://localhost"), REFUSED),
    ("a bad port", at_host(b"localhost:x"), REFUSED),
    ("a long port", at_host(b"localhost:999999"), REFUSED),
    ("two ports", at_host(b"localhost:1:2"), REFUSED),
    ("a tab within", at_host(b"local\thost"), REFUSED),
    ("a NUL", at_host(b"localhost\x00.test"), REFUSED),
    ("a quote", at_host(b'localhost"'), REFUSED),
    ("bytes beyond ASCII", at_host(b"localhost\xa0"), REFUSED),
    ("a bad address", at_host(b"[::1"), REFUSED),
    ("a port", at_host(b"localhost:8443"), forwarded(elsewhere(authority=b"localhost:8443"))),
    ("HTTP/1.0 and two", head(b"Host: other.test", FULL, version=b"HTTP/1.0") + SMUGGLED, REFUSED),
)
TABLES.add(
    "targets",
    ("absolute", at_host(b"localhost", target=b"http://localhost/x"), either(elsewhere(b"/x"))),
    ("absolute, https", at_host(b"localhost", target=b"https://localhost/x"), either(elsewhere(b"/x"))),
    ("absolute, no path", at_host(b"localhost", target=b"http://localhost"), either(elsewhere())),
    ("absolute, other case", at_host(b"localhost", target=b"HTTP://LOCALHOST/"), either(elsewhere())),
    (
        "absolute, another host",
        at_host(b"localhost", target=b"http://other.test/"),
        either(elsewhere(authority=b"other.test")),
    ),
    (
        "absolute, another port",
        at_host(b"localhost", target=b"https://localhost:1/"),
        either(elsewhere(authority=b"localhost:1")),
    ),
    ("absolute, no Host", at_host(target=b"http://localhost/"), either(elsewhere())),
    ("absolute, two hosts", at_host(b"localhost", b"other.test", target=b"http://localhost/"), REFUSED),
    ("absolute, a user", at_host(b"localhost", target=b"http://other.test@localhost/"), REFUSED),
    ("absolute, an encoded user", at_host(b"localhost", target=b"http://localhost%40other.test/"), REFUSED),
    ("absolute, a backslash", at_host(b"localhost", target=b"http://localhost\\other.test/"), REFUSED),
    ("absolute, no host", at_host(b"localhost", target=b"http:///x"), REFUSED),
    ("absolute, another scheme", at_host(b"localhost", target=b"ftp://localhost/"), REFUSED),
    (
        "absolute, in a query",
        at_host(b"localhost", target=b"/?http://other.test/"),
        forwarded(elsewhere(b"/?http://other.test/")),
    ),
    ("an authority", at_host(b"localhost", target=b"localhost:80"), REFUSED),
    ("a star", at_host(b"localhost", target=b"*"), REFUSED),
    (
        "OPTIONS of a star",
        at_host(b"localhost", target=b"*", method=b"OPTIONS"),
        either(elsewhere(b"*", method=b"OPTIONS")),
    ),
    ("no slash", at_host(b"localhost", target=b"x"), REFUSED),
    ("a query alone", at_host(b"localhost", target=b"?x"), REFUSED),
    ("two slashes", at_host(b"localhost", target=b"//other.test/"), either(elsewhere(b"//other.test/"))),
    ("a backslash", at_host(b"localhost", target=b"\\x"), REFUSED),
    ("a fragment", at_host(b"localhost", target=b"/x#y"), either(elsewhere(b"/x"))),
    ("encoded line ends", at_host(b"localhost", target=b"/a%0d%0aX:%20y"), either(elsewhere(b"/a%0d%0aX:%20y"))),
    (
        "an encoded request",
        at_host(b"localhost", target=b"/%20HTTP/1.1%0d%0a"),
        either(elsewhere(b"/%20HTTP/1.1%0d%0a")),
    ),
    ("a NUL", at_host(b"localhost", target=b"/\x00"), REFUSED),
    ("a DEL", at_host(b"localhost", target=b"/\x7f"), REFUSED),
    ("a bare CR", at_host(b"localhost", target=b"/\rx"), REFUSED),
    ("a bare LF", at_host(b"localhost", target=b"/\nx"), REFUSED),
    ("a hard space", at_host(b"localhost", target=b"/\xa0HTTP/1.1"), REFUSED),
    ("a NEL", at_host(b"localhost", target=b"/\x85HTTP/1.1"), REFUSED),
    ("above the root", at_host(b"localhost", target=b"/../smuggled"), REFUSED),
)


def asked(line: bytes) -> bytes:
    """A request line with a Host and a body that looks like a request."""
    return line + b"\r\nHost: localhost\r\n" + FULL + b"\r\n\r\n" + SMUGGLED


TABLES.add(
    "request line",
    ("two spaces first", asked(b"POST  / HTTP/1.1"), REFUSED),
    ("two spaces second", asked(b"POST /  HTTP/1.1"), REFUSED),
    ("a space before", asked(b" POST / HTTP/1.1"), REFUSED),
    ("a space behind", asked(b"POST / HTTP/1.1 "), REFUSED),
    ("a tab before", asked(b"\tPOST / HTTP/1.1"), REFUSED),
    ("a tab behind", asked(b"POST / HTTP/1.1\t"), REFUSED),
    ("a tab first", asked(b"POST\t/ HTTP/1.1"), REFUSED),
    ("a tab second", asked(b"POST /\tHTTP/1.1"), REFUSED),
    ("tabs", asked(b"POST\t/\tHTTP/1.1"), REFUSED),
    ("a vertical tab", asked(b"POST\x0b/\x0bHTTP/1.1"), REFUSED),
    ("a form feed", asked(b"POST\x0c/\x0cHTTP/1.1"), REFUSED),
    ("hard spaces", asked(b"POST\xa0/\xa0HTTP/1.1"), REFUSED),
    ("a NUL behind", asked(b"POST / HTTP/1.1\x00"), REFUSED),
    ("a bare CR", asked(b"POST /\rHTTP/1.1"), REFUSED),
    ("a space in the target", asked(b"POST /a b HTTP/1.1"), REFUSED),
    ("two versions", asked(b"POST / HTTP/1.1 HTTP/1.1"), REFUSED),
    ("a hidden version", asked(b"POST /smuggled HTTP/1.1\tHTTP/1.1"), REFUSED),
    ("garbage behind", asked(b"POST / HTTP/1.1x"), REFUSED),
    ("a word behind", asked(b"POST / HTTP/1.1 x"), REFUSED),
    ("a lower-case version", asked(b"POST / http/1.1"), REFUSED),
    ("another protocol", asked(b"POST / HTTPS/1.1"), REFUSED),
    ("RTSP", asked(b"POST / RTSP/1.0"), REFUSED),
    ("HTTP/1.2", asked(b"POST / HTTP/1.2"), either(SMUGGLED)),
    ("HTTP/1.10", asked(b"POST / HTTP/1.10"), REFUSED),
    ("HTTP/01.1", asked(b"POST / HTTP/01.1"), REFUSED),
    ("HTTP/1,1", asked(b"POST / HTTP/1,1"), REFUSED),
    ("HTTP/1", asked(b"POST / HTTP/1"), REFUSED),
    ("HTTP/2.0", asked(b"POST / HTTP/2.0"), REFUSED),
    ("HTTP/0.9 by name", asked(b"POST / HTTP/0.9"), REFUSED),
    Row("HTTP/0.9", b"GET /smuggled\r\n", CUT),
    ("HTTP/0.9, and a head", b"GET /smuggled\r\n" + SMUGGLED, REFUSED),
    ("HTTP/0.9 behind a body", head(length(5)) + b"helloGET /smuggled\r\n\r\n", forwarded(b"hello", after="refused")),
    ("no target", asked(b"POST HTTP/1.1"), REFUSED),
    ("no method", asked(b"/ HTTP/1.1"), REFUSED),
    ("an empty method", asked(b" / HTTP/1.1"), REFUSED),
    ("a lower-case method", asked(b"post / HTTP/1.1"), either(Read(SMUGGLED, b"post"))),
    ("a method of another case", asked(b"PoSt / HTTP/1.1"), either(Read(SMUGGLED, b"PoSt"))),
    ("a colon in the method", asked(b"PO:ST / HTTP/1.1"), REFUSED),
    ("a NUL in the method", asked(b"PO\x00ST / HTTP/1.1"), REFUSED),
    ("a method beyond ASCII", asked(b"P\xd6ST / HTTP/1.1"), REFUSED),
    ("quotes in the method", asked(b'"POST" / HTTP/1.1'), REFUSED),
    ("the preface of h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, REFUSED),
    Row(
        "CONNECT, then a request",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n" + SMUGGLED,
        REFUSED,
    ),
    ("a response", b"HTTP/1.1 200 OK\r\nHost: localhost\r\n\r\n" + SMUGGLED, REFUSED),
)

OLD = b"HTTP/1.0"
TABLES.add(
    "HTTP/1.0",
    ("a length", head(FULL, version=OLD) + SMUGGLED, forwarded(SMUGGLED, after="closed")),
    ("kept", head(b"Connection: keep-alive", FULL, version=OLD) + SMUGGLED, forwarded(SMUGGLED)),
    ("no length, then a request", head(version=OLD) + SMUGGLED, forwarded(b"", after="closed")),
    ("chunked", head(CHUNKED, version=OLD) + SMUGGLED_CHUNK, either(SMUGGLED, after="closed")),
    (
        "chunked, kept",
        head(b"Connection: keep-alive", CHUNKED, version=OLD) + SMUGGLED_CHUNK,
        either(SMUGGLED, after="closed"),
    ),
    ("both framings", head(FULL, CHUNKED, version=OLD) + SMUGGLED_CHUNK, either(SMUGGLED, after="closed")),
    Row(
        "no host",
        head(FULL, version=OLD, host=None) + SMUGGLED,
        either(Read(SMUGGLED, authority=OWN_ADDRESS), after="closed"),
    ),
    ("expecting", head(b"Expect: 100-continue", FULL, version=OLD) + SMUGGLED, forwarded(SMUGGLED, after="closed")),
    (
        "upgrading",
        head(b"Connection: upgrade", b"Upgrade: websocket", method=b"GET", target=b"/switch", version=OLD) + SMUGGLED,
        forwarded(Read(method=b"GET", target=b"/switch"), after="closed", absent=(b"upgrade",)),
    ),
)

SECRET = b"X-Secret: 1"
GONE = (b"x-secret",)
CLAIM = ((b"x-forwarded-for", b"127.0.0.1"),)
TABLES.add(
    "Connection",
    ("a length", head(b"Connection: content-length", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("chunked", head(b"Connection: transfer-encoding", CHUNKED) + SMUGGLED_CHUNK, forwarded(SMUGGLED)),
    (
        "close and chunked",
        head(b"Connection: close, transfer-encoding", CHUNKED) + SMUGGLED_CHUNK,
        forwarded(SMUGGLED, after="closed"),
    ),
    ("close, then a request", head(b"Connection: close", length(0)) + SMUGGLED, forwarded(b"", after="closed")),
    ("CLOSE, then a request", head(b"Connection: x, CLOSE", length(0)) + SMUGGLED, forwarded(b"", after="closed")),
    (
        "close twice over",
        head(b"Connection: keep-alive", b"Connection: close", length(0)) + SMUGGLED,
        forwarded(b"", after="closed"),
    ),
    ("the host", head(b"Connection: host", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    (
        "claims, host and secrets",
        head(
            b"Connection: x-forwarded-for, host, authorization, cookie",
            *(b"X-Forwarded-For: 1.2.3.4", b"Authorization: Basic eDp5", b"Cookie: a=b", FULL),
        )
        + SMUGGLED,
        forwarded(SMUGGLED, absent=(b"authorization", b"cookie"), present=CLAIM),
    ),
    (
        "every claim",
        head(b"Connection: forwarded, x-forwarded-proto, x-forwarded-host, x-client-verified", FULL) + SMUGGLED,
        forwarded(SMUGGLED, present=[*CLAIM, (b"x-forwarded-proto", b"https"), (b"x-client-verified", b"NONE")]),
    ),
    ("another", head(b"Connection: x-secret", SECRET, FULL) + SMUGGLED, forwarded(SMUGGLED, absent=GONE)),
    ("behind it", head(SECRET, FULL, b"Connection: x-secret") + SMUGGLED, forwarded(SMUGGLED, absent=GONE)),
    ("in other case", head(b"Connection: X-SECRET", SECRET, FULL) + SMUGGLED, forwarded(SMUGGLED, absent=GONE)),
    (
        "twice there",
        head(b"Connection: x-secret", SECRET, SECRET, FULL) + SMUGGLED,
        forwarded(SMUGGLED, absent=GONE),
    ),
    (
        "in the second of two",
        head(b"Connection: keep-alive", b"Connection: x-secret", SECRET, FULL) + SMUGGLED,
        forwarded(SMUGGLED, absent=GONE),
    ),
    (
        "among empty elements",
        head(b"Connection: ,, \t,x-secret ,", SECRET, FULL) + SMUGGLED,
        forwarded(SMUGGLED, absent=GONE),
    ),
    ("with a colon", head(b"Connection: x-secret:", FULL) + SMUGGLED, either(SMUGGLED)),
    ("a vertical tab", head(b"Connection: \x0bclose", FULL) + SMUGGLED, REFUSED),
    ("itself", head(b"Connection: connection", FULL) + SMUGGLED, forwarded(SMUGGLED, absent=(b"connection",))),
    (
        "what frames and describes",
        head(b"Connection: trailer, te, expect", b"TE: trailers", b"Trailer: X-Sum", FULL) + SMUGGLED,
        forwarded(SMUGGLED),
    ),
    ("codings in TE", head(b"Connection: TE", b"TE: gzip, chunked;q=1", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    ("TE without it", head(b"TE: gzip, trailers", FULL) + SMUGGLED, forwarded(SMUGGLED)),
    (
        "what is the connection's without it",
        head(b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"HTTP2-Settings: AAMAAABk", FULL) + SMUGGLED,
        forwarded(SMUGGLED),
    ),
    (
        "Proxy-Connection: close",
        head(b"Proxy-Connection: close", FULL) + SMUGGLED + SECOND,
        forwarded(SMUGGLED, SECOND_READ),
    ),
)


def upgrading(
    *lines: bytes,
    to: bytes = b"websocket",
    target: bytes = b"/",
    method: bytes = b"GET",
    nominated: bytes = b"upgrade",
) -> bytes:
    return head(b"Connection: " + nominated, b"Upgrade: " + to, *lines, target=target, method=method)


SWITCH_READ = Read(method=b"GET", target=b"/switch")
TABLES.add(
    "Upgrade",
    # Bytes of the next protocol where the upstream agrees to it, and of the next request where it does not.
    (
        "agreed to, and early bytes",
        upgrading(target=b"/switch") + SECOND,
        forwarded(SWITCH_READ, SECOND_READ, tunnelled=SECOND),
    ),
    (
        "agreed to, and early bytes of other case",
        upgrading(target=b"/switch", to=b"WebSocket", nominated=b"keep-alive, Upgrade") + SECOND,
        forwarded(SWITCH_READ, SECOND_READ, tunnelled=SECOND),
    ),
    ("declined, and early bytes", upgrading() + SECOND, forwarded(GET, SECOND_READ)),
    ("declined, and early garbage", upgrading() + b"\x81\x05hello\r\n\r\n", forwarded(GET, after="refused")),
    (
        "a wrong version, and early bytes",
        upgrading(b"Sec-WebSocket-Version: 777", b"Sec-WebSocket-Key: AA==") + SECOND,
        forwarded(GET, SECOND_READ),
    ),
    (
        "h2c, and early bytes",
        upgrading(b"HTTP2-Settings: AAMAAABk", to=b"h2c", nominated=b"Upgrade, HTTP2-Settings") + SECOND,
        forwarded(GET, SECOND_READ, absent=(b"upgrade", b"http2-settings")),
    ),
    (
        "h2c where it would be agreed to",
        upgrading(to=b"h2c", target=b"/switch") + SECOND,
        forwarded(SWITCH_READ, SECOND_READ, absent=(b"upgrade",)),
    ),
    (
        "h2c, and the preface of h2",
        upgrading(to=b"h2c") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        forwarded(GET, after="refused"),
    ),
    ("TLS", upgrading(to=b"TLS/1.2") + SECOND, forwarded(GET, SECOND_READ, absent=(b"upgrade",))),
    ("two", upgrading(to=b"h2c, websocket") + SECOND, forwarded(GET, SECOND_READ, absent=(b"upgrade",))),
    (
        "two fields",
        upgrading(b"Upgrade: h2c", target=b"/switch") + SECOND,
        either(SWITCH_READ, SECOND_READ, tunnelled=SECOND),
    ),
    (
        "not nominated",
        head(b"Upgrade: websocket", method=b"GET", target=b"/switch") + SECOND,
        forwarded(SWITCH_READ, SECOND_READ, absent=(b"upgrade",)),
    ),
    (
        "with a body",
        upgrading(FULL, method=b"POST", target=b"/switch") + SMUGGLED + SECOND,
        forwarded(Read(SMUGGLED, target=b"/switch"), SECOND_READ),
    ),
    (
        "with chunks",
        upgrading(CHUNKED, method=b"POST", target=b"/switch") + SMUGGLED_CHUNK + SECOND,
        forwarded(Read(SMUGGLED, target=b"/switch"), SECOND_READ),
    ),
    Row(
        "with a body that is expected",
        upgrading(FULL, b"Expect: 100-continue", method=b"POST", target=b"/switch"),
        forwarded(Read(SMUGGLED, target=b"/switch")),
        late=SMUGGLED,
    ),
    ("with both framings", upgrading(FULL, CHUNKED) + SMUGGLED_CHUNK, either(Read(SMUGGLED, b"GET"), after="closed")),
    ("answered by the gateway", upgrading(target=b"/health"), OWN),
)
