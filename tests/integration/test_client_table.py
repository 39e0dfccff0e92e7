"""One port for h3, h2 and http/1.1: each client gets the best of what it offers, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from support import h3
from support.certificates import Authority, Pair
from support.client_table import GOT, NUMBER, REFUSED, ROWS, Row
from support.gateway import Gateway, Settings, configuration, listener, upstream
from support.net import eventually
from support.real_clients import GRPC_METHOD, OK, Ports
from support.servers import Server

from .conftest import Start

PACK = "client table"
PROTOCOLS = ["h3", "h2", "http/1.1"]
ANSWER: Settings = {"match": {"path_prefix": "/client/"}, "respond": {"body": OK}}
GRPC: Settings = {
    "match": {"path": GRPC_METHOD},
    "respond": {"content_type": "application/grpc", "headers": {"grpc-status": "0"}},
}


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server) -> Gateway:
    listeners = [
        listener(edge, protocols=PROTOCOLS, routes=[ANSWER, GRPC]),
        listener(edge, name="private", protocols=[{"alpn": "private/1", "relay": "app"}], no_alpn="refuse"),
    ]
    log = {"access": {"path": "access.log", "requests": True, "connections": True}}
    return shared_gateway(configuration(listeners, upstream("app", app.endpoint), logging=log))


def requested(gateway: Gateway, path: str) -> set[str]:
    """The protocols in which this was asked for."""
    lines = gateway.logged()
    return {line["alpn"] for line in lines if line["event"] == "request" and line["path"] == path}


def refused(gateway: Gateway, name: str) -> float:
    labels = {"listener": name, "reason": "no_application_protocol"}
    return gateway.metric("mitu_tls_handshake_failures_total", **labels)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=map(str, ROWS))
def test_a_client_gets(
    gateway: Gateway,
    authority: Authority,
    app: Server,
    tmp_path: Path,
    number: int,
    record_property: Callable[[str, object], None],
) -> None:
    row = ROWS[number]
    record_property(NUMBER, number)
    has(row)
    name = "private" if row.private else "edge"
    path = row.path or f"/client/{number}"
    refusals, reached = refused(gateway, name), app.accepted
    said = row.ask(Ports(authority.certificate, {name: gateway.address(name)[1]}, tmp_path, path))[name]
    if row.gets == REFUSED:
        assert not said.ok
        assert row.words in said.words, said.words
        eventually(lambda: refused(gateway, name) > refusals)
        assert requested(gateway, path) == set()
        assert app.accepted == reached
        record_property(GOT, REFUSED)
    else:
        assert said.ok, said.words
        got = eventually(lambda: requested(gateway, path))
        record_property(GOT, ", ".join(sorted(got)))
        assert got == {row.gets}


def has(row: Row) -> None:
    for wanted in row.programs:
        if not wanted.found():
            pytest.skip(f"{wanted.name} is missing: {wanted.advice}")
    if why := row.lacks():
        pytest.skip(why)


def test_a_client_that_says_goaway_is_let_go(gateway: Gateway, authority: Authority) -> None:
    async def leave() -> None:
        async with h3.connected(gateway.address(), authority.certificate) as client:
            assert client.http is not None
            assert (await client.get("/client/leaves")).status == 200
            control = client.http._local_control_stream_id
            assert control is not None
            client.send(control, h3.frame(h3.GOAWAY, h3.varint(0)))
            assert (await client.closed()).error_code == h3.NO_ERROR

    asyncio.run(leave())
