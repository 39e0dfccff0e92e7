"""HTTP/1.1: one GET request, of whose answer the status counts."""

from __future__ import annotations

import re

from mitu.discovery.check.connection import CheckError, Stream

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
_SWITCHING_PROTOCOLS = 101
_MOST_HEAD = 65536


async def get(stream: Stream, host: str, path: str, agent: str) -> int:
    """The status of the answer, once its head is whole; the body is left where it is. CheckError."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    stream.writer.write(request.encode())
    # Of interim answers and the final one together.
    left = _MOST_HEAD
    while True:
        begun = await stream.reader.readexactly(len(_BEGINNING))
        # A line of something else may never end.
        line = begun + await stream.reader.readuntil(b"\n") if begun == _BEGINNING else begun
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            raise CheckError("not HTTP/1.1")
        while line not in (b"\r\n", b"\n"):
            left -= len(line)
            if left < 0:
                raise CheckError("its answer is too long")
            line = await stream.reader.readuntil(b"\n")
        status = int(found[1])
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            return status
