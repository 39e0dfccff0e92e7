"""ClientHellos that are wrong in one way each, or look as if they were, and what has to become of them.

Where no RFC says which alert, several will do; none at all, or an answer to what is malformed, never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from support import raw_tls as tls
from support.raw_tls import Extension, Hello, numbers, share
from support.tls13 import X25519, vector

Shape = Callable[[Hello], Hello]

#: A whole handshake, and an answer to a request, in this version.
SERVED_13, SERVED_12 = (13,), (12,)
#: RFC 8446, section 6.2: what cannot be read, or has a value that it must not have.
MALFORMED = (tls.DECODE_ERROR, tls.ILLEGAL_PARAMETER)
NOTHING_IN_COMMON = (tls.HANDSHAKE_FAILURE,)
NO_VERSION = (tls.PROTOCOL_VERSION,)
MISSING = (tls.MISSING_EXTENSION,)
FALLBACK = "rustls does not know TLS_FALLBACK_SCSV"
UNNAMED = "rustls says handshake_failure of a missing extension"


@dataclass(frozen=True)
class Row:
    name: str
    shape: Shape
    must: tuple[int, ...]
    """`SERVED_13`, `SERVED_12`, or the alerts of which one has to come."""
    listener: str = "edge"
    known: str = ""
    """The defect of the gateway that makes it fail, as long as there is one."""


def with_extension(kind: int, data: bytes) -> Shape:
    return lambda hello: hello.put(kind, data)


def added(*extensions: Extension) -> Shape:
    """At the end, whatever is there already."""
    return lambda hello: hello.add(*extensions)


def without(*kinds: int) -> Shape:
    return lambda hello: hello.drop(*kinds)


def with_fields(**fields: Any) -> Shape:
    return lambda hello: replace(hello, **fields)


def in_tls12(shape: Shape = lambda hello: hello) -> Shape:
    return lambda hello: shape(hello.tls12())


def cut(body: Callable[[bytes], bytes]) -> Shape:
    """The block of extensions as `body` makes it of the right one."""
    return lambda hello: replace(hello, extensions=body(tls.blocks(hello.listed)))


# Extensions, each with a good value and how many bytes of it are the length of a list, if it is one.
LISTS = {
    "server name": (tls.SERVER_NAME, tls.server_names(b"localhost"), 2),
    "groups": (tls.GROUPS, vector(numbers(X25519)), 2),
    "point formats": (tls.POINT_FORMATS, vector(b"\0", 1), 1),
    "signatures": (tls.SIGNATURES, vector(numbers(0x0403, 0x0804)), 2),
    "ALPN": (tls.ALPN, tls.protocols(b"http/1.1"), 2),
    "versions": (tls.VERSIONS, vector(numbers(0x0304, 0x0303), 1), 1),
    "PSK modes": (tls.MODES, vector(b"\1", 1), 1),
    "key share": (tls.KEY_SHARE, vector(share(X25519, b"\x09" + bytes(31))), 2),
    "renegotiation": (tls.RENEGOTIATION, vector(b"", 1), 1),
}
OTHERS = {
    "status request": (tls.STATUS_REQUEST, b"\1\0\0\0\0"),
    "extended secret": (tls.EXTENDED_SECRET, b""),
    "early data": (tls.EARLY_DATA, b""),
    "ticket": (tls.TICKET, b""),
    "padding": (tls.PADDING, bytes(40)),
    "unknown": (0xABCD, b"unknown"),
}


def misplaced(kind: int, data: bytes, off: int) -> Shape:
    """The extension comes last, and its length is off by so many."""

    def shape(hello: Hello) -> Hello:
        block = tls.blocks(hello.drop(kind).listed)
        return replace(hello, extensions=block + numbers(kind, len(data) + off) + data)

    return shape


def framed(name: str, kind: int, data: bytes) -> Iterator[Row]:
    """What is wrong with any extension."""
    yield Row(f"{name}: longer than the hello", misplaced(kind, data, 1), MALFORMED)
    yield Row(f"{name}: far longer than the hello", misplaced(kind, data, 0xFFFF - len(data)), MALFORMED)
    if data:
        yield Row(f"{name}: shorter than it is", misplaced(kind, data, -1), MALFORMED)


def listed(name: str, kind: int, data: bytes, width: int) -> Iterator[Row]:
    """What is wrong with a list."""
    inner = data[width:]
    off = {"one more": len(inner) + 1, "all that fit": 256**width - 1}
    if inner:
        off["one less"] = len(inner) - 1
        if kind != tls.KEY_SHARE:  # There it is that of a client which waits to be asked.
            # Of no protocols, there is none in common either.
            empty = (*MALFORMED, tls.NO_APPLICATION_PROTOCOL) if kind == tls.ALPN else MALFORMED
            yield Row(f"{name}: an empty list", with_extension(kind, bytes(width)), empty)
        yield Row(f"{name}: cut short", with_extension(kind, data[:-1]), MALFORMED)
    for said, length in off.items():
        yield Row(f"{name}: a list that says {said}", with_extension(kind, length.to_bytes(width) + inner), MALFORMED)
    yield Row(f"{name}: empty", with_extension(kind, b""), MALFORMED)
    yield Row(f"{name}: a byte behind the list", with_extension(kind, data + b"\0"), MALFORMED)
    yield Row(f"{name}: twice", lambda hello: hello.put(kind, data).add((kind, data)), MALFORMED)


def extensions() -> Iterator[Row]:
    for name, (kind, data, width) in LISTS.items():
        yield from framed(name, kind, data)
        yield from listed(name, kind, data, width)
    for name, (kind, data) in OTHERS.items():
        yield from framed(name, kind, data)
    for name in ("status request", "extended secret", "ticket"):
        yield Row(f"{name}: twice", added(OTHERS[name]), MALFORMED)
    yield Row("extended secret: not empty", with_extension(tls.EXTENDED_SECRET, b"\0"), MALFORMED)
    yield Row("status request: cut short", with_extension(tls.STATUS_REQUEST, b"\1\0\0"), MALFORMED)


def whole() -> Iterator[Row]:
    """The ClientHello around its extensions."""
    yield Row("block longer than the hello", cut(lambda block: block[:-1] + b"\xff\xff\xff\xff"), MALFORMED)
    yield Row("half an extension's head at the end", cut(lambda block: block + b"\0\x15\0"), MALFORMED)
    yield Row("one byte behind the extensions", cut(lambda block: block + b"\0"), MALFORMED)
    yield Row("extensions without end", cut(lambda block: block + numbers(tls.PADDING, 0xFFFF)), MALFORMED)
    yield Row("no extensions at all", with_fields(extensions=b""), (*MISSING, *NOTHING_IN_COMMON, *NO_VERSION))
    for length in (33, 64, 255):
        yield Row(f"session id of {length} bytes", with_fields(session=bytes(length)), MALFORMED)
    for length in (0, 1, 31):
        yield Row(f"session id of {length} bytes", with_fields(session=bytes(length)), SERVED_13)
    yield Row("no suites", with_fields(suites=b""), (*MALFORMED, *NOTHING_IN_COMMON))
    yield Row("half a suite", with_fields(suites=numbers(tls.AES_128_GCM) + b"\x13"), MALFORMED)
    yield Row("no compression methods", with_fields(compression=b""), MALFORMED)
    yield Row("DEFLATE alone", with_fields(compression=b"\1"), MALFORMED)
    yield Row("DEFLATE beside none", with_fields(compression=b"\1\0"), MALFORMED)
    yield Row("255 compression methods", with_fields(compression=bytes(range(1, 256))), MALFORMED)
    yield Row("TLS 1.2, DEFLATE alone", in_tls12(with_fields(compression=b"\1")), (*MALFORMED, *NOTHING_IN_COMMON))
    yield Row("TLS 1.2, DEFLATE beside none", in_tls12(with_fields(compression=b"\1\0")), SERVED_12)


def versions() -> Iterator[Row]:
    """Downgrades, and what a version field may hold."""
    for version in (0x0000, 0x0002, 0x0200, 0x0300, 0x0301, 0x0302):
        yield Row(f"version {version:#06x}", in_tls12(with_fields(version=version)), NO_VERSION)
    for version in (0x0304, 0x03FF, 0xFFFF):
        yield Row(
            f"version {version:#06x}, which is no sign of TLS 1.3", in_tls12(with_fields(version=version)), SERVED_12
        )
    for version in (0x0300, 0x0301, 0x0304, 0xFFFF):
        yield Row(f"version {version:#06x} beside the extension", with_fields(version=version), SERVED_13)
    for names, offered in {
        "TLS 1.1": (0x0302,),
        "SSL 3 and TLS 1.0": (0x0300, 0x0301),
        "GREASE": tls.GREASE,
        "drafts": (0x7F1C, 0x7F17),
        "TLS 1.4": (0x0305,),
    }.items():
        extension = vector(numbers(*offered), 1)
        yield Row(f"versions: {names} alone", with_extension(tls.VERSIONS, extension), NO_VERSION)
    odd = vector(numbers(0x0304) + b"\3", 1)
    yield Row("versions: one and a half", with_extension(tls.VERSIONS, odd), MALFORMED)
    many = vector(numbers(*tls.GREASE, *range(0x7F00, 0x7F70), 0x0304), 1)
    yield Row("versions: the good one last of many", with_extension(tls.VERSIONS, many), SERVED_13)
    fallback = numbers(tls.ECDSA_AES_128_GCM, tls.FALLBACK_SCSV)
    yield Row(
        "TLS 1.2 as a fallback", in_tls12(with_fields(suites=fallback)), (tls.INAPPROPRIATE_FALLBACK,), known=FALLBACK
    )
    beside = numbers(tls.AES_128_GCM, tls.FALLBACK_SCSV)
    yield Row("a fallback's mark on the newest", with_fields(suites=beside), SERVED_13)


def suites() -> Iterator[Row]:
    """What is weak is unknown here."""
    weak = {
        "NULL": 0x0002,
        "export": 0x0003,
        "RC4": 0x0005,
        "3DES": 0x000A,
        "anonymous": 0x0018,
        "RSA key exchange": 0x002F,
        "DHE": 0x009E,
        "CBC": 0xC009,
        "CCM": 0xC0AC,
        "PSK": 0x00A8,
        "GREASE": 0x0A0A,
        "signalling alone": tls.EMPTY_RENEGOTIATION_SCSV,
        "SM4": 0x00C6,
    }
    for name, suite in weak.items():
        yield Row(f"TLS 1.2, suites: {name}", in_tls12(with_fields(suites=numbers(suite))), NOTHING_IN_COMMON)
    yield Row("TLS 1.3, suites: those of TLS 1.2", with_fields(suites=numbers(0xC02B)), NOTHING_IN_COMMON)
    yield Row("TLS 1.3, suites: CCM", with_fields(suites=numbers(0x1304, 0x1305)), NOTHING_IN_COMMON)
    yield Row("TLS 1.2, suites: those of TLS 1.3", in_tls12(with_fields(suites=numbers(0x1301))), NOTHING_IN_COMMON)
    many = numbers(*range(0x5700, 0x5700 + 30_000), tls.AES_128_GCM)
    yield Row("30,000 suites, the good one last", with_fields(suites=many), SERVED_13)


#: A point of order 8 on Curve25519 (RFC 7748, section 6.1, has it checked for in the shared secret).
SMALL_ORDER = "00b8495f16056286fdb1329ceb8d09da6ac49ff1fae35616aeb8413b7c7aebe0"


def keys() -> Iterator[Row]:
    """Groups and the keys for them."""
    prime = (1 << 255) - 19
    low = (0, 1, prime - 1, prime, prime + 1, int(SMALL_ORDER, 16))
    refused = (*MALFORMED, *NOTHING_IN_COMMON)
    for number, point in enumerate(low):
        one = vector(share(X25519, point.to_bytes(32, "little")))
        yield Row(f"X25519: point {number} of low order", with_extension(tls.KEY_SHARE, one), refused)
    for length in (0, 1, 31, 33, 1000):
        one = vector(share(X25519, bytes([9] * length)))
        yield Row(f"X25519: a key of {length} bytes", with_extension(tls.KEY_SHARE, one), refused)
    for name, key in {
        "not on the curve": b"\4" + bytes([1] * 64),
        "at infinity": b"\0",
        "all zero": b"\4" + bytes(64),
        "cut short": b"\4" + bytes([1] * 63),
        "compressed": b"\2" + bytes([1] * 32),
        "hybrid form": b"\6" + bytes([1] * 64),
        "out of range": b"\4" + b"\xff" * 64,
        "empty": b"",
    }.items():
        yield Row(f"P-256: {name}", only(tls.P256, key), refused)
    for name, key in {
        "one byte short": bytes(1215),
        "one byte too many": bytes(1217),
        "out of range": b"\xff" * 1184 + b"\x09" + bytes(31),
        "X25519 of low order": bytes(1216),
        "X25519 alone": b"\x09" + bytes(31),
        "ML-KEM alone": bytes(1184),
        "empty": b"",
    }.items():
        yield Row(f"X25519MLKEM768: {name}", only(tls.HYBRID, key), refused)
    good = share(X25519, b"\x09" + bytes(31))
    yield Row("key share: two for one group", with_extension(tls.KEY_SHARE, vector(good + good)), MALFORMED)
    yield Row("key share: cut short within the key", with_extension(tls.KEY_SHARE, vector(good[:-1])), MALFORMED)
    yield Row("no key share", without(tls.KEY_SHARE), MISSING, known=UNNAMED)
    yield Row("no groups", without(tls.GROUPS), MISSING, known=UNNAMED)
    yield Row("no signatures", without(tls.SIGNATURES), MISSING, known=UNNAMED)
    yield Row("groups: unknown ones", with_extension(tls.GROUPS, vector(numbers(0xFE00, 0x0100))), NOTHING_IN_COMMON)
    yield Row("groups: one and a half", with_extension(tls.GROUPS, vector(numbers(X25519) + b"\0")), MALFORMED)
    for name, schemes in {
        "SHA-1": (0x0203, 0x0201),
        "unknown ones": (0xFE00,),
        "MD5": (0x0101,),
        "PKCS #1": (0x0401,),
    }.items():
        extension = vector(numbers(*schemes))
        yield Row(f"signatures: {name}", with_extension(tls.SIGNATURES, extension), NOTHING_IN_COMMON)
    sha1 = in_tls12(with_extension(tls.SIGNATURES, vector(numbers(0x0203, 0x0201))))
    yield Row("TLS 1.2, signatures: SHA-1", sha1, NOTHING_IN_COMMON)
    # RFC 5246 would have SHA-1 be meant.
    yield Row("TLS 1.2, no signatures", in_tls12(without(tls.SIGNATURES)), NOTHING_IN_COMMON)
    half = vector(numbers(0x0403) + b"\4")
    yield Row("signatures: one and a half", with_extension(tls.SIGNATURES, half), MALFORMED)


def only(group: int, key: bytes) -> Shape:
    """One group, and a key for it."""
    return lambda hello: hello.put(tls.GROUPS, vector(numbers(group))).put(tls.KEY_SHARE, vector(share(group, key)))


def names() -> Iterator[Row]:
    """Server names where only those that are known are served, and protocols."""
    refused = (tls.UNRECOGNIZED_NAME, *MALFORMED)
    wrong = {
        "empty": b"",
        "NUL within": b"localhost\0.evil.test",
        "NUL": b"\0",
        "IPv4": b"127.0.0.1",
        "IPv6": b"::1",
        "IPv6 in brackets": b"[::1]",
        "a dot": b".",
        "two dots": b"localhost..",
        "a dot in front": b".localhost",
        "300 letters": b"a" * 300,
        "60,000 letters": b"a" * 60_000,
        "a label of 64 letters": b"a" * 64 + b".test",
        "UTF-8": "löcalhost".encode(),
        "no UTF-8": b"\xff\xfelocalhost",
        "a wildcard": b"*",
        "a wildcard in front": b"*.localhost",
        "a space": b"localhost ",
        "a port": b"localhost:443",
        "a line break": b"localhost\r\nHost: evil.test",
        "a slash": b"localhost/",
        "a user": b"evil@localhost",
        "a percent sign": b"localhos%74",
    }
    for name, sent in wrong.items():
        yield Row(f"SNI: {name}", with_extension(tls.SERVER_NAME, tls.server_names(sent)), refused, "strict")
    yield Row("SNI: none", without(tls.SERVER_NAME), refused, "strict")
    entry = b"\0" + vector(b"localhost")
    yield Row("SNI: two names", with_extension(tls.SERVER_NAME, vector(entry * 2)), MALFORMED, "strict")
    unknown = tls.server_names(b"localhost", 7)
    yield Row("SNI: of no known kind", with_extension(tls.SERVER_NAME, unknown), refused, "strict")
    other = vector(entry + b"\7" + vector(b"other"))
    yield Row("SNI: a name and another kind", with_extension(tls.SERVER_NAME, other), SERVED_13, "strict")
    too_much = vector(b"\0" + numbers(0xFFFF) + b"localhost")
    yield Row("SNI: a name that says too much", with_extension(tls.SERVER_NAME, too_much), refused, "strict")
    yield Row("SNI: in capitals", with_extension(tls.SERVER_NAME, tls.server_names(b"LOCALHOST")), SERVED_13, "strict")
    for name, offered in {
        "unknown": (b"nobody",),
        "in capitals": (b"HTTP/1.1",),
        "NUL behind": (b"http/1.1\0",),
        "NUL within": (b"http\0/1.1",),
        "a space behind": (b"http/1.1 ",),
        "a part": (b"http/1",),
        "two in one": (b"h2,http/1.1",),
        "255 bytes": (b"\xff" * 255,),
        "10,000 of them": tuple(b"x%d" % number for number in range(10_000)),
    }.items():
        yield Row(f"ALPN: {name}", with_extension(tls.ALPN, tls.protocols(*offered)), (tls.NO_APPLICATION_PROTOCOL,))
    for name, list_ in {
        "an empty name": (b"",),
        "an empty name in front": (b"", b"http/1.1"),
        "an empty name behind": (b"http/1.1", b""),
    }.items():
        yield Row(f"ALPN: {name}", with_extension(tls.ALPN, tls.protocols(*list_)), MALFORMED)
    yield Row("ALPN: a name longer than the list", with_extension(tls.ALPN, vector(b"\x09http/1.1")), MALFORMED)
    good_last = tls.protocols(*(b"x%d" % number for number in range(1000)), b"http/1.1")
    yield Row("ALPN: the good one last of many", with_extension(tls.ALPN, good_last), SERVED_13)
    yield Row("ALPN: the same twice", with_extension(tls.ALPN, tls.protocols(b"http/1.1", b"http/1.1")), SERVED_13)


def psk(identities: bytes, binders: bytes) -> Extension:
    return tls.PRE_SHARED_KEY, vector(identities) + vector(binders)


def resumptions() -> Iterator[Row]:
    """Pre-shared keys that nobody has, and early data."""
    identity, binder = vector(b"nobody knows this ticket") + bytes(4), vector(bytes(32), 1)
    good = psk(identity, binder)
    yield Row("PSK: an unknown one", added(good), SERVED_13)
    yield Row("PSK: 400 unknown ones", added(psk(identity * 400, binder * 400)), SERVED_13)
    yield Row("PSK: not the last", added(good, (tls.PADDING, bytes(10))), MALFORMED)
    yield Row("PSK: twice", added(good, good), MALFORMED)
    yield Row("PSK: without modes", lambda hello: hello.drop(tls.MODES).add(good), (*MISSING, *MALFORMED))
    for name, one in {
        "no identities": psk(b"", binder),
        "no binders": psk(identity, b""),
        "more binders": psk(identity, binder * 2),
        "more identities": psk(identity * 2, binder),
        "an empty identity": psk(vector(b"") + bytes(4), binder),
        "an empty binder": psk(identity, vector(b"", 1)),
        "an identity cut short": psk(identity[:-1], binder),
        "a binder cut short": psk(identity, binder[:-1]),
        "nothing": (tls.PRE_SHARED_KEY, b""),
        "identities alone": (tls.PRE_SHARED_KEY, vector(identity)),
        "a byte behind": (good[0], good[1] + b"\0"),
    }.items():
        yield Row(f"PSK: {name}", added(one), MALFORMED)
    short = psk(identity, vector(bytes(31), 1))
    known = "rustls reads short binders, of sessions that it does not know"
    yield Row("PSK: a short binder", added(short), MALFORMED, known=known)
    yield Row("early data: not empty", added((tls.EARLY_DATA, b"\0\0\0\1"), good), MALFORMED)
    yield Row("early data: without a PSK", added((tls.EARLY_DATA, b"")), SERVED_13)
    # RFC 5746, section 3.6.
    claimed = tls.RENEGOTIATION, vector(bytes(12), 1)
    refused = (*NOTHING_IN_COMMON, *MALFORMED)
    yield Row("renegotiation of nothing", added(claimed), refused)
    in_older = in_tls12(added(claimed))
    yield Row("TLS 1.2, renegotiation of nothing", in_older, refused)


def greased() -> Iterator[Row]:
    """RFC 8701, and whatever else a client may say that nobody knows."""
    grease = numbers(*tls.GREASE)

    def listed_first(kind: int, width: int, front: bytes) -> Shape:
        return lambda hello: hello.put(kind, vector(front + hello.content(kind)[width:], width))

    places: dict[str, Shape] = {
        "suites": lambda hello: replace(hello, suites=grease + hello.suites),
        "groups": listed_first(tls.GROUPS, 2, grease),
        "key shares": listed_first(tls.KEY_SHARE, 2, share(tls.GREASE[0], b"\0")),
        "versions": listed_first(tls.VERSIONS, 1, grease),
        "signatures": listed_first(tls.SIGNATURES, 2, grease),
        "ALPN": listed_first(tls.ALPN, 2, vector(b"\x0a\x0a", 1)),
        "PSK modes": listed_first(tls.MODES, 1, b"\x0b"),
        "point formats": listed_first(tls.POINT_FORMATS, 1, b"\x2a"),
        "extensions": lambda hello: replace(
            hello, extensions=((tls.GREASE[0], b""), *hello.listed, (tls.GREASE[1], b"\0"))
        ),
    }
    for name, shape in places.items():
        yield Row(f"GREASE in {name}", shape, SERVED_13)

    def everywhere(hello: Hello) -> Hello:
        for shape in places.values():
            hello = shape(hello)
        return hello

    yield Row("GREASE everywhere", everywhere, SERVED_13)
    yield Row("in reverse", lambda hello: replace(hello, extensions=hello.listed[::-1]), SERVED_13)
    unknown = tuple((0x8000 + number, bytes(number % 50)) for number in range(1000))
    yield Row("1,000 unknown extensions", added(*unknown), SERVED_13)
    yield Row("padding of 60,000 bytes", added((tls.PADDING, bytes(60_000))), SERVED_13)
    yield Row("TLS 1.2 asked for", in_tls12(), SERVED_12)
    signalled = numbers(tls.EMPTY_RENEGOTIATION_SCSV, tls.ECDSA_AES_128_GCM)
    yield Row("TLS 1.2, first handshake signalled by a suite", in_tls12(with_fields(suites=signalled)), SERVED_12)
    signalled_so = in_tls12(with_extension(tls.RENEGOTIATION, vector(b"", 1)))
    yield Row("TLS 1.2, first handshake signalled by an extension", signalled_so, SERVED_12)
    yield Row(
        "TLS 1.2, GREASE in suites", in_tls12(lambda hello: replace(hello, suites=grease + hello.suites)), SERVED_12
    )
    yield Row("TLS 1.2, no extended secret", in_tls12(without(tls.EXTENDED_SECRET)), SERVED_12)


ROWS: tuple[Row, ...] = (
    *whole(), *versions(), *suites(), *keys(), *names(), *extensions(), *resumptions(), *greased(),
)  # fmt: skip
