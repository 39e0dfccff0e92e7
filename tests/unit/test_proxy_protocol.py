"""The PROXY v2 headers that Python handlers are told of their connections with."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitu.proxy_protocol import Connection, parse, read
from support import proxy_protocol

HEADER = proxy_protocol.make(("203.0.113.7", 40_000), ("198.51.100.1", 443))


def entry(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def secured(client: int, verify: int, *entries: bytes) -> bytes:
    return entry(0x20, struct.pack("!BI", client, verify) + b"".join(entries))


def parsed(tail: bytes = b"", source: str = "203.0.113.7", destination: str = "198.51.100.1") -> Connection:
    header = proxy_protocol.make((source, 40_000), (destination, 443), tail=tail)
    return parse(header[13], header[16:])


def test_addresses() -> None:
    assert parsed() == Connection(client=("203.0.113.7", 40_000), server=("198.51.100.1", 443))
    six = parsed(source="2001:db8::7", destination="2001:db8::1")
    assert (six.client, six.server) == (("2001:db8::7", 40_000), ("2001:db8::1", 443))


def test_what_was_negotiated() -> None:
    ssl = secured(0x01, 1, entry(0x21, b"TLSv1.3"), entry(0x23, b"TLS_AES_128_GCM_SHA256"))
    found = parsed(entry(0x01, b"private/1") + entry(0x02, b"edge.test") + ssl + entry(0xEE, b"unknown"))
    assert (found.alpn, found.server_name) == ("private/1", "edge.test")
    assert (found.tls_version, found.cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    assert (found.client_verified, found.client_name) == (False, None)


@pytest.mark.parametrize(
    ("client", "verify", "verified"), [(0x07, 0, True), (0x05, 0, True), (0x07, 1, False), (0x01, 0, False)]
)
def test_a_client_is_verified_when_it_showed_a_certificate_that_was_good(
    client: int, verify: int, verified: bool
) -> None:
    assert parsed(secured(client, verify, entry(0x22, b"device-1"))).client_verified is verified


def test_a_name_that_is_no_text() -> None:
    assert parsed(secured(0x07, 0, entry(0x22, b"\xff\xfe"))).client_name == "\ufffd\ufffd"


@pytest.mark.parametrize(
    "tail", [b"\x01", b"\x01\x00\x05abcd", entry(0x20, b"\x01\x00"), secured(1, 0, b"\x21\x00\x09x")]
)
def test_entries_that_are_cut_short(tail: bytes) -> None:
    with pytest.raises(ConnectionError):
        parsed(tail)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_no_bytes_lead_to_anything_else(family: int, body: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        assert isinstance(parse(family, body), Connection)


async def received(data: bytes) -> tuple[Connection, bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await read(reader), await reader.read()


async def test_not_a_byte_more_is_read() -> None:
    connection, rest = await received(HEADER + b"the client's first bytes")
    assert connection.client == ("203.0.113.7", 40_000)
    assert rest == b"the client's first bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER[:10],
        HEADER[:20],
        b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n",
        HEADER[:12] + b"\x20" + HEADER[13:],
        HEADER[:12] + b"\x11" + HEADER[13:],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "version 1", "local", "another version", "none"],
)
async def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await received(data)
