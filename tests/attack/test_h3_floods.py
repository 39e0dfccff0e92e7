"""HTTP/3 and QUIC clients that flood: with streams, resets, field sections, or frames that say nothing.

Each flood comes twice. It costs a bounded amount of memory, computing and work upstream, nobody else notices, and
nothing of it is left. Where it is more than any client could mean, its connection is ended. The floods are in
`h3_floods`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from aioquic.quic.connection import QuicConnection

from attack.h3_floods import FLOODS, HEALTH, SETTINGS, STREAMS, Flood, room
from support import h3
from support.ground import Ground, endure, ground, nothing_is_left, others_hardly_notice
from support.h3 import connected

PACK = "h3 floods"


@pytest.fixture(scope="module")
def flooded() -> Iterator[Ground]:
    protocols = ["h3", "h2", "http/1.1"]
    with ground(protocols=protocols, limits={"concurrent_streams": STREAMS}, timeouts={"handshake": "1s"}) as made:
        yield made


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
def test_flood(flooded: Ground, flood: Flood, record_property: Callable[[str, object], None]) -> None:
    async def run() -> None:
        async with connected(flooded.address, flooded.ca, raw=True) as client:
            client.open(SETTINGS, one_way=True)
            await flood.run(client, flooded)
            if flood.ends in ("excessive", "error"):
                assert (await client.closed()).error_code not in (0, h3.NO_ERROR)
            if flood.ends == "excessive":
                assert (await client.closed()).error_code == h3.EXCESSIVE_LOAD
            if flood.ends == "open":
                assert await room(client)
                answer = await client.answer(client.open(HEALTH, end=True))
                assert h3.status(h3.frames(answer.raw)[0][1]) == 200

    endure(flooded, lambda: asyncio.run(run()), flood.begun, record_property)


def first_packets(ground: Ground) -> bytes:
    """The beginning of a handshake that does not go on."""
    client = QuicConnection(configuration=h3.configuration(ground.ca, server_name="localhost"))
    client.connect(ground.address, now=time.monotonic())
    return client.datagrams_to_send(now=time.monotonic())[0][0]


def begun(version: bytes) -> bytes:
    return b"\xc0" + version + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)


def unsealed(_: Ground) -> bytes:
    """Of the right form, but nobody has sealed it."""
    return (begun(b"\0\0\0\1") + b"\x00\x44\x90").ljust(1200, b"x")


def of_other_versions(_: Ground) -> bytes:
    return begun(b"\x1a\x2a\x3a\x4a").ljust(1200, b"\0")


def of_nobody(_: Ground) -> bytes:
    """Of a connection that there is none of."""
    return b"\x40" + os.urandom(100)


def short(_: Ground) -> bytes:
    return os.urandom(20)


DATAGRAMS = (first_packets, unsealed, of_other_versions, of_nobody, short)


@pytest.mark.parametrize("datagram", DATAGRAMS, ids=lambda datagram: datagram.__name__)
def test_datagrams(
    flooded: Ground, datagram: Callable[[Ground], bytes], record_property: Callable[[str, object], None]
) -> None:
    """From whom there is no connection, and who may be elsewhere: they get no more than what they send."""
    datagrams = [datagram(flooded) for _ in range(500)]

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(flooded.address)
            client.setblocking(False)
            answered = 0
            for one in datagrams:
                client.send(one)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        answered += len(client.recv(2048))
            assert answered <= sum(map(len, datagrams))

    endure(flooded, run, 0, record_property)


def test_others_hardly_notice(flooded: Ground, record_property: Callable[[str, object], None]) -> None:
    others_hardly_notice(flooded, record_property)


def test_nothing_is_left(flooded: Ground, record_property: Callable[[str, object], None]) -> None:
    nothing_is_left(flooded, record_property)
