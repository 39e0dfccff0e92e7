"""PROXY headers of version 2 that are malformed, cut up, too large, or from those who have no say."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from support.client import Http1, client_hello, context
from support.gateway import Settings, configuration, health, listener, to_app, upstream
from support.proxy_protocol import SIGNATURE, make
from support.raw_tls import ALERT, Hello, exchange
from support.servers import mirror
from support.target import Site, Target, attacked

PACK = "PROXY v2"
SOURCE, DESTINATION = ("203.0.113.7", 40_000), ("198.51.100.1", 443)
SOURCE6, DESTINATION6 = ("2001:db8::7", 40_000), ("2001:db8::1", 443)
LARGEST = 4096
"""Bytes behind the first 16 that are taken at most."""


def settings(site: Site) -> Settings:
    pair = site.authority.issue("edge", ("localhost",))
    trusted = {"proxy_protocol": {"trusted": ["127.0.0.0/8"]}, "routes": [health(), to_app()]}
    listeners = [
        listener(pair, routes=[health(), to_app()]),
        listener(pair, name="behind", **trusted),
        listener(pair, name="hasty", timeouts={"handshake": "1s"}, **trusted),
        listener(pair, name="elsewhere", routes=[to_app()], proxy_protocol={"trusted": ["192.0.2.0/24"]}),
    ]
    return configuration(listeners, upstream("app", site.serve(mirror).endpoint))


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked(settings) as target:
        yield target


def header(first: int, family: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Version and command, family and protocol, and what the length says, which may not be true."""
    return SIGNATURE + struct.pack("!BBH", first, family, len(body) if length is None else length) + body


