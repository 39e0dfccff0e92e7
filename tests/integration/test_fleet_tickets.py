"""Sessions that every node of a fleet resumes, because all of them have one secret."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.openssl import Resuming, told
from support.servers import Server

from .conftest import Start

pytestmark = pytest.mark.needs("openssl")
VERSIONS = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
HEADER = 9  # Version and epoch, before the nonce.

Fleet = tuple[Gateway, Gateway, Gateway]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_secret(tmp_path_factory.mktemp("secrets") / "ticket")


@pytest.fixture(scope="module")
def settings(edge: Pair, app: Server, authority: Authority, secret: Path) -> dict[str, Any]:
    routes = [health(), to_app()]
    ca = {"client_ca": str(authority.certificate)}
    listeners = [
        listener(edge, routes=routes),
        listener(edge, name="optional", routes=routes, tls={"client_auth": "optional", **ca}),
        listener(edge, name="guarded", routes=routes, tls={"client_auth": "required", **ca}),
    ]
    tickets = {"secrets": [{"file": str(secret)}]}
    return configuration(listeners, upstream("app", app.endpoint), tickets=tickets)


@pytest.fixture(scope="module")
def fleet(shared_gateway: Start, settings: dict[str, Any], secret: Path) -> Fleet:
    """Two nodes that have the secret from a file, and one that has it from its environment."""
    one, two = (shared_gateway(settings) for _ in range(2))
    named = settings | {"tickets": {"secrets": ["${TICKETS}"]}}
    return one, two, shared_gateway(named, environment={"TICKETS": secret.read_text().strip()})


@pytest.fixture
def client(authority: Authority, tmp_path: Path) -> Callable[..., Resuming]:
    return lambda *flags: Resuming(authority.certificate, tmp_path, *flags)


def new_secret(path: Path) -> Path:
    path.touch(0o600)
    path.write_text(secrets.token_hex(32) + "\n")
    return path


def with_tickets(settings: dict[str, Any], *files: Path, **more: str) -> dict[str, Any]:
    return settings | {"tickets": {"secrets": [{"file": str(file)} for file in files], **more}}


@VERSIONS
def test_every_node_resumes_every_nodes_sessions(fleet: Fleet, client: Callable[..., Resuming], version: str) -> None:
    for maker in fleet:
        resuming = client(version)
        resuming.full(maker.address())
        for node in fleet:
            assert resuming.resumes(node.address())


@VERSIONS
def test_an_identity_goes_with_its_session(
    fleet: Fleet, client: Callable[..., Resuming], authority: Authority, version: str
) -> None:
    device = authority.issue("roaming", common_name="roaming", client=True)
    resuming = client(version)
    resuming.full(fleet[0].address("guarded"), "-cert", device.certificate, "-key", device.key)
    text = resuming.again(fleet[1].address("guarded"))
    assert "Reused, TLS" in text
    assert told(text, "x-client-cert-fingerprint") == device.fingerprint


@VERSIONS
def test_no_session_leads_past_another_nodes_client_authentication(
    fleet: Fleet, client: Callable[..., Resuming], version: str
) -> None:
    for obtained in ("edge", "optional"):
        resuming = client(version)
        resuming.full(fleet[0].address(obtained))
        text = resuming.again(fleet[1].address("guarded"))
        assert "Reused, TLS" not in text
        assert "HTTP/1.1 200" not in text
        assert "alert" in text
    # Nor is one that was anonymous by choice worth anything where nobody is asked.
    assert not resuming.resumes(fleet[1].address())


@VERSIONS
def test_a_session_is_for_one_server_name(fleet: Fleet, client: Callable[..., Resuming], version: str) -> None:
    resuming = client(version)
    resuming.full(fleet[0].address())
    for node in fleet:
        assert not resuming.resumes(node.address(), name="edge.test")
        assert resuming.resumes(node.address(), name="localhost")


@VERSIONS
def test_a_ticket_that_was_tampered_with_makes_a_full_handshake(
    fleet: Fleet, client: Callable[..., Resuming], version: str
) -> None:
    resuming = client(version)
    resuming.full(fleet[0].address())
    whole = resuming.ticket
    # In the version, the epoch, the nonce, what is sealed, and the tag; then without its end, and with one too many.
    changes = [flipped(whole, at) for at in (0, HEADER - 1, HEADER, len(whole) // 2, len(whole) - 1)]
    for ticket in [*changes, whole[:-1], whole[: HEADER + 3], whole + b"\0"]:
        resuming.ticket = ticket
        assert not resuming.resumes(fleet[1].address())
    resuming.ticket = whole
    assert resuming.resumes(fleet[1].address())


def flipped(ticket: bytes, at: int) -> bytes:
    return ticket[:at] + bytes([ticket[at] ^ 1]) + ticket[at + 1 :]


@VERSIONS
def test_through_reloads_and_restarts(
    gateway: Start, settings: dict[str, Any], client: Callable[..., Resuming], version: str
) -> None:
    node = gateway(settings)
    resuming = client(version)
    resuming.full(node.address())
    for level in ("debug", "info"):
        node.apply(settings | {"logging": {"level": level}})
        assert resuming.resumes(node.address())
    for end in (node.program.kill, node.stop):
        end()
        node.restart()
        assert resuming.resumes(node.address())


def test_without_a_secret_sessions_end_with_the_process(
    gateway: Start, settings: dict[str, Any], client: Callable[..., Resuming]
) -> None:
    alone = {name: value for name, value in settings.items() if name != "tickets"}
    node, other = gateway(alone), gateway(alone)
    resuming = client()
    resuming.full(node.address())
    node.apply(alone | {"logging": {"level": "debug"}})
    assert resuming.resumes(node.address())
    assert not resuming.resumes(other.address())
    node.stop()
    assert not resuming.resumes(node.restart().address())


@VERSIONS
def test_through_rotations(
    gateway: Start, settings: dict[str, Any], secret: Path, client: Callable[..., Resuming], version: str
) -> None:
    often = with_tickets(settings, secret, rotation="1s", lifetime="100s")
    nodes = [gateway(often) for _ in range(2)]
    resuming = client(version)
    resuming.full(nodes[0].address())
    epoch = int.from_bytes(resuming.ticket[1:HEADER])
    time.sleep(3)
    assert all(resuming.resumes(node.address()) for node in nodes)
    resuming.full(nodes[1].address())
    assert int.from_bytes(resuming.ticket[1:HEADER]) >= epoch + 3
    assert all(resuming.resumes(node.address()) for node in nodes)


@VERSIONS
def test_a_ticket_has_an_end(
    gateway: Start, settings: dict[str, Any], secret: Path, client: Callable[..., Resuming], version: str
) -> None:
    """The server keeps to it, within one rotation as well: the client has been told a longer one, and goes on."""
    patient = gateway(with_tickets(settings, secret, lifetime="1h"))
    strict = gateway(with_tickets(settings, secret, lifetime="2s"))
    resuming = client(version)
    resuming.full(patient.address())
    time.sleep(2)
    assert not resuming.resumes(strict.address())
    assert resuming.resumes(patient.address())


def test_a_secret_is_replaced_without_a_full_handshake(
    gateway: Start, settings: dict[str, Any], secret: Path, client: Callable[..., Resuming], tmp_path: Path
) -> None:
    """As the guide says: first every node opens with the new one, then it seals, then the old one goes."""
    new = new_secret(tmp_path / "new")
    nodes = [gateway(with_tickets(settings, secret)) for _ in range(2)]
    resuming = client()
    resuming.full(nodes[0].address())
    for files in ([secret, new], [new, secret]):
        for node in nodes:
            node.apply(with_tickets(settings, *files))
            # Whichever nodes have got so far.
            assert all(resuming.resumes(other.address()) for other in nodes)
    old = resuming.session.read_text()
    resuming.full(nodes[0].address())
    for node in nodes:
        node.apply(with_tickets(settings, new))
        assert all(resuming.resumes(other.address()) for other in nodes)
    resuming.session.write_text(old)
    assert not any(resuming.resumes(node.address()) for node in nodes)


def test_a_secret_is_revoked_by_changing_its_file(
    gateway: Start, settings: dict[str, Any], client: Callable[..., Resuming], tmp_path: Path
) -> None:
    file = new_secret(tmp_path / "ticket")
    node = gateway(with_tickets(settings, file))
    resuming = client()
    resuming.full(node.address())
    live = node.status()["config"]["digest"]
    # One that is no good leaves the last good one in force.
    file.write_text("too short\n")
    eventually(lambda: node.status()["reloads"]["failed"] == 1, 30)
    assert "E068" in node.status()["reloads"]["last_error"]
    assert resuming.resumes(node.address())
    new_secret(file)
    eventually(lambda: node.status()["config"]["digest"] != live, 30)
    assert not resuming.resumes(node.address())
    assert file.read_text().strip() not in node.program.log + str(node.status()) + str(node.json("/config"))


def test_another_secret_is_another_fleet(
    gateway: Start, fleet: Fleet, settings: dict[str, Any], client: Callable[..., Resuming], tmp_path: Path
) -> None:
    stranger = gateway(with_tickets(settings, new_secret(tmp_path / "ticket")))
    resuming = client()
    resuming.full(stranger.address())
    assert resuming.resumes(stranger.address())
    assert not any(resuming.resumes(node.address()) for node in fleet)
