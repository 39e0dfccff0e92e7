"""Sessions that are resumed, and those that must not be."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Address, context
from support.gateway import Gateway, configuration, health, listener, on, to_app, upstream
from support.net import eventually
from support.openssl import WHOAMI, Resuming, decode_session, encode_session, s_client, told
from support.servers import Server

from .conftest import Start

pytestmark = pytest.mark.needs("openssl")


@pytest.fixture(scope="module")
def device(authority: Authority) -> Pair:
    return authority.issue("resuming", common_name="resuming", client=True)


def settings(edge: Pair, app: Server, authority: Authority, provider: str) -> dict[str, Any]:
    routes = [health(), to_app()]
    ca = {"client_ca": str(authority.certificate)}
    guarded = ["http/1.1", {"alpn": "h2", "tls": {"client_auth": "none"}}]
    listeners = [
        listener(edge, routes=routes),
        listener(edge, name="none", routes=routes, tls={"tickets": 0}),
        listener(edge, name="optional", routes=routes, tls={"client_auth": "optional", **ca}),
        listener(edge, name="guarded", routes=routes, protocols=guarded, tls={"client_auth": "required", **ca}),
    ]
    access = {"path": "access.log", "requests": False, "connections": True}
    return on(provider, configuration(listeners, upstream("app", app.endpoint), logging={"access": access}))


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server, authority: Authority, provider: str) -> Gateway:
    return shared_gateway(settings(edge, app, authority, provider))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_resumes(gateway: Gateway, authority: Authority, tmp_path: Path, version: str) -> None:
    client = Resuming(authority.certificate, tmp_path, version)
    client.full(gateway.address())
    count = {"version": {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[version], "resumed": "true"}
    name = "mitu_tls_handshake_duration_seconds_count"
    before = gateway.metric(name, stage="total", **count)
    text = client.again(gateway.address())
    assert "Reused, TLS" in text
    assert '"target": "/whoami"' in text
    assert gateway.metric(name, stage="total", **count) == before + 1


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_no_tickets_no_resumption(gateway: Gateway, authority: Authority, tmp_path: Path, version: str) -> None:
    client = Resuming(authority.certificate, tmp_path, version)
    client.full(gateway.address("none"))
    if client.session.exists():  # TLS 1.2 writes one without a ticket, which resumes nothing.
        assert "New, TLS" in client.again(gateway.address("none"))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_resumed_session_keeps_its_identity(
    gateway: Gateway, authority: Authority, device: Pair, tmp_path: Path, version: str
) -> None:
    client = Resuming(authority.certificate, tmp_path, version)
    client.full(gateway.address("guarded"), "-cert", device.certificate, "-key", device.key)
    text = client.again(gateway.address("guarded"))
    assert "Reused, TLS" in text, text
    assert told(text, "x-client-verified") == "SUCCESS"
    assert told(text, "x-client-cert-fingerprint") == device.fingerprint


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_an_identity_that_has_expired_is_not_resumed(
    gateway: Gateway, authority: Authority, tmp_path: Path, version: str
) -> None:
    """The ticket is good, and the certificate in it was when it was made."""
    client = Resuming(authority.certificate, tmp_path, version)
    address = gateway.address("guarded")
    for seconds in (3, 10, 30):  # Whatever the machine needs for two handshakes.
        valid_for = timedelta(seconds=seconds)
        brief = authority.issue("brief", common_name="brief", client=True, valid_for=valid_for)
        identity = ("-cert", brief.certificate, "-key", brief.key)
        client.full(address, *identity)
        resumed = client.again(address)
        if '"target": "/whoami"' in resumed:
            break
    assert "Reused, TLS" in resumed, resumed
    assert told(resumed, "x-client-cert-fingerprint") == brief.fingerprint
    # X.509 counts whole seconds, of which the last belongs to the certificate.
    time.sleep((brief.leaf.not_valid_after_utc - datetime.now(UTC)).total_seconds() + 1)
    failures = {"listener": "guarded", "reason": "client_certificate_invalid"}
    before = gateway.metric("mitu_tls_handshake_failures_total", **failures)
    assert "HTTP/1.1" not in client.again(address)
    # The alert goes out first.
    assert eventually(lambda: gateway.metric("mitu_tls_handshake_failures_total", **failures) == before + 1)
    line = last_failure(gateway, failures["reason"], before + 1)
    assert line["listener"] == "guarded"
    assert "Expired" in line["error"]
    # Nor does it get in by itself any more.
    assert "alert certificate expired" in s_client(address, authority.certificate, version, *identity).stdout


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(("obtained", "flags"), [("optional", ()), ("edge", ()), ("guarded", ("-alpn", "h2"))])
def test_no_session_leads_past_client_authentication(
    gateway: Gateway, authority: Authority, tmp_path: Path, version: str, obtained: str, flags: tuple[str, ...]
) -> None:
    """A session made where no certificate was asked for is worth nothing where one is required."""
    client = Resuming(authority.certificate, tmp_path, version)
    # HTTP/1.1 on h2 is answered with GOAWAY, which is enough to get the ticket.
    client.full(gateway.address(obtained), *flags)
    text = client.again(gateway.address("guarded"), "-alpn", "http/1.1")
    assert "Reused, TLS" not in text
    assert "HTTP/1.1 200" not in text
    assert "alert" in text


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_resumption_that_is_replayed_gets_nowhere(
    gateway: Gateway, authority: Authority, version: ssl.TLSVersion
) -> None:
    """All that a client sent which resumed, sent again: the keys are made of the server's random as well."""
    tls = context(authority.certificate)
    tls.minimum_version = tls.maximum_version = version
    first, _ = recorded(gateway.address(), tls)
    again, sent = recorded(gateway.address(), tls, first.session)
    assert again.session_reused
    # A request is counted once its response is written.
    eventually(lambda: gateway.metric("mitu_connections_active") == 0)
    served = gateway.metric("mitu_http_requests_total")
    failed = gateway.metric("mitu_tls_handshake_failures_total", reason="decrypt_error")
    with socket.create_connection(gateway.address(), timeout=10) as tcp:
        tcp.sendall(sent)
        while tcp.recv(65_536):
            pass
    eventually(lambda: gateway.metric("mitu_tls_handshake_failures_total", reason="decrypt_error") == failed + 1)
    assert gateway.metric("mitu_http_requests_total") == served


