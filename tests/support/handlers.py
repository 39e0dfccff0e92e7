"""Python handlers that test configurations mount: `support.handlers:shout`."""

from __future__ import annotations

import asyncio


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line in capitals, and `bye` with the end."""
    while line := await reader.readline():
        if line.strip() == b"bye":
            break
        writer.write(line.upper())
        await writer.drain()


async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Fails on every connection."""
    await reader.readline()
    raise RuntimeError("this handler always fails")
