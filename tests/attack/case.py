"""What a case is: bytes that somebody sends, and what the RFCs let a gateway make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from support.strict_http import Field, Fields

SMUGGLED = b"GET /smuggled/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""Never a request of its own, although it looks like one: it is part of a body, or follows what is to be refused.

Its 44 bytes are what the tables write as a length.
"""
assert len(SMUGGLED) == 44
SECOND = b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request of its own: by every reading it follows a whole request on the same connection."""


OWN_ADDRESS = b"127.0.0.1:"
"""The beginning of the authority of a request that names none: the address that it came to."""


class Read(NamedTuple):
    """A request as the RFCs read it."""

    body: bytes = b""
    method: bytes = b"POST"
    target: bytes = b"/"
    authority: bytes = b"localhost"


SECOND_READ = Read(method=b"GET", target=b"/second")

Must = Literal["forward", "refuse", "either", "cut", "early", "own"]
After = Literal["served", "closed", "refused"]


@dataclass(frozen=True)
class Expect:
    """What may become of a case.

    `must`: forward `reads`; refuse everything; either of them; pass on something incomplete at most ("cut"); the
    same, but answered by the upstream ("early"); or answer without the upstream ("own"). `after`: what becomes of the
    next request, where the connection stays open: "refused" means that bytes are left over which are none.
    """

    must: Must
    reads: tuple[Read, ...] = ()
    after: After = "served"
    absent: tuple[bytes, ...] = ()
    """Names that must have gone from the headers and trailers."""
    untrailed: tuple[bytes, ...] = ()
    """Names that must have gone from the trailers."""
    present: Fields = ()
    tunnelled: bytes = b""
    declined: bool = False
    """An upstream that does not switch is no answer that the client could be given: 502."""

    @property
    def may_refuse(self) -> bool:
        return self.must in ("refuse", "either", "cut", "early")


REFUSED = Expect("refuse")
CUT = Expect("cut")
OWN = Expect("own")


def _reads(reads: tuple[bytes | Read, ...]) -> tuple[Read, ...]:
    return tuple(Read(one) if isinstance(one, bytes) else one for one in reads)


def forwarded(
    *reads: bytes | Read,
    after: After = "served",
    absent: Sequence[bytes] = (),
    present: Sequence[Field] = (),
    tunnelled: bytes = b"",
) -> Expect:
    """A good request; the gateway has no reason to refuse it. Bare bytes are the body of a POST."""
    return Expect("forward", _reads(reads), after, tuple(absent), (), tuple(present), tunnelled)


def either(
    *reads: bytes | Read,
    after: After = "served",
    absent: Sequence[bytes] = (),
    untrailed: Sequence[bytes] = (),
    tunnelled: bytes = b"",
) -> Expect:
    """The RFCs allow both a refusal and one reading."""
    return Expect("either", _reads(reads), after, tuple(absent), tuple(untrailed), (), tunnelled)


def tunnel(*reads: bytes | Read, tunnelled: bytes = b"") -> Expect:
    """What CONNECT asks for, as an upgrade. Only what follows an upstream's yes is passed on."""
    return Expect("either", _reads(reads), tunnelled=tunnelled, declined=True)


def early(*reads: bytes | Read) -> Expect:
    """The upstream answers first. What comes later is the body, or goes nowhere."""
    return Expect("early", _reads(reads))


Hangup = Literal["", "fin", "notify", "reset"]


@dataclass(frozen=True)
class Sections:
    """A request in frames: what HTTP/2 and HTTP/3 have in common."""

    fields: Fields
    body: tuple[bytes, ...] = ()
    trailers: Fields | None = None
    end: Literal["fin", "reset", "open"] = "fin"
    """How the stream ends, which may be not at all."""


class Row(NamedTuple):
    """A line of a table. `sent`: bytes go on the wire as they are."""

    name: str
    sent: bytes | Sections
    expect: Expect
    late: bytes = b""
    """Sent when an answer has come, be it `100 Continue`."""
    hangup: Hangup = ""
    """How the connection ends behind `sent`: a FIN, the same behind TLS's close_notify, or a reset."""
    known: str = ""
    """The defect of the gateway that makes it fail, as long as there is one."""


@dataclass(frozen=True)
class Case:
    kind: str
    row: Row

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.row.name}"

    @property
    def expect(self) -> Expect:
        return self.row.expect


@dataclass
class Tables:
    """Rows by class of attack."""

    cases: list[Case] = field(default_factory=list)

    def add(self, kind: str, *rows: Row | tuple[str, bytes | Sections, Expect]) -> None:
        for row in rows:
            self.cases.append(Case(kind, row if isinstance(row, Row) else Row(*row)))


def head(
    *lines: bytes,
    method: bytes = b"POST",
    target: bytes = b"/",
    version: bytes = b"HTTP/1.1",
    host: bytes | None = b"localhost",
) -> bytes:
    """A head of HTTP/1.1: the request line, a Host, the lines as they are, and the empty line."""
    hosts = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([method + b" " + target + b" " + version, *hosts, *lines, b"", b""])


def length(count: int) -> bytes:
    return b"Content-Length: %d" % count


def chunks(*pieces: bytes) -> bytes:
    """A whole chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
