"""Answers that no name server can be made to give, or only one that is broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rrset
import pytest

from mitu.discovery.instance import Snapshot

from .dns_watch import asking, refused

Reply = Callable[[dns.message.Message], bytes]


class Hand(asyncio.DatagramProtocol):
    """Answers every question with what `reply` makes of it."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self.asked.append(str(query.question[0]))
        self._transport.sendto(self._reply(query), addr)


@asynccontextmanager
async def answering(reply: Reply) -> AsyncIterator[tuple[str, Hand]]:
    transport, hand = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Hand(reply), local_addr=("127.0.0.1", 0)
    )
    try:
        yield f"127.0.0.1:{transport.get_extra_info('sockname')[1]}", hand
    finally:
        transport.close()


def response(*records: str, flags: int = 0) -> Reply:
    def reply(query: dns.message.Message) -> bytes:
        made = dns.message.make_response(query)
        made.flags |= flags
        made.answer += [dns.rrset.from_text_list(*_parts(record)) for record in records]
        return made.to_wire()

    return reply


def _parts(record: str) -> tuple[str, int, str, str, list[str]]:
    name, kind, text = record.split(" ", 2)
    return name, 60, "IN", kind, [text]


def an_address_that_does_not_exist(query: dns.message.Message) -> bytes:
    made = dns.message.from_wire(response("www.api.test. A 10.0.0.1")(query))
    made.set_rcode(dns.rcode.NXDOMAIN)
    return made.to_wire()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda query: b"", id="nothing"),
        pytest.param(lambda query: query.to_wire(), id="the question"),
        pytest.param(lambda query: response()(query)[:-3], id="half an answer"),
        pytest.param(lambda query: b"\xff" * 512, id="noise"),
        pytest.param(response("www.api.test. CNAME www.api.test."), id="an alias of itself"),
        pytest.param(response(flags=dns.flags.TC), id="cut, and no answer by TCP"),
        pytest.param(response(), id="neither an answer nor a denial"),
        pytest.param(an_address_that_does_not_exist, id="an address that does not exist"),
    ],
)
async def test_nonsense(reply: Reply) -> None:
    async with answering(reply) as (server, hand):
        await refused(asking([server], "www.api.test", "80", timeout="500ms"))
        assert hand.asked


@pytest.mark.parametrize("records", [(), ("www.api.test. CNAME edge.api.test.",)])
async def test_a_recursive_server_that_denies_without_a_soa(records: tuple[str, ...]) -> None:
    """It has looked, so there are none; how long that holds it does not say."""
    async with (
        answering(response(*records, flags=dns.flags.RA)) as (server, hand),
        asking([server], "www.api.test", "80") as watch,
    ):
        assert await watch.next() == Snapshot(())
        begun = len(hand.asked)
        with pytest.raises(TimeoutError):
            await watch.next(2)
        assert len(hand.asked) > begun


async def test_only_what_is_not_known_is_asked_for() -> None:
    """Not what came along with the SRV records, nor those again when an address runs out before they do."""

    def reply(query: dns.message.Message) -> bytes:
        made = dns.message.make_response(query)
        name, kind = query.question[0].name, query.question[0].rdtype
        if kind == dns.rdatatype.SRV:
            made.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", "0 1 80 t.api.test."))
            made.additional.append(dns.rrset.from_text("t.api.test.", 2, "IN", "A", "10.0.0.1"))
        elif kind == dns.rdatatype.A:
            made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "10.0.0.2"))
        else:
            made.authority.append(dns.rrset.from_text("api.test.", 60, "IN", "SOA", "ns.test. admin.test. 1 2 3 4 60"))
        return made.to_wire()

    async with answering(reply) as (server, hand), asking([server], "_http._tcp.api.test") as watch:
        assert await watch.addresses() == ["10.0.0.1:80"]
        assert await watch.addresses() == ["10.0.0.2:80"]
    assert hand.asked == ["_http._tcp.api.test. IN SRV", "t.api.test. IN AAAA", "t.api.test. IN A"]
