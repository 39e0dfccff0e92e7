"""Every client in every situation: `support.matrix` says what comes of it, and this is where it is tried."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support import real_clients
from support.certificates import Authority, Pair
from support.gateway import Gateway, Settings, configuration, health, listener, on, parse, upstream
from support.matrix import OFFERS, PAGE, ROWS, SITUATIONS, SUITE, SUITE12, Cell, Offer, Row, Works, page
from support.net import eventually
from support.real_clients import Ports, Said

from .conftest import EDGE_NAMES, Start

# An answer of gRPC that has no message in it.
NOTHING: Settings = {
    "match": {"path_prefix": "/matrix.Matrix"},
    "respond": {"content_type": "application/grpc", "headers": {"grpc-status": "0"}},
}
TO_BROKER = {"alpn": "mqtt", "relay": "broker"}
ONLY_TLS13 = {"min_version": "1.3", "cipher_suites": [SUITE]}
SUITES = {"cipher_suites": [SUITE, SUITE12]}


@pytest.fixture(scope="module")
def gateway(
    shared_gateway: Start, authority: Authority, edge: Pair, edge_rsa: Pair, mosquitto: int, provider: str
) -> Gateway:
    other = authority.issue("matrix-other", ("other.test",))
    expired = authority.issue("matrix-expired", EDGE_NAMES, valid_for=timedelta(0))
    ca = str(authority.certificate)

    def at(name: str, *pairs: Pair, **settings: Any) -> Settings:
        served = {"protocols": ["h2", "http/1.1", TO_BROKER], "routes": [health(), NOTHING]}
        return listener(pairs or [edge], name=name, **served | settings)

    private = {"alpn": "private/1", "relay": "broker"}
    listeners = [
        at("p256", tls=ONLY_TLS13),
        at("rsa", edge_rsa, tls=ONLY_TLS13),
        at("tls12", edge, edge_rsa, tls={"max_version": "1.2", "cipher_suites": [SUITE12]}),
        at("modern", edge, edge_rsa, tls={"policy": "modern"}),
        at("intermediate", edge, edge_rsa),
        at("alpn", protocols=[private], no_alpn="refuse", routes=[], tls=SUITES),
        at("mtls", tls=SUITES | {"client_auth": "required", "client_ca": ca}),
        at("sni", other, tls=SUITES | {"unknown_name": "refuse"}),
        at("no-alpn", no_alpn="refuse", tls=SUITES),
        at("expired", expired, tls=SUITES),
    ]
    access = {"path": "access.log", "requests": False, "connections": True, "queue": 100_000}
    to = upstream("broker", f"127.0.0.1:{mosquitto}")
    return shared_gateway(on(provider, configuration(listeners, to, logging={"access": access})))


class Watch:
    """What the gateway sees of clients from here on, by listener."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._log = gateway.folder / "access.log"
        self._begun = self._log.stat().st_size
        self._counted = self._count()

    def _count(self) -> Counter[tuple[str, str]]:
        name = "mitu_tls_handshake_failures_total"
        # Reading all the others would take longer than most clients do.
        lines = [line for line in self._gateway.metrics().splitlines(keepends=True) if line.startswith(name)]
        samples = parse("".join(lines)).get(name, [])
        return Counter({(labels["listener"], labels["reason"]): int(value) for labels, value in samples})

    def failures(self, name: str) -> set[str]:
        """The reasons that were counted."""
        return {reason for (listener, reason) in self._count() - self._counted if listener == name}

    def negotiated(self, name: str) -> set[tuple[str, str, str]]:
        """Version, ALPN and suite of the connections that have ended."""
        with self._log.open("rb") as log:
            log.seek(self._begun)
            lines = [json.loads(line) for line in log]
        ended = [line for line in lines if line["event"] == "connection" and line["listener"] == name]
        return {(line["tls_version"], line["alpn"], line["cipher"]) for line in ended}

    def matches(self, name: str, said: Said, cell: Cell, besides: frozenset[str] = frozenset()) -> None:
        """AssertionError when the client or the gateway saw something else than `cell`."""
        if isinstance(cell, Works):
            assert said.ok, said.words
            assert self.failures(name) <= besides
            ((version, alpn, cipher),) = eventually(lambda: self.negotiated(name))
            assert (version, alpn) == (cell.version, cell.alpn)
            assert cell.cipher in ("", cipher)
        else:
            assert not said.ok
            assert cell.said(said.words), said.words
            wanted = {cell.counted} if cell.counted else set()
            eventually(lambda: self.failures(name) >= wanted)
            assert self.failures(name) <= wanted | besides


@pytest.fixture
def ports(gateway: Gateway, authority: Authority, tmp_path: Path) -> Ports:
    addresses = gateway.addresses()
    by_name = {situation.name: int(addresses[situation.name].rpartition(":")[2]) for situation in SITUATIONS}
    return Ports(authority.certificate, by_name, tmp_path)


def has(row: Row) -> None:
    for wanted in row.programs:
        if not wanted.found():
            pytest.skip(f"{wanted.name} is missing: {wanted.advice}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_client(gateway: Gateway, ports: Ports, row: Row) -> None:
    has(row)
    watch = Watch(gateway)
    said = row.ask(ports)
    for situation in SITUATIONS:
        try:
            watch.matches(situation.name, said[situation.name], row.cell(situation), row.besides)
        except AssertionError as error:
            error.add_note(f"{row.name}, {situation.title}")
            raise


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.name)
def test_an_offer(gateway: Gateway, ports: Ports, offer: Offer) -> None:
    name = "intermediate"
    watch = Watch(gateway)
    client = real_clients.s_client(*offer.flags, "-alpn", "http/1.1")
    said = client(Ports(ports.ca, {name: ports.by_name[name]}, ports.folder))[name]
    watch.matches(name, said, offer.cell)
    assert offer.shows in said.words


def test_every_situation_and_client_is_another() -> None:
    for names in ([one.name for one in SITUATIONS], [row.name for row in ROWS], [offer.name for offer in OFFERS]):
        assert len(set(names)) == len(names)
    # A failure in a situation that there is not would never be looked at.
    assert {name for row in ROWS for name in row.fails} <= {situation.name for situation in SITUATIONS}


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run in tests: python -m support.matrix"
