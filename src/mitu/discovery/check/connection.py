"""A connection to an instance, made as the data plane makes it: resolve, connect, PROXY header, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from mitu.config.types import ip_address, split_host_port

PROXY_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
"""A PROXY v2 header for a connection of the proxy's own, as health checks are (proxy-protocol.txt)."""

_MOST_AT_ONCE = 16384
"""Bytes of one line, and half of what is held unread."""

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_SSL_TEXT = re.compile(r"(?:\[[^]]*\] )?(.*?)(?: \(_ssl\.c:[0-9]+\))?", re.DOTALL)
_LONGEST = 120


class CheckError(Exception):
    """The instance does not do what it was asked. The text is one short line."""

    def __init__(self, reason: str) -> None:
        line = "".join(char if char.isprintable() else "?" for char in reason)
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…")


class NotCheckedError(Exception):
    """This process has too little to connect at all, which says nothing of the instance."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def alpn(self) -> str | None:
        """What the server chose by ALPN."""
        tls = self.writer.get_extra_info("ssl_object")
        return tls.selected_alpn_protocol() if tls else None


def host_of(address: str) -> str | None:
    """The host that a TLS server at `address` has to prove to be. None: a Unix socket has none."""
    parts = split_host_port(address)
    return parts[0] if parts else None


async def connect(address: str, preamble: bytes = b"") -> socket.socket:
    """A connected socket that has sent `preamble`, and does not block. CheckError, or NotCheckedError.

    Of several addresses of a name the first that can be connected to; a name is resolved each time.
    """
    if address.startswith("unix:"):
        return await _open(socket.AF_UNIX, address.removeprefix("unix:"), preamble)
    parts = split_host_port(address)
    if parts is None or not parts[0]:
        raise CheckError(f"not an address: {address}")
    failed = CheckError("its name has no address")
    for family, where in await _resolve(*parts):
        try:
            return await _open(family, where, preamble)
        except CheckError as error:
            failed = error
    raise failed


async def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    address = ip_address(host)
    if address is not None:
        # Without a thread of the pool, all of which may be waiting for a name server.
        return [(socket.AF_INET6 if address.version == 6 else socket.AF_INET, (host, port))]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise CheckError(str(error.strerror).lower()) from error
    except UnicodeError as error:
        raise CheckError(f"not a host name: {host}") from error
    return [(family, where) for family, _, _, _, where in found]


async def _open(family: int, where: Any, preamble: bytes) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        with contextlib.ExitStack() as closing:
            opened = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            opened.setblocking(False)
            await loop.sock_connect(opened, where)
            if family == socket.AF_UNIX:
                _must_be_connected(opened)
            await loop.sock_sendall(opened, preamble)
            closing.pop_all()
    except (OSError, ValueError) as error:
        raise _failed(error) from error
    return opened


def _must_be_connected(opened: socket.socket) -> None:
    # Where nobody accepts, the kernel answers EAGAIN and connects nothing; to the event loop that looks like progress.
    try:
        opened.getpeername()
    except OSError as error:
        raise CheckError("its queue of connections is full") from error


@contextlib.asynccontextmanager
async def talk(opened: socket.socket, tls: ssl.SSLContext | None, server_name: str | None) -> AsyncIterator[Stream]:
    """A stream over `opened`, which it takes, after the TLS handshake where there is TLS. CheckError.

    It ends in good order on this side, and waits for nothing on the other.
    """
    if tls is not None and not server_name:
        opened.close()
        raise CheckError("TLS to a Unix socket needs a server_name")
    try:
        reader, writer = await asyncio.open_connection(
            sock=opened, ssl=tls, server_hostname=server_name if tls else None, limit=_MOST_AT_ONCE
        )
    except (OSError, ValueError) as error:
        raise CheckError(f"handshake failed: {_text(error)}") from error
    try:
        yield Stream(reader, writer)
    except asyncio.LimitOverrunError as error:
        raise CheckError("its answer is too long") from error
    except asyncio.IncompleteReadError as error:
        raise CheckError("closed within its answer" if error.partial else "closed without an answer") from error
    except OSError as error:
        raise _failed(error) from error
    finally:
        # TLS has sent its close_notify by now; aborting keeps it from waiting for the peer's.
        writer.close()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _failed(error: OSError | ValueError) -> CheckError | NotCheckedError:
    ours = isinstance(error, OSError) and error.errno in _OURS
    return NotCheckedError(_text(error)) if ours else CheckError(_text(error))


def _text(error: OSError | ValueError) -> str:
    """An error in the words of whoever made it, without the marks of their source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        found = _SSL_TEXT.fullmatch(str(error))
        return (found[1] if found else str(error)).lower()
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "connection closed" if isinstance(error, ConnectionError) else str(error).lower()
