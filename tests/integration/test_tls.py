"""TLS as clients see it: versions, policies per protocol, server names, key types."""

from __future__ import annotations

import ssl

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context, until_alert
from support.gateway import Gateway, configuration, health, listener, on, to_app, upstream
from support.net import eventually
from support.openssl import negotiate, s_client
from support.servers import Loop, Server, echo
from support.tls13 import Tls13

from .conftest import Start

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SUITE = "TLS_CHACHA20_POLY1305_SHA256"
RSA_SUITE = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
OTHER = ("other.test", "*.wild.test")


@pytest.fixture(scope="module")
def other(authority: Authority) -> Pair:
    return authority.issue("other", OTHER, key="p384")


@pytest.fixture(scope="module")
def gateway(
    shared_gateway: Start,
    edge: Pair,
    edge_rsa: Pair,
    other: Pair,
    app: Server,
    loop: Loop,
    authority: Authority,
    provider: str,
) -> Gateway:
    echoing = Server(loop, echo)
    routes = [health(), to_app()]
    relayed = {"alpn": "mqtt", "relay": "echo"}
    loose = {"min_version": "1.2", "client_auth": "optional", "client_ca": str(authority.certificate)}

    def make(name: str, *pairs: Pair, **settings: object) -> dict[str, object]:
        return listener(pairs or [edge], name=name, routes=routes, **settings)

    listeners = [
        make("edge", edge, edge_rsa, other),
        make("strict", edge, other, tls={"unknown_name": "refuse"}),
        make("modern", tls={"policy": "modern"}),
        make("legacy", tls={"max_version": "1.2"}),
        make("chosen", tls={"policy": "modern", "cipher_suites": [SUITE], "groups": ["secp384r1"]}),
        make("rsa-suites", edge, edge_rsa, tls={"cipher_suites": ["TLS_AES_128_GCM_SHA256", RSA_SUITE]}),
        make("mixed", protocols=["h2", "http/1.1", relayed | {"tls": loose}], tls={"policy": "modern"}),
    ]
    upstreams = [upstream("app", app.endpoint), upstream("echo", echoing.endpoint)]
    return shared_gateway(on(provider, configuration(listeners, *upstreams)))


