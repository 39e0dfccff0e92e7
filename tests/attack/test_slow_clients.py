"""Clients that take their time: they say half of something, or byte by byte, or do not read, or are gone.

They all come at once, several of each. The timeouts that are configured end them, the access log says why, they cost
little meanwhile, and nobody else notices. What they do is in `slow_clients`, and for HTTP/3 in `slow_h3_clients`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from aioquic.quic.connection import QuicConnection

from attack.slow_clients import CASES, HELD, NO_ROOM, Case, Slow
from attack.slow_h3_clients import H3_CASES, H3Case, ask, settings
from support import h3
from support.gateway import Settings
from support.ground import MIB, Cost, Ground, ground
from support.h2 import PREFACE
from support.h2_raw import Raw, get, window
from support.h3 import connected
from support.net import eventually
from support.quic_raw import withhold

PACK = "slow clients"

EACH = 3
"""Clients of a kind."""
TICK = 0.05
"""Seconds between two bytes."""
TIMEOUTS = {"handshake": "1s", "request_header": "1s", "idle": "1s", "relay_idle": "30s"}
PATIENCE, LATE = 0.8, 8.0
"""Seconds before which nothing has to end, and by which a shared machine has ended everything."""
FOR_EACH, FOR_RESPONSE = MIB // 8, MIB
"""Bytes that a client may cost, and what may be buffered for a response that is not read."""


@dataclass
class Outcome:
    """What the access log tells of each client, by case; and the cost of all together."""

    told: dict[str, list[list[Settings]]]
    cost: Cost


@pytest.fixture(scope="module")
def slowed() -> Iterator[Ground]:
    behind = {"name": "behind", "proxy_protocol": {"trusted": ["127.0.0.0/8"]}, "timeouts": TIMEOUTS}
    with ground(behind, protocols=["h3", "h2", "http/1.1"], timeouts=TIMEOUTS, timeout="1s") as made:
        yield made


def told(ground: Ground, addresses: dict[str, list[str]], transport: str) -> dict[str, list[list[Settings]]]:
    """The access log's lines by case, and by client."""
    lines = defaultdict(list)
    for line in ground.gateway.logged():
        if (line.get("alpn") == "h3") == (transport == "quic"):
            lines[line["client"]].append(line)
    return {name: [lines[address] for address in of_case] for name, of_case in addresses.items()}


@pytest.fixture(scope="module")
def outcome(slowed: Ground) -> Outcome:
    clients: list[tuple[str, Slow]] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            for _, client in list(clients):
                client.tick()

    ticking = threading.Thread(target=tick, daemon=True)
    with slowed.watched() as cost:
        ticking.start()
        for case in itertools.chain.from_iterable(itertools.repeat(case, EACH) for case in CASES):
            # Without the right to go without a word they are skipped.
            with contextlib.suppress(PermissionError):
                clients.append((case.name, case.open(slowed)))
        with contextlib.suppress(AssertionError):
            # Who is still there is found missing in the log.
            eventually(lambda: slowed.active() == 1, LATE)
        over.set()
        ticking.join()
    addresses = defaultdict(list)
    for name, client in clients:
        addresses[name].append(client.address)
        # Not before everybody has ended: another one would get the port.
        client.stream.close()
    return Outcome(told(slowed, addresses, "tcp"), cost)


@pytest.fixture(scope="module")
def h3_outcome(slowed: Ground) -> Outcome:
    addresses = defaultdict(list)

    async def one(case: H3Case) -> None:
        async with connected(slowed.address, slowed.ca, raw=True) as client:
            assert client._transport is not None
            addresses[case.name].append(f"127.0.0.1:{client._transport.get_extra_info('sockname')[1]}")
            client.open(settings(), one_way=True)
            case.begin(client)
            for number in range(round(LATE / TICK)):
                if client.ended is not None or case.tick(client, number):
                    break
                await asyncio.sleep(TICK)

    async def run() -> None:
        await asyncio.gather(*(one(case) for case in H3_CASES * EACH))

    with slowed.watched() as cost:
        asyncio.run(run())
    return Outcome(told(slowed, addresses, "quic"), cost)


