"""The PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt), as the data plane writes it for Python handlers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_ALPN, _AUTHORITY, _SSL, _SSL_VERSION, _SSL_CN, _SSL_CIPHER = 0x01, 0x02, 0x20, 0x21, 0x22, 0x23


@dataclass(frozen=True, slots=True)
class Connection:
    """Whose connection a handler serves."""

    client: tuple[str, int]
    """The client's address and port."""
    server: tuple[str, int]
    """The address and port it connected to."""
    alpn: str = ""
    server_name: str | None = None
    tls_version: str = ""
    cipher: str = ""
    client_verified: bool = False
    """Whether the client showed a certificate, and it was verified."""
    client_name: str | None = None
    """The common name in that certificate."""


async def read(reader: asyncio.StreamReader) -> Connection:
    """Read one header, and not a byte more. ConnectionError when there is none."""
    head = await reader.readexactly(16)
    signature, command, family, length = struct.unpack("!12sBBH", head)
    if signature != _SIGNATURE or command != 0x21:
        raise ConnectionError("no PROXY v2 header")
    body = await reader.readexactly(length)
    return parse(family, body)


def parse(family: int, body: bytes) -> Connection:
    """A header's addresses and its type-length-value entries. ConnectionError when they are cut short."""
    try:
        if family == 0x11:
            source, destination, *ports = struct.unpack_from("!4s4sHH", body)
            rest, address = body[12:], IPv4Address
        else:
            source, destination, *ports = struct.unpack_from("!16s16sHH", body)
            rest, address = body[36:], IPv6Address  # type: ignore[assignment]
        found = dict(_entries(rest))
        ssl = found.get(_SSL, b"\0\0\0\0\0")
        client, verify = struct.unpack_from("!BI", ssl)
        secured = dict(_entries(ssl[5:]))
    except struct.error as error:
        raise ConnectionError("malformed PROXY v2 header") from error
    return Connection(
        client=(str(address(source)), ports[0]),
        server=(str(address(destination)), ports[1]),
        alpn=_text(found.get(_ALPN)) or "",
        server_name=_text(found.get(_AUTHORITY)),
        tls_version=_text(secured.get(_SSL_VERSION)) or "",
        cipher=_text(secured.get(_SSL_CIPHER)) or "",
        client_verified=bool(client & 0x06) and verify == 0,
        client_name=_text(secured.get(_SSL_CN)),
    )


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        kind, length = struct.unpack_from("!BH", data)
        (value,) = struct.unpack_from(f"!{length}s", data, 3)
        yield kind, value
        data = data[3 + length :]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
