"""Which group the keys are exchanged in: what the client has sent a key for, and when X25519MLKEM768 is asked for."""

from __future__ import annotations

import json

import pytest

from support.build import go_client
from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener
from support.net import eventually
from support.openssl import s_client
from support.process import output
from support.tls13 import Tls13

from .conftest import Start

SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "prefer": {"post_quantum": "prefer"},
    "off": {"post_quantum": "off"},
    "listed": {"groups": ["X25519MLKEM768", "X25519"], "post_quantum": "allow"},
}
OPENSSL_NAMES = {"X25519": "X25519", "P-256": "ECDH, prime256v1", "P-384": "ECDH, secp384r1"}


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair) -> Gateway:
    listeners = [listener([edge], name=name, routes=[health()], tls=tls) for name, tls in SETTINGS.items()]
    return shared_gateway(configuration(listeners))


@pytest.mark.needs("go")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_client_that_sends_its_key_for_the_hybrid(gateway: Gateway, authority: Authority, name: str) -> None:
    """Go does so by itself, and sends one for X25519 as well."""
    host, port = gateway.address(name)
    report = json.loads(
        output([go_client(), "-ca", authority.certificate, "-connect", f"{host}:{port}", "https://localhost/health"])
    )
    assert report["groups"] == {"X25519" if name == "off" else "X25519MLKEM768": 1}, report


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("name", "groups", "group", "asked_again"),
    [
        # It sends a key for its first alone.
        ("default", "P-256:X25519", "P-256", False),
        ("prefer", "P-384:X25519", "P-384", False),
        ("listed", "P-256:X25519", "X25519", True),
        ("off", "P-521:P-384:X25519:P-256", "X25519", True),
    ],
)
def test_a_key_that_is_there_is_better_than_a_round_trip(
    gateway: Gateway, authority: Authority, name: str, groups: str, group: str, asked_again: bool
) -> None:
    flags = ("-tls1_3", "-groups", groups, "-msg", "-verify_return_error")
    text = s_client(gateway.address(name), authority.certificate, *flags).stdout
    assert '{"ok":true}' in text, text
    assert f"Server Temp Key: {OPENSSL_NAMES[group]}" in text
    assert text.count(", ClientHello") == 1 + asked_again


@pytest.mark.needs("openssl")
def test_tls_12_takes_the_cheapest(gateway: Gateway, authority: Authority) -> None:
    flags = ("-tls1_2", "-groups", "P-384:P-256:X25519", "-verify_return_error")
    assert "Server Temp Key: X25519" in s_client(gateway.address("prefer"), authority.certificate, *flags).stdout


@pytest.mark.parametrize(("again", "served"), [(["http/1.1"], True), ([], False)], ids=["kept", "taken back"])
def test_who_is_asked_again_offers_the_same(gateway: Gateway, again: list[str], served: bool) -> None:
    """The protocol is chosen by the first ClientHello. rustls, which reads the second, takes one without ALPN."""
    failures = {"listener": "default", "reason": "peer_misbehaved"}
    before = gateway.metric("mitu_tls_handshake_failures_total", **failures)
    with Tls13(gateway.address("default"), ["http/1.1"], again=again) as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (b"200 OK" in client.read()) == served
    # The alert goes out first.
    assert eventually(lambda: gateway.metric("mitu_tls_handshake_failures_total", **failures) == before + (not served))
