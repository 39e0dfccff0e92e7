"""telemetry/1: a line protocol for readings. It begins after the handshake, on the decrypted stream.

temperature 21.5      a reading; the answer is `ok`
mean temperature      the mean of this connection's readings
bye                   the end
"""

from __future__ import annotations

import asyncio
from statistics import fmean

from mitu import Connection


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
    """One connection, from its first line to its end."""
    readings: dict[str, list[float]] = {}
    writer.write(f"hello {connection.client[0]}, this is {connection.alpn} over {connection.tls_version}\n".encode())
    while line := await reader.readline():
        match line.decode("utf-8", "replace").split():
            case ["bye"]:
                break
            case ["mean", name] if name in readings:
                writer.write(f"{fmean(readings[name]):g}\n".encode())
            case [name, value] if value.replace(".", "", 1).isdecimal():
                readings.setdefault(name, []).append(float(value))
                writer.write(b"ok\n")
            case _:
                writer.write(b"what?\n")
        # Waits while the client is slow to read: that costs this connection and no other.
        await writer.drain()