@pytest.mark.parametrize(
    ("name", "version", "accepted"),
    [
        ("edge", TLS12, True),
        ("edge", TLS13, True),
        ("modern", TLS12, False),
        ("modern", TLS13, True),
        ("legacy", TLS12, True),
        ("legacy", TLS13, False),
    ],
)
def test_versions(gateway: Gateway, authority: Authority, name: str, version: ssl.TLSVersion, accepted: bool) -> None:
    tls = context(authority.certificate, version=version)
    if accepted:
        with connect(gateway.address(name), tls) as stream:
            assert stream.version() == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[version]
            assert Http1(stream).request("/health").body == b'{"ok":true}'
    else:
        assert until_alert(gateway.address(name), tls) == "protocol version"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_old_versions_are_refused(gateway: Gateway, authority: Authority, flag: str) -> None:
    # Level 0 lets this client offer what it would not by itself. Its ClientHello lacks signature algorithms, which
    # rustls finds first.
    text = negotiate(gateway.address(), authority.certificate, flag, "-cipher", "ALL:@SECLEVEL=0")
    assert "alert protocol version" in text or "alert handshake failure" in text
    assert "no peer certificate available" in text


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256", "DHE-RSA-AES128-SHA"])
def test_weak_suites_are_refused(gateway: Gateway, authority: Authority, cipher: str) -> None:
    done = s_client(gateway.address(), authority.certificate, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert "alert handshake failure" in done.stdout


@pytest.mark.needs("openssl")
def test_explicit_suites_and_groups(gateway: Gateway, authority: Authority) -> None:
    done = s_client(gateway.address("chosen"), authority.certificate)
    assert f"Cipher is {SUITE}" in done.stdout
    assert "Server Temp Key: ECDH, secp384r1" in done.stdout
    refused = s_client(gateway.address("chosen"), authority.certificate, "-ciphersuites", "TLS_AES_128_GCM_SHA256")
    assert "alert handshake failure" in refused.stdout
    refused = s_client(gateway.address("chosen"), authority.certificate, "-groups", "P-256")
    assert "alert handshake failure" in refused.stdout


class TestPerProtocol:
    """`mixed`: TLS 1.3 alone for h2 and http/1.1, while mqtt has TLS 1.2 and asks for certificates."""

    @pytest.mark.parametrize(("offer", "accepted"), [("h2", False), ("http/1.1", False), ("mqtt", True)])
    def test_tls12(self, gateway: Gateway, authority: Authority, offer: str, accepted: bool) -> None:
        tls = context(authority.certificate, [offer], version=TLS12)
        if not accepted:
            assert until_alert(gateway.address("mixed"), tls) == "protocol version"
            return
        with connect(gateway.address("mixed"), tls) as stream:
            assert (stream.version(), stream.selected_alpn_protocol()) == ("TLSv1.2", offer)
            stream.sendall(b"bytes")
            assert stream.recv(100) == b"bytes"

    @pytest.mark.needs("openssl")
    @pytest.mark.parametrize(("offer", "asked"), [("h2", False), ("http/1.1", False), ("mqtt", True)])
    def test_certificates_are_asked_for(self, gateway: Gateway, authority: Authority, offer: str, asked: bool) -> None:
        text = negotiate(gateway.address("mixed"), authority.certificate, "-alpn", offer)
        assert f"ALPN protocol: {offer}" in text
        assert ("Acceptable client certificate CA names" in text) == asked

    def test_identity_of_a_relayed_client(self, gateway: Gateway, authority: Authority) -> None:
        device = authority.issue("device-7", common_name="device-7", client=True)
        tls = context(authority.certificate, ["mqtt"], identity=device)
        with connect(gateway.address("mixed"), tls) as stream:
            stream.sendall(b"bytes")
            assert stream.recv(100) == b"bytes"
            mine = stream.getsockname()[1]
            listed = [one for one in gateway.json("/connections") if one["client"].endswith(f":{mine}")]
            assert [one["alpn"] for one in listed] == ["mqtt"]
            assert "CN=device-7" in listed[0]["client_certificate"]


class TestServerNames:
    @pytest.mark.parametrize("name", ["other.test", "OTHER.Test", "a.wild.test", "B.wild.TEST"])
    def test_known(self, gateway: Gateway, authority: Authority, other: Pair, name: str) -> None:
        for where in ("edge", "strict"):
            with connect(gateway.address(where), context(authority.certificate), name=name) as stream:
                assert stream.getpeercert(binary_form=True) == der(other)

    @pytest.mark.parametrize("name", ["nobody.test", "wild.test", "a.b.wild.test", None])
    def test_unknown(self, gateway: Gateway, authority: Authority, edge: Pair, name: str | None) -> None:
        tls = context(authority.certificate)
        tls.check_hostname = False
        with connect(gateway.address(), tls, name=name) as stream:
            assert stream.getpeercert(binary_form=True) == der(edge)
        assert until_alert(gateway.address("strict"), tls, name=name) == "unrecognized name"

    def test_refusals_are_counted(self, gateway: Gateway, authority: Authority) -> None:
        def count() -> float:
            labels = {"listener": "strict", "reason": "unrecognized_name"}
            return gateway.metric("mitu_tls_handshake_failures_total", **labels)

        before = count()
        until_alert(gateway.address("strict"), context(authority.certificate), name="nobody.test")
        # The alert goes out first.
        assert eventually(lambda: count() == before + 1)


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("flags", "signature"),
    [
        (("-tls1_3",), "ECDSA"),
        (("-tls1_3", "-sigalgs", "RSA-PSS+SHA256"), "RSA-PSS"),
        (("-tls1_3", "-sigalgs", "ECDSA+SHA256:RSA-PSS+SHA256"), "ECDSA"),
        (("-tls1_2",), "ECDSA"),
        (("-tls1_2", "-sigalgs", "RSA+SHA256:RSA-PSS+SHA256"), "RSA"),
        # The suite decides as well: these authenticate with RSA alone.
        (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"), "RSA"),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), "ECDSA"),
    ],
)
def test_the_key_suits_the_client(
    gateway: Gateway, authority: Authority, edge: Pair, edge_rsa: Pair, flags: tuple[str, ...], signature: str
) -> None:
    done = s_client(gateway.address(), authority.certificate, *flags, "-showcerts", "-verify_return_error")
    assert '{"ok":true}' in done.stdout, done.stdout
    assert f"Peer signature type: {signature}" in done.stdout
    served = edge if signature == "ECDSA" else edge_rsa
    assert served.certificate.read_text().strip() in done.stdout


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(("version", "signature"), [("-tls1_2", "RSA-PSS"), ("-tls1_3", "ECDSA")])
def test_the_key_suits_the_suites(
    gateway: Gateway, authority: Authority, edge: Pair, edge_rsa: Pair, version: str, signature: str
) -> None:
    """The client takes either certificate, but in TLS 1.2 the listener's suites authenticate with RSA alone."""
    done = s_client(
        gateway.address("rsa-suites"), authority.certificate, version, "-showcerts", "-verify_return_error"
    )
    assert '{"ok":true}' in done.stdout, done.stdout
    assert f"Peer signature type: {signature}" in done.stdout
    served = edge if signature == "ECDSA" else edge_rsa
    assert served.certificate.read_text().strip() in done.stdout


@pytest.mark.needs("openssl")
def test_p384(gateway: Gateway, authority: Authority) -> None:
    done = s_client(gateway.address(), authority.certificate, "-verify_return_error", name="other.test")
    assert "Peer signature type: ECDSA" in done.stdout
    assert "Peer signing digest: SHA384" in done.stdout


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


@pytest.mark.parametrize("again", [None, ["http/1.1"]], ids=["at once", "asked again"])
@pytest.mark.parametrize("piece", [1, 4, 50])
def test_a_client_hello_in_many_records(gateway: Gateway, piece: int, again: list[str] | None) -> None:
    with Tls13(gateway.address(), ["http/1.1"], again=again, piece=piece) as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in client.read()
