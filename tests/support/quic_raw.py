"""Frames of QUIC (RFC 9000, section 19) that aioquic would not send by itself, put among those that it does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop

from support.h3 import Http3, varint

PING, CRYPTO, MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS, DATA_BLOCKED = 0x01, 0x06, 0x10, 0x11, 0x12, 0x14
STREAMS_BLOCKED, NEW_CONNECTION_ID, RETIRE_CONNECTION_ID, PATH_CHALLENGE, HANDSHAKE_DONE = 0x16, 0x18, 0x19, 0x1A, 0x1E
STREAM_WITH_OFFSET_AND_LENGTH = 0x0E


class _Queue(deque[bytes]):
    """Takes the place of the pings that are to be sent, and is emptied by those who send it."""

    def clear(self) -> None:
        pass


def numbers(kind: int, *values: int) -> bytes:
    """A frame that consists of integers."""
    return b"".join(map(varint, (kind, *values)))


def stream_frame(stream: int, offset: int, data: bytes) -> bytes:
    return numbers(STREAM_WITH_OFFSET_AND_LENGTH, stream, offset, len(data)) + data


async def push(client: Http3, frames: Iterable[bytes], seconds: float = 10) -> None:
    """Sends them in order, as fast as congestion control allows, unless the connection ends first."""
    quic, queue = client.quic, _Queue(frames)
    probe = quic._write_ping_frame

    def write(builder: QuicPacketBuilder, pending: Any = (), comment: str = "") -> None:
        if pending is not queue:
            probe(builder, pending, comment)
            return
        while queue:
            # The types of all frames are one byte.
            kind, rest = queue[0][0], queue[0][1:]
            try:
                builder.start_frame(kind, capacity=len(queue[0])).push_bytes(rest)
            except QuicPacketBuilderStop:
                return
            queue.popleft()

    quic._write_ping_frame, pings = write, quic._ping_pending
    quic._ping_pending = queue
    async with asyncio.timeout(seconds):
        while queue and client.ended is None:
            client.transmit()
            await asyncio.sleep(0.001)
    quic._write_ping_frame, quic._ping_pending = probe, pings


def withhold(client: Http3) -> None:
    """From here on the client gives the peer no more room, for data or for streams."""

    def nothing(**_: Any) -> None:
        pass

    client.quic._write_stream_limits = client.quic._write_connection_limits = nothing
