"""Clients that identify themselves: who gets in, and what upstreams are told."""

from __future__ import annotations

import json
import ssl
from typing import Any
from urllib.parse import unquote

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context, until_alert
from support.gateway import Gateway, configuration, listener, on, to_app, upstream
from support.net import eventually
from support.process import output
from support.servers import Server

from .conftest import EDGE_NAMES, Start

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SANS = ("device-17.fleet.test", "spiffe://fleet.test/device/17")
SPOOFED = [
    ("X-Client-Verified", "SUCCESS"),
    ("X-Client-Cert-Subject", "CN=root"),
    ("X_Client_Cert_Subject", "CN=root"),
    ("X-Client-Cert-San", "DNS:root"),
    ("X-Client-Cert-Fingerprint", "00"),
    ("x-client-cert-anything", "root"),
]


@pytest.fixture(scope="module")
def device(authority: Authority) -> Pair:
    return authority.issue("device-17", SANS, common_name="device-17", client=True)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A client certificate of an authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "Stranger CA").issue(
        "stranger", SANS, common_name="device-17", client=True
    )


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server, authority: Authority, provider: str) -> Gateway:
    ca = {"client_ca": str(authority.certificate)}
    by_protocol = ["h2", {"alpn": "http/1.1", "tls": {"client_auth": "required"}}]
    listeners = [
        listener(edge, name="required", routes=[to_app()], tls={"client_auth": "required", **ca}),
        listener(edge, name="optional", routes=[to_app()], tls={"client_auth": "optional", **ca}),
        listener(edge, name="none", routes=[to_app()], trusted_proxies=["127.0.0.0/8"]),
        listener(edge, name="by-protocol", routes=[to_app()], protocols=by_protocol, tls=ca),
    ]
    return shared_gateway(on(provider, configuration(listeners, upstream("app", app.endpoint))))


def seen(gateway: Gateway, name: str, tls: ssl.SSLContext) -> dict[str, list[str]]:
    """The identity headers that the upstream gets of a request with every one of them spoofed."""
    with connect(gateway.address(name), tls) as stream:
        request: dict[str, Any] = json.loads(Http1(stream).request("/", headers=SPOOFED).body)
    found: dict[str, list[str]] = {}
    for key, value in request["headers"]:
        if key.lower().replace("_", "-").startswith("x-client-"):
            found.setdefault(key.lower(), []).append(value)
    return found


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["required", "optional", "by-protocol"])
def test_a_verified_identity_reaches_the_upstream(
    gateway: Gateway, authority: Authority, device: Pair, name: str, version: ssl.TLSVersion
) -> None:
    headers = seen(gateway, name, context(authority.certificate, identity=device, version=version))
    assert headers["x-client-verified"] == ["SUCCESS"]
    assert headers["x-client-cert-fingerprint"] == [device.fingerprint]
    assert sorted(unquote(headers["x-client-cert-subject"][0]).split(", ")) == ["CN=device-17", "O=Test Fleet"]
    sans = [unquote(one) for one in headers["x-client-cert-san"][0].split(",")]
    assert sans == [f"DNS:{SANS[0]}", f"URI:{SANS[1]}"]
    assert len(headers) == 4


@pytest.mark.parametrize("name", ["optional", "none"])
def test_nobody_can_claim_an_identity(gateway: Gateway, authority: Authority, name: str) -> None:
    # Not even a trusted proxy: `none` trusts these clients' X-Forwarded-For.
    assert seen(gateway, name, context(authority.certificate)) == {"x-client-verified": ["NONE"]}


@pytest.mark.needs("curl")
def test_nobody_can_claim_an_identity_over_h2(gateway: Gateway, authority: Authority) -> None:
    url = f"https://localhost:{gateway.address('by-protocol')[1]}/"
    spoofed = [word for name, value in SPOOFED for word in ("-H", f"{name}: {value}")]
    request = json.loads(output(["curl", "-sS", "--http2", "--cacert", authority.certificate, *spoofed, url]))
    claims = [pair for pair in request["headers"] if pair[0].lower().replace("_", "-").startswith("x-client-")]
    assert claims == [["x-client-verified", "NONE"]]


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["required", "by-protocol"])
def test_without_a_certificate(gateway: Gateway, authority: Authority, name: str, version: ssl.TLSVersion) -> None:
    alert = until_alert(gateway.address(name), context(authority.certificate, version=version))
    assert alert == "certificate required"
    missing = {"listener": name, "reason": "client_certificate_missing"}
    # The alert goes out first.
    assert eventually(lambda: gateway.metric("mitu_tls_handshake_failures_total", **missing) >= 1)


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["required", "optional"])
def test_a_strangers_certificate(
    gateway: Gateway, authority: Authority, stranger: Pair, name: str, version: ssl.TLSVersion
) -> None:
    tls = context(authority.certificate, identity=stranger, version=version)
    assert until_alert(gateway.address(name), tls) == "unknown ca"


def test_a_servers_certificate_is_no_identity(gateway: Gateway, authority: Authority) -> None:
    server = authority.issue("posing", EDGE_NAMES)
    alert = until_alert(gateway.address("required"), context(authority.certificate, identity=server))
    assert alert in ("unsupported certificate", "bad certificate")


@pytest.mark.needs("curl")
def test_by_protocol(gateway: Gateway, authority: Authority, device: Pair) -> None:
    # On one port, h2 asks nobody and http/1.1 everybody.
    port = gateway.address("by-protocol")[1]
    curl = ["curl", "-sS", "--cacert", authority.certificate, "--cert", device.certificate, "--key", device.key]
    for flag, verified in (("--http2", "NONE"), ("--http1.1", "SUCCESS")):
        request = json.loads(output([*curl, flag, f"https://localhost:{port}/"]))
        told = [value for key, value in request["headers"] if key.lower() == "x-client-verified"]
        assert told == [verified]
