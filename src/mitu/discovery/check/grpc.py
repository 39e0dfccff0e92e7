"""The gRPC health checking protocol: `grpc.health.v1.Health/Check`, once."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mitu.discovery.check import http2
from mitu.discovery.check.connection import CheckError, Stream

_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1
_WORDS = {0: "unknown", 2: "not serving", 3: "service unknown"}
# grpc.github.io/grpc/core/md_doc_statuscodes.html
_NOT_FOUND, _UNIMPLEMENTED = 5, 12
_STATUSES = (
    "ok",
    "cancelled",
    "unknown",
    "invalid argument",
    "deadline exceeded",
    "not found",
    "already exists",
    "permission denied",
    "resource exhausted",
    "failed precondition",
    "aborted",
    "out of range",
    "unimplemented",
    "internal",
    "unavailable",
    "data loss",
    "unauthenticated",
)
_FIXED = {1: 8, 5: 4}
"""Wire types of protobuf whose values have one length."""


async def serving(stream: Stream, scheme: str, authority: str, service: str, seconds: float, agent: str) -> None:
    """Returns when `service`, or with an empty one the whole server, is serving. CheckError."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    headers = (
        (":method", "POST"),
        (":scheme", scheme),
        (":authority", authority),
        (":path", _METHOD),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", f"{max(round(seconds * 1000), 1)}m"),
        ("user-agent", agent),
    )
    answer = await http2.call(stream, headers, struct.pack("!BI", 0, len(message)) + message)
    if answer.status != 200:
        raise CheckError(f"status {answer.status}")
    _must_be_ok(answer.fields.get(b"grpc-status", b""))
    status = _serving_status(answer.body)
    if status != _SERVING:
        raise CheckError(_WORDS.get(status, f"serving status {status}"))


def _must_be_ok(status: bytes) -> None:
    code = int(status) if status.isdigit() and len(status) < 4 else None
    if code == 0:
        return
    if code == _NOT_FOUND:
        raise CheckError("the service is not known to the server")
    if code == _UNIMPLEMENTED:
        raise CheckError("the server has no health service")
    if code is None:
        raise CheckError("not gRPC")
    raise CheckError(f"grpc status {_STATUSES[code] if code < len(_STATUSES) else code}")


def _serving_status(body: bytes) -> int:
    """The first field of the one message in `body`; as everywhere in protobuf, 0 where it is left out."""
    try:
        compressed, length = struct.unpack_from("!BI", body)
        if compressed or length != len(body) - 5:
            raise CheckError("not a health answer")
        return next(reversed([value for number, value in _numbers(body[5:]) if number == 1]), 0)
    except (struct.error, IndexError) as error:
        raise CheckError("not a health answer") from error


def _numbers(message: bytes) -> Iterator[tuple[int, int]]:
    """The fields of a message that are numbers. IndexError or CheckError when it is cut short or malformed."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _read_varint(message, at)
            at += length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise CheckError("not a health answer")
    if at > len(message):
        raise IndexError


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise CheckError("not a health answer")


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])