def recorded(
    address: Address, tls: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, bytes]:
    """A client that has had its answer, and all that it sent for it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)
    sent = bytearray()
    with socket.create_connection(address, timeout=10) as tcp:

        def until_done(call: Callable[[], object]) -> None:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    call()
                    return
                flush()
                incoming.write(tcp.recv(65_536))

        def flush() -> None:
            flight = outgoing.read()
            tcp.sendall(flight)
            sent.extend(flight)

        until_done(client.do_handshake)
        client.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        flush()
        until_done(lambda: client.read(65_536))
    return client, bytes(sent)


def test_resumes_after_a_reload(
    gateway: Gateway, authority: Authority, edge: Pair, app: Server, tmp_path: Path, provider: str
) -> None:
    client = Resuming(authority.certificate, tmp_path)
    client.full(gateway.address())
    changed = settings(edge, app, authority, provider)
    changed["listeners"][0]["protocols"].reverse()
    code, text = gateway.reload(changed)
    assert code == 0, text
    assert "Reused, TLS" in client.again(gateway.address())


def test_there_is_no_early_data(gateway: Gateway, authority: Authority, tmp_path: Path) -> None:
    """No ticket invites it, and what a client sends all the same is not looked at: it might be a replay."""
    client = Resuming(authority.certificate, tmp_path, "-tls1_3")
    text = client.full(gateway.address())
    assert set(re.findall(r"Max Early Data: (\d+)", text)) == {"0"}
    client.session.write_text(with_early_data(client.session.read_text(), 16_384))
    early = tmp_path / "early"
    early.write_bytes(WHOAMI.replace(b"/whoami", b"/replayed"))
    text = client.again(gateway.address(), "-early_data", early)
    assert "Early data was rejected" in text, text
    assert "Reused, TLS" in text
    assert '"target": "/whoami"' in text
    assert "/replayed" not in text


def with_early_data(session: str, size: int) -> str:
    """An OpenSSL session whose ticket allows so much early data: `max_early_data [15]` of its SSL_SESSION_ASN1."""
    return encode_session([*decode_session(session), b"\xaf\x04\x02\x02" + size.to_bytes(2)])


def last_failure(gateway: Gateway, reason: str, count: float) -> dict[str, Any]:
    """The access log's last line of a handshake that failed for `reason`, once there are so many."""

    def failures() -> list[dict[str, Any]]:
        return [line for line in gateway.logged() if line["event"] == "handshake_failed" and line["reason"] == reason]

    eventually(lambda: len(failures()) == count)
    return failures()[-1]
