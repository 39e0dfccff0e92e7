"""Whether `tls.policy` is what Mozilla calls modern and intermediate (Server Side TLS, guidelines 5.7).

Everything that a client may offer is offered alone, and what the server takes is the whole of what it ever would. The
guidelines say what may be there at most; suites with DHE, which they allow, do not exist here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from attack.tls_hellos import with_extension
from support import raw_tls as tls
from support.gateway import PROVIDERS, Settings, configuration, health, listener
from support.raw_tls import Hello, Refused, Reply, Shaped, exchange, numbers
from support.target import Site, Target, attacked
from support.tls13 import RETRY, X25519, vector

PACK = "tls profiles"

SSL3, TLS10, TLS11, TLS12, TLS13 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
VERSIONS = {"modern": {TLS13}, "intermediate": {TLS12, TLS13}, "default": {TLS12, TLS13}}
"""By policy, the third of which is none."""
POLICIES: dict[str, Settings] = {
    "modern": {"policy": "modern"},
    "intermediate": {"policy": "intermediate"},
    "default": {},
}

SUITES_13 = {0x1301, 0x1302, 0x1303}
SUITES_12 = {0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9}
GROUPS = {X25519, 23, 24, tls.HYBRID}
"""X25519, P-256, P-384; and X25519MLKEM768, which the guidelines that are being written have in front."""
SIGNATURES = {0x0403, 0x0503, 0x0401, 0x0501, 0x0601, 0x0804, 0x0805, 0x0806, 0x0807}
"""No SHA-1, MD5 or DSA."""

#: All that was ever registered, and what lies between; 0x00FF and 0x5600 only signal.
ALL_SUITES = [
    *range(0xFF),
    *range(0x1300, 0x1310),
    *range(0xC000, 0xC100),
    *range(0xCCA0, 0xCCB0),
    *range(0xD000, 0xD008),
]
ALL_GROUPS = [*range(1, 48), *range(0x100, 0x10A), *range(0x0200, 0x0205), *range(0x11E8, 0x11F0), 0x6399, 0x639A]
ALL_SIGNATURES = [number for high in range(1, 9) for number in range(high << 8, (high << 8) + 0x21)]


def settings(site: Site) -> Settings:
    pairs = [site.authority.issue("edge", ("localhost",)), site.authority.issue("rsa", ("localhost",), key="rsa")]
    listeners = [
        listener(pairs, name=f"{policy}-{provider}", routes=[health()], tls={**configured, "provider": provider})
        for policy, configured in POLICIES.items()
        for provider in PROVIDERS
    ]
    mqtt = {"alpn": "http/1.1", "tls": {"policy": "intermediate"}}
    listeners.append(listener(pairs, routes=[health()]))
    listeners.append(
        listener(pairs, name="mixed", protocols=["h2", mqtt], routes=[health()], tls={"policy": "modern"})
    )
    return configuration(listeners)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked(settings) as target:
        yield target


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Say = Callable[[Hello], Reply]


@pytest.fixture
def say(target: Target, policy: str, provider: str) -> Say:
    return lambda hello: exchange(target.addresses[f"{policy}-{provider}"], hello.wire())


def taken(say: Say, numbered: Iterable[int], hello: Callable[[int], Hello]) -> set[int]:
    """Those that the server answers, when each is the only one."""
    return {number for number in numbered if say(hello(number)).hello is not None}


OLDER = Hello().tls12()


def speaking(*versions: int) -> Hello:
    return Hello().put(tls.VERSIONS, vector(numbers(*versions), 1))


NEWEST = speaking(TLS13)


def test_versions(say: Say, policy: str) -> None:
    found = taken(say, (0x0002, SSL3, TLS10, TLS11, TLS12), lambda version: replace(OLDER, version=version))
    found |= taken(say, (SSL3, TLS10, TLS11, TLS12, TLS13, 0x7F1C, 0x0305), speaking)
    assert found == VERSIONS[policy]


def test_suites_of_tls_12(say: Say, policy: str) -> None:
    found = taken(say, ALL_SUITES, lambda suite: replace(OLDER, suites=numbers(suite)))
    assert found == (SUITES_12 if TLS12 in VERSIONS[policy] else set())


def test_suites_of_tls_13(say: Say) -> None:
    assert taken(say, ALL_SUITES, lambda suite: replace(NEWEST, suites=numbers(suite))) == SUITES_13


def test_groups(say: Say) -> None:
    """A server asks for the key of a group that it would take."""
    without_key = NEWEST.put(tls.KEY_SHARE, vector(b""))
    assert taken(say, ALL_GROUPS, lambda group: without_key.put(tls.GROUPS, vector(numbers(group)))) == GROUPS


def test_groups_of_tls_12(say: Say, policy: str) -> None:
    found = taken(say, ALL_GROUPS, lambda group: OLDER.put(tls.GROUPS, vector(numbers(group))))
    assert found == (GROUPS - {tls.HYBRID} if TLS12 in VERSIONS[policy] else set())


def test_signatures_of_tls_12(say: Say, policy: str) -> None:
    """With ECDSA and with RSA. None at all would be SHA-1 (RFC 5246)."""
    both = replace(OLDER, suites=numbers(0xC02B, 0xC02F))
    found = taken(say, ALL_SIGNATURES, lambda scheme: both.put(tls.SIGNATURES, vector(numbers(scheme))))
    assert found <= SIGNATURES
    assert bool(found) == (TLS12 in VERSIONS[policy])
    assert say(both.drop(tls.SIGNATURES)).hello is None


def test_signatures_of_tls_13(target: Target, policy: str, provider: str) -> None:
    """What cannot be signed is found out behind the ServerHello."""
    found = set()
    for scheme in ALL_SIGNATURES:
        shape = with_extension(tls.SIGNATURES, vector(numbers(scheme)))
        with contextlib.suppress(Refused), Shaped(target.addresses[f"{policy}-{provider}"], shape):
            found.add(scheme)
    assert {0x0403, 0x0804} <= found <= SIGNATURES
    # PKCS #1 is no part of TLS 1.3.
    assert not found & {0x0401, 0x0501, 0x0601}


def test_nothing_is_compressed(say: Say, policy: str) -> None:
    assert say(NEWEST).compression == 0
    if TLS12 in VERSIONS[policy]:
        assert say(replace(OLDER, compression=b"\1\0")).compression == 0


def test_nothing_is_answered_that_is_dangerous(say: Say, policy: str) -> None:
    """Heartbeats (Heartbleed), truncated HMACs, cached secrets of the client."""
    asked = ((15, b"\1"), (4, b""), (1, b"\1"), (7, b"\0\1\0"))
    for hello in (NEWEST, OLDER) if TLS12 in VERSIONS[policy] else (NEWEST,):
        answered = dict(say(hello.add(*asked)).extensions())
        assert not answered.keys() & dict(asked).keys()


def test_safe_renegotiation_and_secrets_are_said(say: Say, policy: str) -> None:
    """Without them, a client of TLS 1.2 takes a server to be open to attacks that are ten years old."""
    reply = say(OLDER.put(tls.RENEGOTIATION, vector(b"", 1)))
    if TLS12 in VERSIONS[policy]:
        assert reply.extension(tls.RENEGOTIATION) == b"\0"
        assert reply.extension(tls.EXTENDED_SECRET) == b""
    else:
        assert reply.alert == tls.PROTOCOL_VERSION


def test_keys_are_used_once(say: Say, policy: str) -> None:
    keys = [say(NEWEST).extension(tls.KEY_SHARE) for _ in range(10)]
    assert len(set(keys)) == 10
    if TLS12 in VERSIONS[policy]:
        randoms = {(say(OLDER).hello or b"")[2:34] for _ in range(10)}
        assert len(randoms) == 10


def test_the_newest_version_is_chosen(say: Say) -> None:
    assert say(speaking(TLS12, TLS13)).version == TLS13


def test_a_protocol_has_a_policy_of_its_own(target: Target) -> None:
    """`mixed` is modern, but for http/1.1."""
    address = target.addresses["mixed"]
    assert exchange(address, OLDER.wire()).version == TLS12
    assert exchange(address, OLDER.put(tls.ALPN, tls.protocols(b"h2")).wire()).alert == tls.PROTOCOL_VERSION
    assert exchange(address, NEWEST.put(tls.ALPN, tls.protocols(b"h2")).wire()).version == TLS13


def test_a_retry_is_one(say: Say) -> None:
    """What `test_groups` sees is the server's question, and not a handshake that goes on without a key."""
    reply = say(NEWEST.put(tls.KEY_SHARE, vector(b"")))
    assert reply.hello is not None
    assert reply.hello[2:34] == RETRY
