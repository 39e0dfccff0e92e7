"""TLS behind the first ClientHello: the second one, the rest of the handshake, and what comes after it.

Renegotiation, key updates, messages in the clear or out of turn, and records that say nothing, alone and in floods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from attack.tls_hellos import Shape, with_extension, with_fields
from support import raw_tls as tls
from support.gateway import PROVIDERS, Settings, configuration, health, listener
from support.raw_tls import (
    ALERT,
    BAD_RECORD_MAC,
    CHANGE,
    DECODE_ERROR,
    DECRYPT_ERROR,
    FATAL,
    HANDSHAKE_FAILURE,
    HEARTBEAT,
    ILLEGAL_PARAMETER,
    KEY_UPDATE,
    NO_RENEGOTIATION,
    RECORD_OVERFLOW,
    REQUEST,
    UNEXPECTED_MESSAGE,
    USER_CANCELED,
    WARNING,
    Hello,
    Refused,
    Shaped,
    alert,
    message,
    numbers,
    record,
)
from support.target import Site, Target, attacked
from support.tls12 import Tls12
from support.tls13 import APPLICATION, CLIENT_HELLO, FINISHED, HANDSHAKE, vector

PACK = "tls abuse"


def settings(site: Site) -> Settings:
    pair = site.authority.issue("edge", ("localhost",))
    other = site.authority.issue("other", ("other.test",))
    listeners = [
        listener(pair, name="edge" if name == PROVIDERS[0] else name, routes=[health()], tls={"provider": name})
        for name in PROVIDERS
    ]
    named = listener([pair, other], name="strict", routes=[health()], tls={"unknown_name": "refuse"})
    return configuration([*listeners, named])


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked(settings) as target:
        yield target


@pytest.fixture(params=PROVIDERS)
def name(request: pytest.FixtureRequest) -> str:
    """A listener of each provider, which has the records and the keys in its hands."""
    return "edge" if request.param == PROVIDERS[0] else str(request.param)


# --- a second ClientHello


def same(hello: Hello) -> Hello:
    return hello


CHANGED: dict[str, Shape] = {
    "without a key": with_extension(tls.KEY_SHARE, vector(b"")),
    "with a key for another group": with_extension(tls.KEY_SHARE, vector(tls.share(tls.P256, b"\4" + bytes(64)))),
    "with another server name": with_extension(tls.SERVER_NAME, tls.server_names(b"other.test")),
    "without the server name": lambda hello: hello.drop(tls.SERVER_NAME),
    "with an unknown server name": with_extension(tls.SERVER_NAME, tls.server_names(b"nobody.test")),
    "without TLS 1.3": lambda hello: hello.drop(tls.VERSIONS),
    "without its suite": with_fields(suites=numbers(0x1302, 0x1303)),
    "with early data": lambda hello: hello.add((tls.EARLY_DATA, b"")),
    "with another protocol": with_extension(tls.ALPN, tls.protocols(b"h2")),
    "without signatures": lambda hello: hello.drop(tls.SIGNATURES),
    "cut short": lambda hello: replace(hello, extensions=tls.blocks(hello.listed)[:-1]),
    "of TLS 1.2": lambda hello: hello.tls12(),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_second_hello_that_is_not_the_first(target: Target, changed: Shape) -> None:
    """Certificate and protocol have been chosen by the first."""
    with target.watched(), pytest.raises(Refused):
        Shaped(target.addresses["strict"], same, reshape=changed).close()


def test_a_second_hello_that_takes_back_its_protocols(target: Target) -> None:
    address, without = target.addresses["edge"], lambda hello: hello.drop(tls.ALPN)
    with target.watched(), Shaped(address, same, reshape=without) as client:
        client.send(REQUEST)
        found = client.outcome()
        assert (found.ended, found.answered) == (True, False)


def test_a_second_hello_that_is_the_first(target: Target, name: str) -> None:
    with target.watched(), Shaped(target.addresses[name], same, reshape=same) as client:
        client.send(REQUEST)
        assert client.outcome().answered


# --- before the client's Finished

BETWEEN = {
    "a hello": record(HANDSHAKE, Hello().message()),
    "a Finished in the clear": record(HANDSHAKE, message(FINISHED, bytes(32))),
    "data in the clear": record(APPLICATION, REQUEST),
    "an alert in the clear": alert(HANDSHAKE_FAILURE),
    "a key update in the clear": record(HANDSHAKE, message(KEY_UPDATE, b"\0")),
    "a heartbeat": record(HEARTBEAT, b"\1\x40\0" + bytes(16)),
    "1,000 ChangeCipherSpecs": record(CHANGE, b"\1") * 1000,
    "a ChangeCipherSpec of two bytes": record(CHANGE, b"\1\1"),
    "a ChangeCipherSpec that says another thing": record(CHANGE, b"\2"),
    "an empty ChangeCipherSpec": record(CHANGE, b""),
    "a record that nobody has sealed": record(APPLICATION, bytes(100), 0x0303),
    "a record that is too large": record(APPLICATION, bytes(16_384 + 257), 0x0303),
    "half a record": record(APPLICATION, bytes(100), 0x0303)[:50],
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_before_the_end_of_the_handshake(target: Target, name: str, between: bytes) -> None:
    with target.watched(), Shaped(target.addresses[name], between=between) as client:
        client.send(REQUEST)
        found = client.outcome()
        assert found.ended
        assert not found.answered


def test_one_change_cipher_spec_is_nothing(target: Target, name: str) -> None:
    with target.watched(), Shaped(target.addresses[name], between=record(CHANGE, b"\1")) as client:
        client.send(REQUEST)
        assert client.outcome().answered


# --- after the handshake of TLS 1.3

Say = Callable[[Shaped], None]


def in_the_clear(data: bytes) -> Say:
    return lambda client: client.raw(data)


def sealed(kind: int, data: bytes, padding: int = 0) -> Say:
    return lambda client: client.say(kind, data, padding)


def handshake(kind: int, body: bytes) -> Say:
    return sealed(HANDSHAKE, message(kind, body))


def often(kind: int, data: bytes, count: int) -> Callable[[Shaped | Tls12], None]:
    def say(client: Shaped | Tls12) -> None:
        for _ in range(count):
            client.say(kind, data)

    return say


def altered(client: Shaped) -> None:
    wire = bytearray(client.sealed(APPLICATION, REQUEST))
    wire[-1] ^= 1
    client.raw(bytes(wire))


def replayed(client: Shaped) -> None:
    client.raw(client.sealed(APPLICATION, b"") * 2)


def reordered(client: Shaped) -> None:
    first, second = (client.sealed(APPLICATION, b"x") for _ in range(2))
    client.raw(second + first)


def updated(client: Shaped, count: int, *, answer: bool) -> None:
    for _ in range(count):
        client.update_key(answer=answer)


def interrupted(client: Shaped) -> None:
    client.say(HANDSHAKE, message(KEY_UPDATE, b"\0")[:2])
    client.say(APPLICATION, REQUEST)


MALFORMED = (DECODE_ERROR, ILLEGAL_PARAMETER, UNEXPECTED_MESSAGE)
FORGED = (BAD_RECORD_MAC, UNEXPECTED_MESSAGE)
#: rustls ends what it thinks an attack without a word.
SILENT = (None, UNEXPECTED_MESSAGE)

ENDED_13: dict[str, tuple[Say, tuple[int | None, ...]]] = {
    "a hello": (handshake(CLIENT_HELLO, Hello().body()), (UNEXPECTED_MESSAGE,)),
    "a Finished": (handshake(FINISHED, bytes(32)), (UNEXPECTED_MESSAGE,)),
    "a certificate": (handshake(11, b"\0\0\0\0"), (UNEXPECTED_MESSAGE,)),
    "a request for a certificate": (handshake(13, bytes(10)), MALFORMED),
    "the end of early data": (handshake(5, b""), (UNEXPECTED_MESSAGE,)),
    "a ticket": (handshake(4, bytes(20)), MALFORMED),
    "an unknown message": (handshake(99, bytes(20)), (UNEXPECTED_MESSAGE,)),
    "a key update of an unknown kind": (handshake(KEY_UPDATE, b"\2"), MALFORMED),
    "an empty key update": (handshake(KEY_UPDATE, b""), MALFORMED),
    "a key update of two bytes": (handshake(KEY_UPDATE, b"\0\0"), MALFORMED),
    "two key updates at once": (sealed(HANDSHAKE, message(KEY_UPDATE, b"\0") * 2), (UNEXPECTED_MESSAGE,)),
    "a key update that is interrupted": (interrupted, SILENT),
    "a message of 16 MiB": (sealed(HANDSHAKE, b"\x18\xff\xff\xff" + bytes(100)), (None, *MALFORMED)),
    "a heartbeat": (sealed(HEARTBEAT, b"\1\x40\0" + bytes(16)), MALFORMED),
    "an encrypted ChangeCipherSpec": (sealed(CHANGE, b"\1"), (UNEXPECTED_MESSAGE,)),
    "an unknown type": (sealed(99, b"x"), MALFORMED),
    "no type at all": (sealed(0, bytes(100)), SILENT),
    "nothing at all": (sealed(0, b""), SILENT),
    "an alert of one byte": (sealed(ALERT, b"\2"), (DECODE_ERROR,)),
    "an alert of three bytes": (sealed(ALERT, b"\2\0\0"), (DECODE_ERROR,)),
    "an empty alert": (sealed(ALERT, b""), MALFORMED),
    "more than a record may hold": (sealed(APPLICATION, bytes(16_385)), (RECORD_OVERFLOW,)),
    "far more than a record may hold": (sealed(APPLICATION, bytes(40_000)), (RECORD_OVERFLOW, DECODE_ERROR)),
    "a record that was altered": (altered, (BAD_RECORD_MAC,)),
    "a record that was replayed": (replayed, (BAD_RECORD_MAC,)),
    "records in another order": (reordered, (BAD_RECORD_MAC,)),
    "a record cut to nothing": (in_the_clear(record(APPLICATION, b"", 0x0303)), (*FORGED, DECODE_ERROR)),
    "a record cut to its tag": (in_the_clear(record(APPLICATION, bytes(16), 0x0303)), (BAD_RECORD_MAC,)),
    "data in the clear": (in_the_clear(record(APPLICATION, REQUEST, 0x0303)), (BAD_RECORD_MAC,)),
    "no TLS": (in_the_clear(REQUEST), (*FORGED, DECODE_ERROR)),
    "a hello in the clear": (in_the_clear(record(HANDSHAKE, Hello().message())), FORGED),
    "a key update in the clear": (in_the_clear(record(HANDSHAKE, message(KEY_UPDATE, b"\0"))), FORGED),
    "an alert in the clear": (in_the_clear(alert(USER_CANCELED, WARNING)), FORGED),
    "a ChangeCipherSpec": (in_the_clear(record(CHANGE, b"\1")), (UNEXPECTED_MESSAGE,)),
    "10,000 ChangeCipherSpecs": (in_the_clear(record(CHANGE, b"\1") * 10_000), SILENT),
    "1,000 key updates": (lambda client: updated(client, 1000, answer=True), SILENT),
    "1,000 key updates that want no answer": (lambda client: updated(client, 1000, answer=False), SILENT),
    "1,000 warnings": (often(ALERT, bytes([WARNING, USER_CANCELED]), 1000), SILENT),
    "1,000 empty records": (often(APPLICATION, b"", 1000), SILENT),
    "1,000 empty handshake records": (often(HANDSHAKE, b"", 1000), SILENT),
}


@pytest.mark.parametrize(("say", "alerts"), ENDED_13.values(), ids=ENDED_13)
def test_what_ends_a_connection_of_tls_13(target: Target, name: str, say: Say, alerts: tuple[int | None, ...]) -> None:
    with target.watched(), Shaped(target.addresses[name]) as client:
        say(client)
        found = client.outcome()
        assert found.ended
        assert not found.answered
        assert found.alert in alerts


def in_pieces(client: Shaped) -> None:
    update = message(KEY_UPDATE, b"\0")
    for at in range(len(update) - 1):
        client.say(HANDSHAKE, update[at : at + 1])
    client.update_key(answer=False, behind=len(update) - 1)


def byte_by_byte(client: Shaped) -> None:
    """A request that is answered like the next one."""
    for at in range(len(REQUEST)):
        client.say(APPLICATION, REQUEST[at : at + 1])


SERVED_13: dict[str, Say] = {
    "a key update": lambda client: updated(client, 1, answer=True),
    "a few key updates": lambda client: updated(client, 20, answer=False),
    "a key update in pieces": in_pieces,
    "a request in records of one byte": byte_by_byte,
    "a few empty records": often(APPLICATION, b"", 20),
    "padding": sealed(APPLICATION, b"", 16_000),
}


@pytest.mark.parametrize("say", SERVED_13.values(), ids=SERVED_13)
def test_what_is_odd_and_served(target: Target, name: str, say: Say) -> None:
    with target.watched(), Shaped(target.addresses[name]) as client:
        say(client)
        client.send(REQUEST)
        assert client.outcome().answered


@pytest.mark.xfail(strict=True, reason="rustls takes a few of them for nothing")
def test_an_empty_handshake_record(target: Target) -> None:
    """RFC 8446, section 5.4: the receiver must end the connection."""
    with target.watched(), Shaped(target.addresses["edge"]) as client:
        client.say(HANDSHAKE, b"")
        client.send(REQUEST)
        found = client.outcome()
        assert (found.answered, found.alert) == (False, UNEXPECTED_MESSAGE)


def test_fatal_alerts_are_the_end(target: Target, name: str) -> None:
    with target.watched(), Shaped(target.addresses[name]) as client:
        client.say(ALERT, bytes([FATAL, HANDSHAKE_FAILURE]))
        client.send(REQUEST)
        found = client.outcome()
        assert (found.ended, found.answered, found.alert) == (True, False, None)


def test_nothing_is_read_behind_the_end(target: Target, name: str) -> None:
    with target.watched(), Shaped(target.addresses[name]) as client:
        client.say(ALERT, bytes([WARNING, tls.CLOSE_NOTIFY]))
        client.send(REQUEST)
        assert not client.outcome().answered


# --- TLS 1.2


def open_12(target: Target, name: str, shape: Shape = same) -> Tls12:
    return Tls12.open(target.addresses[name], shape)


def renegotiated(shape: Shape) -> Callable[[Tls12], None]:
    return lambda client: client.say(HANDSHAKE, shape(client.hello()).message())


def proven(client: Tls12) -> None:
    """As RFC 5746 has it, which proves that it is the same client."""
    client.say(HANDSHAKE, client.hello().put(tls.RENEGOTIATION, vector(client.proof, 1)).message())


RENEGOTIATIONS = {
    "as before": renegotiated(same),
    "with another client's proof": renegotiated(with_extension(tls.RENEGOTIATION, vector(bytes(12), 1))),
    "with its proof": proven,
    "with a suite for a sign": renegotiated(with_fields(suites=numbers(0x00FF, 0xC02B))),
}


@pytest.mark.parametrize("say", RENEGOTIATIONS.values(), ids=RENEGOTIATIONS)
def test_nobody_renegotiates(target: Target, name: str, say: Callable[[Tls12], None]) -> None:
    """It is refused; the connection may go on without, or end."""
    with target.watched(), open_12(target, name, with_extension(tls.RENEGOTIATION, vector(b"", 1))) as client:
        say(client)
        client.say(APPLICATION, REQUEST)
        found = client.outcome()
        assert not found.handshake, "another handshake"
        assert (found.answered and found.alert == NO_RENEGOTIATION) or found.ended


def test_who_would_renegotiate_is_told_at_once(target: Target, name: str) -> None:
    with target.watched(), open_12(target, name) as client:
        client.say(HANDSHAKE, client.hello().message())
        found = client.outcome(2)
        assert found.alert == NO_RENEGOTIATION or found.ended


def test_a_flood_of_renegotiations(target: Target, name: str) -> None:
    with target.watched(), open_12(target, name) as client:
        for _ in range(1000):
            client.say(HANDSHAKE, client.hello().message())
        found = client.outcome()
        assert found.ended
        assert not found.handshake


ENDED_12: dict[str, Callable[[Tls12], None]] = {
    "a Finished": lambda client: client.say(HANDSHAKE, message(FINISHED, bytes(12))),
    "a request for a hello": lambda client: client.say(HANDSHAKE, message(tls.HELLO_REQUEST, b"")),
    "a key": lambda client: client.say(HANDSHAKE, message(tls.CLIENT_KEY_EXCHANGE, vector(bytes(32), 1))),
    "a certificate": lambda client: client.say(HANDSHAKE, message(11, bytes(3))),
    "a key update": lambda client: client.say(HANDSHAKE, message(KEY_UPDATE, b"\0")),
    "a ChangeCipherSpec": lambda client: client.say(CHANGE, b"\1"),
    "a ChangeCipherSpec in the clear": lambda client: client.raw(record(CHANGE, b"\1", 0x0303)),
    "a heartbeat": lambda client: client.say(HEARTBEAT, b"\1\x40\0" + bytes(16)),
    "data in the clear": lambda client: client.raw(record(APPLICATION, REQUEST, 0x0303)),
    "a hello in the clear": lambda client: client.raw(record(HANDSHAKE, client.hello().message(), 0x0303)),
    "an alert in the clear": lambda client: client.raw(alert(NO_RENEGOTIATION, WARNING)),
    "more than a record may hold": lambda client: client.say(APPLICATION, bytes(16_385)),
    "a record without a tag": lambda client: client.raw(record(APPLICATION, bytes(8), 0x0303)),
    "1,000 empty records": often(APPLICATION, b"", 1000),
    "1,000 empty handshake records": often(HANDSHAKE, b"", 1000),
    "1,000 warnings": often(ALERT, bytes([WARNING, NO_RENEGOTIATION]), 1000),
    "an alert of one byte": lambda client: client.say(ALERT, b"\2"),
    "no TLS": lambda client: client.raw(REQUEST),
}  # fmt: skip


@pytest.mark.parametrize("say", ENDED_12.values(), ids=ENDED_12)
def test_what_ends_a_connection_of_tls_12(target: Target, name: str, say: Callable[[Tls12], None]) -> None:
    with target.watched(), open_12(target, name) as client:
        say(client)
        found = client.outcome()
        assert found.ended
        assert not found.answered


def test_a_few_empty_records_of_tls_12(target: Target, name: str) -> None:
    with target.watched(), open_12(target, name) as client:
        for _ in range(20):
            client.say(APPLICATION, b"")
        client.say(APPLICATION, REQUEST)
        assert client.outcome().answered


Steps = Callable[[Tls12], None]


def early_change(client: Tls12) -> None:
    """The keys are not there yet; CVE-2014-0224 used those of an empty secret."""
    client.raw(record(CHANGE, b"\1", 0x0303))


def no_change(client: Tls12) -> None:
    client.exchange()
    client.finish()


def wrong_proof(client: Tls12) -> None:
    client.exchange()
    client.change()
    client.finish(bytes(12))


def short_proof(client: Tls12) -> None:
    client.exchange()
    client.change()
    client.finish(b"")


def two_keys(client: Tls12) -> None:
    client.exchange()
    client.exchange()


def data_first(client: Tls12) -> None:
    client.exchange()
    client.say(APPLICATION, REQUEST)


def data_for_finished(client: Tls12) -> None:
    client.exchange()
    client.change()
    client.say(APPLICATION, REQUEST)


def two_changes(client: Tls12) -> None:
    client.exchange()
    client.raw(record(CHANGE, b"\1", 0x0303))
    client.change()
    client.finish()


HANDSHAKES_12: dict[str, Steps] = {
    "ChangeCipherSpec before the key": early_change,
    "no ChangeCipherSpec": no_change,
    "two ChangeCipherSpecs": two_changes,
    "a wrong Finished": wrong_proof,
    "an empty Finished": short_proof,
    "two keys": two_keys,
    "data before ChangeCipherSpec": data_first,
    "data in place of Finished": data_for_finished,
    "an empty key": lambda client: client.exchange(b""),
    "a key of 31 bytes": lambda client: client.exchange(bytes(31)),
    "a key of low order": lambda client: client.exchange(bytes(32)),
    "a key of another group": lambda client: client.exchange(b"\4" + bytes(64)),
    "another hello": lambda client: client.say(HANDSHAKE, client.hello().message()),
    "a certificate that nobody has asked for": lambda client: client.say(HANDSHAKE, message(11, bytes(3))),
    "1,000 warnings": lambda client: client.raw(alert(NO_RENEGOTIATION, WARNING) * 1000),
    "nothing but ChangeCipherSpecs": lambda client: client.raw(record(CHANGE, b"\1", 0x0303) * 1000),
}


@pytest.mark.parametrize("steps", HANDSHAKES_12.values(), ids=HANDSHAKES_12)
def test_handshakes_of_tls_12_that_are_wrong(target: Target, name: str, steps: Steps) -> None:
    with target.watched(), Tls12(target.addresses[name]) as client:
        client.begin()
        try:
            steps(client)
        except ConnectionError:
            return
        found = client.outcome()
        assert found.ended
        assert not found.answered
        assert found.alert in (*MALFORMED, *SILENT, BAD_RECORD_MAC, DECRYPT_ERROR, HANDSHAKE_FAILURE)


def test_a_server_that_could_do_better_says_so(target: Target, name: str) -> None:
    """RFC 8446, section 4.1.3: a client of TLS 1.3 that was brought down to 1.2 sees it in the server's random."""
    reply = tls.exchange(target.addresses[name], Hello().tls12().wire())
    assert reply.hello is not None
    assert reply.hello[26:34] == b"DOWNGRD\1"
    newest = tls.exchange(target.addresses[name], Hello().wire())
    assert newest.hello is not None
    assert newest.hello[26:33] != b"DOWNGRD"
