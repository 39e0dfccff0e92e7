"""Python handlers that test configurations mount: `support.handlers:shout`."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from mitu import Connection


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


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
    """Says in JSON whose connection it is, and then echoes."""
    writer.write(json.dumps(asdict(connection)).encode() + b"\n")
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says hello, stays as long as it may, and notes its end in the file that the client has named."""
    file = (await reader.readline()).decode().strip()
    writer.write(b"hello\n")
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.to_thread(Path(file).write_text, "ended")


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends, as it thinks, the program."""
    await reader.readline()
    sys.exit("goodbye")


class Group:
    """A handler may be a member of something."""

    @staticmethod
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shout(reader, writer)


async def greedy(reader: asyncio.StreamReader) -> None:
    """Takes too little to be a handler."""


def blocking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Is no coroutine function."""


NOTHING = 7