def check(case: Case | H3Case, clients: list[list[Settings]]) -> None:
    assert len(clients) == EACH
    for lines in clients:
        requests = [line for line in lines if line["event"] == "request"]
        ends = [line for line in lines if line["event"] != "request"]
        assert [end["event"] for end in ends] == [case.event]
        assert ends[0].get("reason", ends[0].get("error")) == case.why
        assert case.soon or seconds(ends[0]) > PATIENCE
        answers = {(line["status"], line.get("reason")) for line in requests}
        assert answers == ({(case.status, case.reason)} if case.status else set())


def seconds(end: Settings) -> float:
    """How long it took."""
    if end["event"] == "connection":
        return float(end["duration_ms"]) / 1e3
    return float(end["stages"]["total_us"]) / 1e6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_slow_client(outcome: Outcome, case: Case) -> None:
    if case.name not in outcome.told:
        pytest.skip("CAP_NET_ADMIN is missing: without it no connection can be closed so that nobody is told")
    check(case, outcome.told[case.name])


@pytest.mark.parametrize("case", H3_CASES, ids=lambda case: case.name)
def test_slow_client_on_h3(h3_outcome: Outcome, case: H3Case) -> None:
    check(case, h3_outcome.told[case.name])


@pytest.mark.parametrize("protocol", ["tcp", "quic"])
def test_what_they_cost(
    outcome: Outcome, h3_outcome: Outcome, protocol: str, record_property: Callable[[str, object], None]
) -> None:
    of = outcome if protocol == "tcp" else h3_outcome
    clients = [lines for of_case in of.told.values() for lines in of_case]
    unread = sum(line.get("path") == "/endless" for lines in clients for line in lines)
    record_property("MiB more at most", of.cost.grown / MIB)
    record_property("seconds of CPU", of.cost.cpu)
    assert of.cost.grown < len(clients) * FOR_EACH + unread * FOR_RESPONSE, of.cost
    assert of.cost.cpu < 5, of.cost


def test_handshakes_that_are_abandoned_on_quic(slowed: Ground) -> None:
    labels = {"reason": "timeout", "listener": "edge"}
    before = slowed.gateway.metric("mitu_tls_handshake_failures_total", **labels)
    with contextlib.ExitStack() as ends, slowed.watched() as cost:
        for _ in range(5 * EACH):
            client = QuicConnection(configuration=h3.configuration(slowed.ca, server_name="localhost"))
            client.connect(slowed.address, now=time.monotonic())
            sock = ends.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for datagram, _ in client.datagrams_to_send(now=time.monotonic()):
                sock.sendto(datagram, slowed.address)
        eventually(lambda: slowed.gateway.metric("mitu_tls_handshake_failures_total", **labels) == before + 5 * EACH)
    assert cost.grown < 5 * EACH * FOR_EACH + 4 * MIB, cost


def test_a_stream_that_stalls_on_h2_beside_one_that_moves(slowed: Ground) -> None:
    with slowed.watched(), Raw(slowed.address, slowed.ca, PREFACE + NO_ROOM + HELD) as client:
        eventually(lambda: slowed.upstream.open >= 8)
        streams = iter(range(1001, 3001, 2))

        def ended() -> bool:
            moving = next(streams)
            client.push(get(moving, b"/health") + window(moving, 1000))
            client.pull(1, moving)
            return len(client.resets) == 8 or client.ended is not None

        eventually(ended, LATE, TICK)


def test_a_stream_that_stalls_on_h3_beside_one_that_moves(slowed: Ground) -> None:
    async def run() -> None:
        async with connected(slowed.address, slowed.ca, raw=True, max_data=1 << 24, max_stream_data=1 << 16) as client:
            client.open(settings(), one_way=True)
            stalled = [client.open(ask("/endless"), end=True) for _ in range(8)]
            withhold(client)
            async with asyncio.timeout(LATE):
                while client.ended is None and any(client.answers[one].reset is None for one in stalled):
                    await client.answer(client.open(ask("/health"), end=True))
                    await asyncio.sleep(TICK)

    with slowed.watched():
        asyncio.run(run())
