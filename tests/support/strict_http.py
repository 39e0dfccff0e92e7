"""Requests as a strict server reads them: whatever two servers could read in two ways is an error here.

Written from RFC 9110, 9112 and 9113 and from nothing else, so that it shares no mistake with what it judges. It is
stricter than they are where a gateway has no reason to use the freedom they give: it knows no chunk extensions, no
empty list elements, and no length of 10^18 or more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*|\*")
_AUTHORITY = re.compile(rb"(?:(?:[0-9A-Za-z\-._~%!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?)?")
_LENGTH = re.compile(rb"0*[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")

# They belong to one connection, which is never the one behind a gateway (RFC 9110, section 7.6.1).
_CONNECTION_OWNED = frozenset({b"keep-alive", b"proxy-connection", b"http2-settings"})
# RFC 9113, section 8.2.2.
_NOT_IN_H2 = frozenset({b"connection", b"transfer-encoding", b"upgrade"})
# They frame, route, authenticate or describe the message, so they mean nothing good behind it (RFC 9110, 6.5.1).
_NOT_IN_TRAILERS = _CONNECTION_OWNED | {
    *(b"authorization", b"connection", b"content-encoding", b"content-length", b"content-type", b"cookie", b"expect"),
    *(b"forwarded", b"host", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"x-forwarded-for"),
}


class MalformedError(Exception):
    """No strict server would take this for a request."""


@dataclass(frozen=True)
class Message:
    """One whole request. Names of fields are in lower case."""

    method: bytes
    target: bytes
    authority: bytes
    headers: Fields
    body: bytes = b""
    trailers: Fields = ()

    def all(self, name: bytes) -> list[bytes]:
        """Every value that a header has."""
        return [value for known, value in self.headers if known == name]


@dataclass(frozen=True)
class Head:
    """A request up to its body. `length`: None when the body is chunked; `end`: where the body begins."""

    message: Message
    length: int | None
    end: int


def read_head(wire: bytes, at: int = 0) -> Head | None:
    """The head that begins at `at`; None while it is incomplete. MalformedError."""
    end = wire.find(b"\r\n\r\n", at)
    _refuse_bare(wire, at, end)
    if end < 0:
        return None
    line, *lines = wire[at:end].split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or words[2] != b"HTTP/1.1":
        raise MalformedError(f"request line {line!r}")
    method, target, _ = words
    _require(_TOKEN, method, "method")
    headers = _fields(lines)
    found = {name: [value for known, value in headers if known == name] for name, _ in headers}
    hosts = found.get(b"host", [])
    if len(hosts) != 1:
        raise MalformedError(f"{len(hosts)} hosts")
    _require_target(method, target)
    _require(_AUTHORITY, hosts[0], "host")
    _check_connection(found)
    length = _framing(found)
    return Head(Message(method, target, hosts[0], headers), length, end + 4)


def read_request(wire: bytes, at: int = 0) -> tuple[Message, int] | None:
    """The request that begins at `at`, and where the next one does; None while it is incomplete. MalformedError."""
    head = read_head(wire, at)
    if head is None:
        return None
    if head.length is None:
        return _read_chunks(wire, head)
    end = head.end + head.length
    if len(wire) < end:
        return None
    known = head.message
    return Message(known.method, known.target, known.authority, known.headers, wire[head.end : end]), end


def from_h2(fields: Fields, body: bytes, trailers: Fields) -> Message:
    """A request that came in frames. MalformedError."""
    count = sum(name.startswith(b":") for name, _ in fields)
    known, headers = dict(fields[:count]), fields[count:]
    if len(known) < count or known.keys() | {b":authority"} != {b":authority", b":method", b":path", b":scheme"}:
        raise MalformedError(f"pseudo-header fields {fields}")
    # Without an authority in the request there is none to be made up (RFC 9113, section 8.3.1).
    method, target, authority = known[b":method"], known[b":path"], known.get(b":authority", b"")
    _require(_TOKEN, method, "method")
    _require_target(method, target)
    _require(_AUTHORITY, authority, "authority")
    if known[b":scheme"] not in (b"http", b"https"):
        raise MalformedError(f"scheme {known[b':scheme']!r}")
    for name, value in headers:
        _check_field(name, value)
        if name != name.lower() or name in _NOT_IN_H2 | _CONNECTION_OWNED or (name == b"te" and value != b"trailers"):
            raise MalformedError(f"{name!r} in h2")
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(length) or int(length) != len(body) for length in lengths):
        raise MalformedError(f"content-length {lengths} of a body of {len(body)} bytes")
    if any(value != authority for name, value in headers if name == b"host"):
        raise MalformedError("a host that is not the authority")
    for name, value in trailers:
        _check_trailer(name, value)
        if name != name.lower():
            raise MalformedError(f"{name!r} in h2")
    return Message(method, target, authority, headers, body, trailers)


def _read_chunks(wire: bytes, head: Head) -> tuple[Message, int] | None:
    body, at = bytearray(), head.end
    while True:
        end = wire.find(b"\n", at)
        if end < 0:
            return None
        size = wire[at : end - 1]
        if wire[end - 1 : end] != b"\r" or not _CHUNK_SIZE.fullmatch(size):
            raise MalformedError(f"chunk size {wire[at : end + 1]!r}")
        at = end + 1
        count = int(size, 16)
        if count == 0:
            break
        body += wire[at : at + count]
        at += count
        if len(wire) < at + 2:
            if not b"\r\n".startswith(wire[at:]):
                raise MalformedError(f"{wire[at:]!r} behind a chunk")
            return None
        if wire[at : at + 2] != b"\r\n":
            raise MalformedError(f"{wire[at : at + 2]!r} behind a chunk")
        at += 2
    if wire.startswith(b"\r\n", at):
        lines, end = [], at + 2
    else:
        end = wire.find(b"\r\n\r\n", at)
        _refuse_bare(wire, at, end)
        if end < 0:
            return None
        lines, end = wire[at:end].split(b"\r\n"), end + 4
    trailers = _fields(lines)
    for name, value in trailers:
        _check_trailer(name, value)
    known = head.message
    return Message(known.method, known.target, known.authority, known.headers, bytes(body), trailers), end


def _refuse_bare(wire: bytes, at: int, end: int) -> None:
    """Lines that end with CR or LF alone. `end`: of the last line, or -1 while there may be more."""
    text = wire[at : end + 2] if end >= 0 else wire[at:].removesuffix(b"\r")
    if bare := _BARE.search(text):
        raise MalformedError(f"a bare CR or LF: {text[: bare.end()]!r}")


def _framing(found: dict[bytes, list[bytes]]) -> int | None:
    lengths, codings = found.get(b"content-length", []), found.get(b"transfer-encoding", [])
    if lengths and codings:
        raise MalformedError("both Content-Length and Transfer-Encoding")
    if codings:
        if codings != [b"chunked"]:
            raise MalformedError(f"transfer codings {codings}")
        return None
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(length) for length in lengths):
        raise MalformedError(f"lengths {lengths}")
    return int(lengths[0]) if lengths else 0


def _check_connection(found: dict[bytes, list[bytes]]) -> None:
    if owned := _CONNECTION_OWNED & found.keys():
        raise MalformedError(f"{sorted(owned)} were passed on")
    options = [option.lower() for value in found.get(b"connection", []) for option in value.split(b", ")]
    if unknown := set(options) - {b"close", b"keep-alive", b"upgrade", b"te"}:
        raise MalformedError(f"connection options {sorted(unknown)}")
    for name in (b"upgrade", b"te"):
        if (name in options) != (name in found):
            raise MalformedError(f"{name!r} and the Connection header do not go together")
    if found.get(b"te", [b"trailers"]) != [b"trailers"]:
        raise MalformedError(f"TE {found[b'te']}")


def _fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise MalformedError(f"no colon in {line!r}")
        value = value.strip(b" \t")
        _check_field(name, value)
        fields.append((name.lower(), value))
    return tuple(fields)


def _check_field(name: bytes, value: bytes) -> None:
    _require(_TOKEN, name, "name")
    _require(_VALUE, value, f"value of {name!r}")


def _check_trailer(name: bytes, value: bytes) -> None:
    _check_field(name, value)
    if name.lower() in _NOT_IN_TRAILERS:
        raise MalformedError(f"{name!r} in the trailers")


def _require_target(method: bytes, target: bytes) -> None:
    _require(_TARGET, target, "target")
    if target == b"*" and method != b"OPTIONS":
        raise MalformedError(f"target * of {method!r}")


def _require(shape: re.Pattern[bytes], text: bytes, what: str) -> None:
    if not shape.fullmatch(text):
        raise MalformedError(f"{what} {text!r}")
