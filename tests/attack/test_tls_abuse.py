"""TLS as an attacker speaks it: hellos, records and handshakes that are malformed, cut up, changed or without end.

Whatever comes, the connection ends soon, with an alert where there is one to give, and costs little memory; what is
legal is served, however odd it looks. A client as it should be is served right behind each case.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from attack.tls_hellos import ROWS, SERVED_12, SERVED_13, Row, Shape
from support.gateway import Settings, configuration, health, listener
from support.raw_tls import (
    ALERT,
    CHANGE,
    GROUPS,
    HYBRID,
    KEY_SHARE,
    PADDING,
    REQUEST,
    USER_CANCELED,
    WARNING,
    Hello,
    Refused,
    Shaped,
    alert,
    exchange,
    message,
    numbers,
    read,
    record,
    records,
    share,
)
from support.target import Site, Target, attacked
from support.tls12 import Tls12
from support.tls13 import APPLICATION, FINISHED, HANDSHAKE, X25519, vector

PACK = "tls abuse"


def settings(site: Site) -> Settings:
    pairs = [site.authority.issue("edge", ("localhost",)), site.authority.issue("rsa", ("localhost",), key="rsa")]
    routes = [health()]
    return configuration(
        [
            listener(pairs, routes=routes),
            listener(pairs, name="strict", routes=routes, tls={"unknown_name": "refuse"}),
            listener(pairs, name="classic", routes=routes, tls={"post_quantum": "off"}),
            listener(pairs, name="hasty", routes=routes, timeouts={"handshake": "1s"}),
        ]
    )


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked(settings) as target:
        yield target


def hellos() -> Iterator[object]:
    for row in ROWS:
        marks = [pytest.mark.xfail(strict=True, reason=row.known)] if row.known else []
        yield pytest.param(row, id=row.name, marks=marks)


@pytest.mark.parametrize("row", list(hellos()))
def test_a_hello(target: Target, row: Row) -> None:
    address = target.addresses[row.listener]
    with target.watched():
        if row.must == SERVED_13:
            with Shaped(address, row.shape) as client:
                client.send(REQUEST)
                assert client.outcome().answered
        elif row.must == SERVED_12:
            with Tls12.open(address, row.shape) as older:
                older.say(APPLICATION, REQUEST)
                assert older.outcome().answered
        else:
            with pytest.raises(Refused) as refused:
                Shaped(address, row.shape).close()
            assert refused.value.alert in row.must


def padded(hello: Hello) -> Hello:
    """As large as one with a key for X25519MLKEM768, which is put in front."""
    keys = share(HYBRID, bytes(1216)) + hello.content(KEY_SHARE)[2:]
    return hello.put(KEY_SHARE, vector(keys)).put(GROUPS, vector(numbers(HYBRID, X25519)))


def large(hello: Hello) -> Hello:
    return hello.add((PADDING, bytes(20_000)))


class TestRecords:
    @pytest.mark.parametrize("shape", [lambda hello: hello, padded, large], ids=["small", "hybrid", "large"])
    @pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 6, 16, 37, 38, 39, 255, 256, 1199, 1200, 4096, 16_384])
    def test_a_hello_in_many(self, target: Target, piece: int, shape: Shape) -> None:
        """`classic` does without the hybrid group, so it is X25519 that is chosen."""
        # In records of three bytes and less, these are more bytes of heads than a hello may have in all.
        refused = shape is large and piece <= 2
        with target.watched():
            if refused:
                with pytest.raises(Refused):
                    Shaped(target.addresses["classic"], shape, piece=piece).close()
                return
            with Shaped(target.addresses["classic"], shape, piece=piece) as client:
                client.send(REQUEST)
                assert client.outcome().answered

    def test_the_hybrid_group_is_chosen(self, target: Target) -> None:
        """Zeros are a key as good as any."""
        with target.watched():
            hello = padded(Hello())
            keys = share(HYBRID, bytes(1184) + b"\x09" + bytes(31))
            reply = exchange(target.addresses["edge"], hello.put(KEY_SHARE, vector(keys)).wire(100))
            assert reply.hello is not None
            chosen = reply.extension(KEY_SHARE)
            assert chosen is not None
            assert chosen[:4] == numbers(HYBRID, 1088 + 32)

    @pytest.mark.parametrize("off", range(8))
    def test_a_hello_in_two_segments(self, target: Target, off: int) -> None:
        """Between any two bytes of it."""
        wire = Hello().wire()
        with target.watched():
            for end in range(1 + off, len(wire), 8):
                reply = exchange(target.addresses["edge"], wire[:end], wire[end:], pause=0.001)
                assert reply.hello is not None, end

    @pytest.mark.parametrize("shape", [lambda hello: hello, padded], ids=["small", "hybrid"])
    def test_a_hello_byte_by_byte(self, target: Target, shape: Shape) -> None:
        wire = shape(Hello()).wire()
        pieces = [wire[at : at + 1] for at in range(len(wire))]
        with target.watched():
            assert exchange(target.addresses["classic"], *pieces).hello is not None

    @pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x03FF])
    def test_their_version_does_not_matter(self, target: Target, version: int) -> None:
        with target.watched():
            assert exchange(target.addresses["edge"], record(HANDSHAKE, Hello().message(), version)).hello is not None

    def test_what_middleboxes_want(self, target: Target) -> None:
        """A ChangeCipherSpec that says nothing, behind the first flight (RFC 8446, appendix D.4)."""
        with target.watched(), Shaped(target.addresses["edge"], behind=record(CHANGE, b"\1")) as client:
            client.send(REQUEST)
            assert client.outcome().answered


HELLO = Hello().message()
WRONG: dict[str, bytes] = {
    **{f"type {kind}": record(kind, HELLO) for kind in (0, 1, 20, 21, 23, 24, 25, 26, 127, 128, 255)},
    **{f"version {number:#06x}": record(HANDSHAKE, HELLO, number) for number in (0, 0x0002, 0x0200, 0x0400, 0xFEFD)},
    "an empty one": record(HANDSHAKE, b""),
    "an empty one in front": record(HANDSHAKE, b"") + record(HANDSHAKE, HELLO),
    "an empty one between": record(HANDSHAKE, HELLO[:9]) + record(HANDSHAKE, b"") + record(HANDSHAKE, HELLO[9:]),
    "1,000 empty ones": record(HANDSHAKE, b"") * 1000,
    "an alert between": record(HANDSHAKE, HELLO[:9]) + alert(0, WARNING) + record(HANDSHAKE, HELLO[9:]),
    "a ChangeCipherSpec in front": record(CHANGE, b"\1") + record(HANDSHAKE, HELLO),
    "a ChangeCipherSpec between": record(HANDSHAKE, HELLO[:9]) + record(CHANGE, b"\1") + record(HANDSHAKE, HELLO[9:]),
    "application data in front": record(APPLICATION, b"x" * 100) + record(HANDSHAKE, HELLO),
    "a warning in front": alert(USER_CANCELED, WARNING) + record(HANDSHAKE, HELLO),
    "larger than any": struct.pack("!BHH", HANDSHAKE, 0x0301, 0xFFFF) + HELLO,
    "larger than encrypted ones": records(large(Hello()).message()[:18_433], 18_433),
    "a hello of 16 MiB": record(HANDSHAKE, b"\1\xff\xff\xff" + bytes(10_000)),
    "a hello of 64 KiB": record(HANDSHAKE, b"\1\1\0\0" + bytes(10_000)),
    "a hello of no bytes": record(HANDSHAKE, b"\1\0\0\0"),
    "a hello of one byte": record(HANDSHAKE, b"\1\0\0\1\3"),
    "a hello that is longer than it says": record(HANDSHAKE, message(1, Hello().body()[:-1]) + Hello().body()[-1:]),
    "a hello in another one": record(HANDSHAKE, message(1, HELLO)),
    "two hellos in one": record(HANDSHAKE, HELLO * 2),
    "a hello and a Finished in one": record(HANDSHAKE, HELLO + message(FINISHED, bytes(32))),
    **{f"message {kind}": record(HANDSHAKE, message(kind, Hello().body())) for kind in (0, 2, 11, 20, 24)},
    "SSLv2's hello": b"\x80\x2e\1\3\1\0\x15\0\0\0\x10\1\0\x80\3\0\x80\7\0\xc0\0\0\x2f\0\0\x35" + bytes(20),
    "a fatal alert": alert(40),
    "1,000 alerts": alert(0, WARNING) * 1000,
    "1,000 ChangeCipherSpecs": record(CHANGE, b"\1") * 1000,
    "zeros": bytes(100_000),
    "0xff": b"\xff" * 100_000,
    "a GET": REQUEST,
    "a GET that is dribbled": REQUEST[:3],
    "a POST": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    "a CONNECT": b"CONNECT localhost:443 HTTP/1.1\r\n\r\n",
    "h2 in the clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "SMTP": b"EHLO localhost\r\nSTARTTLS\r\n",
    "MQTT": b"\x10\x0c\0\4MQTT\4\2\0\x3c\0\0",
    "RDP": b"\3\0\0\x13\x0e\xe0\0\0\0\0\0\1\0\x08\0\3\0\0\0",
    "a DTLS hello": b"\x16\xfe\xff" + bytes(8) + vector(HELLO),
    "PROXY of version 1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + record(HANDSHAKE, HELLO),
    "a line without end": b"A" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("wire", WRONG.values(), ids=WRONG)
def test_what_is_no_hello(target: Target, wire: bytes) -> None:
    """The end follows at once, behind an alert in the clear at most."""
    with target.watched():
        reply = exchange(target.addresses["edge"], wire, finish=True)
        assert reply.ended
        assert reply.hello is None
        assert {kind for kind, _ in reply.records} <= {ALERT}


ENDS = (1, 4, 5, 6, 9, 43, 44, 100, -1)
"""Within a record's head, a message's, each of the fields, and before the last byte."""


@pytest.mark.parametrize("end", ENDS)
def test_a_hello_that_is_cut_short(target: Target, end: int) -> None:
    with target.watched():
        reply = exchange(target.addresses["edge"], Hello().wire()[:end], finish=True)
        assert reply.ended
        assert reply.hello is None


def test_hellos_that_never_end(target: Target) -> None:
    """`hasty` waits for a second."""
    with target.watched(), contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(socket.create_connection(target.addresses["hasty"], timeout=10)) for _ in ENDS]
        for tcp, end in zip(open_, ENDS, strict=True):
            tcp.sendall(Hello().wire()[:end])
        for tcp in open_:
            reply = read(tcp)
            assert reply.ended
            assert reply.hello is None


@pytest.mark.parametrize("seed", range(10))
def test_hellos_with_errors(target: Target, seed: int) -> None:
    """Bits that are flipped, bytes that are gone or there twice, in whatever place."""
    chance = random.Random(seed)  # noqa: S311
    with target.watched():
        for _ in range(40):
            wire = bytearray(Hello().tls12().wire() if chance.random() < 0.3 else padded(Hello()).wire())
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(wire))
                match chance.randrange(3):
                    case 0:
                        wire[at] ^= 1 << chance.randrange(8)
                    case 1:
                        del wire[at : at + chance.randint(1, 20)]
                    case 2:
                        wire[at:at] = wire[at : at + chance.randint(1, 20)]
            reply = exchange(target.addresses["classic"], bytes(wire), finish=True)
            assert reply.ended or reply.hello is not None


def test_names_are_unique() -> None:
    """Two cases under one name would be one that nobody can ask for."""
    assert not [name for name, count in Counter(row.name for row in ROWS).items() if count > 1]