def entry(kind: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("!BH", kind, len(value) if length is None else length) + value


V4 = make(SOURCE, DESTINATION)[16:]
V6 = make(SOURCE6, DESTINATION6)[16:]
HELLO = Hello().wire()

REFUSED: dict[str, bytes] = {
    "none": b"",
    "version 1": b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n",
    "version 1, unknown": b"PROXY UNKNOWN\r\n",
    "version 1, without end": b"PROXY TCP4 " + b"1" * 10_000,
    "a signature cut short": SIGNATURE[:-1] + b"\x21\x11\0\x0c" + V4,
    "a signature in capitals": SIGNATURE.swapcase() + b"\x21\x11\0\x0c" + V4,
    "a signature with its last byte wrong": SIGNATURE[:-1] + b"\r\x21\x11\0\x0c" + V4,
    "a signature with its first byte wrong": b"\n" + SIGNATURE[1:] + b"\x21\x11\0\x0c" + V4,
    "a byte in front": b"\0" + header(0x21, 0x11, V4),
    **{f"version {number}": header(number << 4 | 1, 0x11, V4) for number in (0, 1, 3, 4, 15)},
    **{f"command {number}": header(0x20 | number, 0x11, V4) for number in (2, 3, 7, 15)},
    "no family": header(0x21, 0x00),
    "no family, and addresses": header(0x21, 0x00, V4),
    "no protocol": header(0x21, 0x10, V4),
    "UDP over IPv4": header(0x21, 0x12, V4),
    "UDP over IPv6": header(0x21, 0x22, V6),
    "Unix sockets": header(0x21, 0x31, b"/tmp/socket".ljust(216, b"\0")),
    "Unix datagrams": header(0x21, 0x32, bytes(216)),
    "an unknown family": header(0x21, 0x41, bytes(64)),
    "an unknown protocol": header(0x21, 0x13, V4),
    "all ones": header(0x21, 0xFF, bytes(64)),
    **{f"{size} bytes of IPv4": header(0x21, 0x11, V4[:size]) for size in (0, 1, 4, 8, 11)},
    **{f"{size} bytes of IPv6": header(0x21, 0x21, V6[:size]) for size in (0, 12, 16, 32, 35)},
    "IPv4 for IPv6": header(0x21, 0x21, V4),
    "one byte more than is taken": header(0x21, 0x11, V4.ljust(LARGEST + 1, b"\0")),
    "LOCAL, one byte more than is taken": header(0x20, 0x00, bytes(LARGEST + 1)),
    "64 KiB": header(0x21, 0x11, V4.ljust(0xFFFF, b"\0")),
    "64 KiB that do not come": header(0x21, 0x11, V4, 0xFFFF),
    "two of them": header(0x21, 0x11, V4) * 2,
    "LOCAL and another": header(0x20, 0x00) + header(0x21, 0x11, V4),
    "half of another": header(0x21, 0x11, V4) + SIGNATURE,
    "a length that is one less": header(0x21, 0x11, V4 + b"\0", 12),
    "a length that takes in the hello": header(0x21, 0x11, V4, 12 + 100),
}  # fmt: skip

TAKEN: dict[str, tuple[bytes, str]] = {
    "IPv4": (header(0x21, 0x11, V4), SOURCE[0]),
    "IPv6": (header(0x21, 0x21, V6), SOURCE6[0]),
    "LOCAL": (header(0x20, 0x00), "127.0.0.1"),
    "LOCAL with addresses": (header(0x20, 0x11, V4), "127.0.0.1"),
    "LOCAL with what nobody knows": (header(0x20, 0xFF, bytes(300)), "127.0.0.1"),
    "entries that nobody knows": (header(0x21, 0x11, V4 + entry(0xEE, b"x") * 100), SOURCE[0]),
    "an empty entry": (header(0x21, 0x11, V4 + entry(4, b"")), SOURCE[0]),
    "as large as is taken": (header(0x21, 0x11, V4.ljust(LARGEST, b"\0")), SOURCE[0]),
    "an address that is mapped": (header(0x21, 0x21, bytes(10) + b"\xff\xff\xcb\0\x71\x07" + V6[16:]), SOURCE[0]),
    # Entries say nothing that is used here: they are not read, and cannot lead astray.
    "an entry over the end": (header(0x21, 0x11, V4 + entry(1, b"h2", 100)), SOURCE[0]),
    "an entry's head cut short": (header(0x21, 0x11, V4 + b"\1\0"), SOURCE[0]),
    "a name of another": (header(0x21, 0x11, V4 + entry(2, b"evil.test")), SOURCE[0]),
    "a claim to be verified": (header(0x21, 0x11, V4 + entry(0x20, b"\7\0\0\0\0" + entry(0x22, b"root"))), SOURCE[0]),
}  # fmt: skip


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_a_malformed_header(target: Target, sent: bytes) -> None:
    """No handshake begins; what follows a header that was good may be no hello, and is told so."""
    with target.watched():
        reply = exchange(target.addresses["behind"], sent + HELLO, finish=True)
        assert reply.ended
        assert reply.hello is None
        assert {kind for kind, _ in reply.records} <= {ALERT}


def asked(target: Target, *pieces: bytes, name: str = "behind") -> str:
    """What the upstream is told of a request behind the pieces, of which the last may hold part of the handshake."""
    with socket.create_connection(target.addresses[name], timeout=10) as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            tcp.sendall(piece)
        with context(target.ca).wrap_socket(tcp, server_hostname="localhost") as stream:
            return Http1(stream).request("/").body.decode()


@pytest.mark.parametrize(("sent", "client"), TAKEN.values(), ids=TAKEN)
class TestAGoodHeader:
    def test_is_believed(self, target: Target, sent: bytes, client: str) -> None:
        with target.watched():
            told = asked(target, sent)
        assert f'["x-forwarded-for", "{client}"]' in told
        assert '["x-client-verified", "NONE"]' in told
        assert "evil" not in told

    def test_may_come_with_the_hello(self, target: Target, sent: bytes, client: str) -> None:
        with target.watched():
            assert exchange(target.addresses["behind"], sent + HELLO).hello is not None


@pytest.mark.parametrize("name", ["IPv4", "IPv6", "LOCAL", "as large as is taken"])
def test_a_header_that_is_dribbled(target: Target, name: str) -> None:
    sent, client = TAKEN[name]
    with target.watched():
        told = asked(target, *(sent[at : at + 1] for at in range(len(sent))))
    assert f'["x-forwarded-for", "{client}"]' in told


ENDS = (1, 11, 12, 13, 15, 16, 17, 27)


@pytest.mark.parametrize("end", ENDS)
def test_a_header_that_is_cut_short(target: Target, end: int) -> None:
    with target.watched():
        reply = exchange(target.addresses["behind"], header(0x21, 0x11, V4)[:end], finish=True)
        assert (reply.ended, reply.records) == (True, [])


def test_headers_that_never_end(target: Target) -> None:
    """`hasty` waits for a second, for header and handshake together."""
    with target.watched():
        open_ = [socket.create_connection(target.addresses["hasty"], timeout=10) for _ in ENDS]
        for tcp, end in zip(open_, ENDS, strict=True):
            tcp.sendall(header(0x21, 0x11, V4)[:end])
        for tcp in open_:
            with tcp:
                assert tcp.recv(1) == b""


def test_large_headers_that_never_end(target: Target) -> None:
    """Each connection holds what its header may be at most."""
    count = 500
    with target.watched(count * 2 * LARGEST + (4 << 20)):
        open_ = [socket.create_connection(target.addresses["hasty"], timeout=10) for _ in range(count)]
        for tcp in open_:
            tcp.sendall(header(0x21, 0x11, V4.ljust(LARGEST - 1, b"\0"), LARGEST))
        for tcp in open_:
            with tcp:
                assert tcp.recv(1) == b""


@pytest.mark.parametrize("sent", [TAKEN["IPv4"][0], TAKEN["IPv6"][0], TAKEN["LOCAL"][0], REFUSED["version 1"]])
@pytest.mark.parametrize("name", ["edge", "elsewhere"])
def test_who_is_not_trusted_has_no_say(target: Target, name: str, sent: bytes) -> None:
    """Where no header is expected it is a malformed hello."""
    with target.watched():
        reply = exchange(target.addresses[name], sent + client_hello(context(target.ca)), finish=True)
        assert reply.ended
        assert {kind for kind, _ in reply.records} <= {ALERT}
        assert '["x-forwarded-for", "127.0.0.1"]' in asked(target, name=name)
