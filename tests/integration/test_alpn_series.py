"""ALPN lists are the client's to choose and label values are kept for ever: how many there can be."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

from support.certificates import Authority, Pair
from support.client import Address, client_hello, context
from support.gateway import Gateway, Settings, configuration, health, listener, parse

from .conftest import Start

# Names that are registered, and that nobody serves here: each set of them is a list of its own.
KNOWN = ("http/1.0", "h2c", "mqtt", "acme-tls/1", "spdy/3.1", "ftp", "imap", "pop3", "coap", "dot")
# A configuration tells this many lists apart besides those that overflow; this many labels are a listener's in all.
OF_A_CONFIGURATION, OF_A_LISTENER = 128, 256


def offers(count: int, of: int) -> Iterator[tuple[str, ...]]:
    """The first `count` sets of `of` known names, each with one that nobody has heard of."""
    for number, names in enumerate(itertools.islice(itertools.combinations(KNOWN, of), count)):
        yield *names, f"unheard-of/{number}"


def refuse(address: Address, hello: bytes) -> None:
    with socket.create_connection(address, timeout=10) as stream:
        stream.sendall(hello)
        assert stream.recv(100)[-2:] == b"\x02\x78", "no fatal no_application_protocol"


def offered(gateway: Gateway, name: str) -> dict[str, float]:
    """Decisions by what was offered."""
    samples = parse(gateway.metrics()).get("mitu_alpn_decisions_total", [])
    return {labels["offered"]: value for labels, value in samples if labels["listener"] == name}


def test_there_is_a_bound(gateway: Start, authority: Authority, edge: Pair) -> None:
    """Clients that offer what nobody else does, each reload beginning to tell lists apart anew."""

    def settings(text: str) -> Settings:
        served = health() | {"respond": {"body": text}}
        return configuration([listener(edge, name=name, routes=[served]) for name in ("stormed", "calm")])

    running = gateway(settings("0"), flags=["--no-watch"])
    count = OF_A_CONFIGURATION + 12
    told: dict[str, float] = {}
    for generation, of in enumerate((4, 5, 6, 4, 5)):
        for names in offers(count, of):
            refuse(running.address("stormed"), client_hello(context(authority.certificate, names)))
        told = offered(running, "stormed")
        assert len(told) == min((generation + 1) * OF_A_CONFIGURATION + 1, OF_A_LISTENER)
        # Each is counted, if only among those that are too many.
        assert sum(told.values()) == (generation + 1) * count
        running.apply(settings(str(generation + 1)))
    assert told["overflow"] > count
    # Names that are not registered are no labels.
    assert all(label.endswith(",other") for label in told if label != "overflow")
    # Another listener has room of its own.
    refuse(running.address("calm"), client_hello(context(authority.certificate, ("http/1.0",))))
    assert offered(running, "calm") == {"http/1.0": 1}
