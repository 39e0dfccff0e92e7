"""PROXY protocol v2 as a receiver and a sender see it, written from the specification alone."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from dataclasses import dataclass, field

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PP2_TYPE_ALPN, PP2_TYPE_AUTHORITY, PP2_TYPE_SSL = 0x01, 0x02, 0x20
PP2_SUBTYPE_SSL_VERSION, PP2_SUBTYPE_SSL_CN, PP2_SUBTYPE_SSL_CIPHER = 0x21, 0x22, 0x23
PP2_CLIENT_SSL, PP2_CLIENT_CERT_CONN, PP2_CLIENT_CERT_SESS = 0x01, 0x02, 0x04


@dataclass
class Header:
    """What one header says. `ssl`: sub-TLVs by type, beside `client` (bits) and `verify`."""

    command: int
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None
    tlvs: dict[int, bytes] = field(default_factory=dict)

    @property
    def client(self) -> int:
        return self.tlvs[PP2_TYPE_SSL][0]

    @property
    def verify(self) -> int:
        found: int = struct.unpack("!I", self.tlvs[PP2_TYPE_SSL][1:5])[0]
        return found

    @property
    def ssl(self) -> dict[int, bytes]:
        return _tlvs(self.tlvs[PP2_TYPE_SSL][5:])


async def read(reader: asyncio.StreamReader) -> Header:
    """Reads one header; AssertionError when it is none."""
    head = await reader.readexactly(16)
    assert head[:12] == SIGNATURE, head
    assert head[12] >> 4 == 2, head
    body = await reader.readexactly(struct.unpack("!H", head[14:16])[0])
    header = Header(head[12] & 0xF)
    size = {0x11: 4, 0x21: 16}.get(head[13])
    if size is None:
        return header
    source, destination = body[:size], body[size : 2 * size]
    ports = struct.unpack("!HH", body[2 * size : 2 * size + 4])
    header.source = (str(ipaddress.ip_address(source)), ports[0])
    header.destination = (str(ipaddress.ip_address(destination)), ports[1])
    header.tlvs = _tlvs(body[2 * size + 4 :])
    return header


def _tlvs(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        kind, length = struct.unpack("!BH", data[:3])
        assert kind not in found, f"type {kind:#x} is there twice"
        assert len(data) >= 3 + length, "an entry runs over the end"
        found[kind] = data[3 : 3 + length]
        data = data[3 + length :]
    return found


def make(source: tuple[str, int], destination: tuple[str, int], *, command: int = 1, tail: bytes = b"") -> bytes:
    """A header for a TCP connection. `tail`: further TLVs."""
    ends = [ipaddress.ip_address(host) for host, _ in (source, destination)]
    family = 0x11 if ends[0].version == 4 else 0x21
    body = b"".join(end.packed for end in ends) + struct.pack("!HH", source[1], destination[1]) + tail
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body)) + body
