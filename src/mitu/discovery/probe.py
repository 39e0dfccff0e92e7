"""Finds out by handshakes which protocols a TLS server speaks."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

from mitu.config.tls import UpstreamTls
from mitu.discovery.check.connection import PROXY_LOCAL, CheckError, NotCheckedError, connect, host_of, talk
from mitu.discovery.provider import ProviderError, tls_context

_NONE_OF_THESE = "no application protocol"
"""The alert (RFC 7301), as OpenSSL calls it."""


class Probe:
    """Which of `names` servers speak. The constructor reads no file yet.

    `h3` is left out: it is negotiated over QUIC, and no handshake over TCP tells of it. `timeout`: in seconds, for all
    handshakes with a server together. `proxy_protocol`: begin with a PROXY v2 header.
    """

    def __init__(
        self, tls: UpstreamTls, names: Sequence[str], timeout: float, *, proxy_protocol: bool = False
    ) -> None:
        self._tls, self._timeout = tls, timeout
        self._names = tuple(name for name in dict.fromkeys(names) if name != "h3")
        self._preamble = PROXY_LOCAL if proxy_protocol else b""
        # One for each list that is offered: the system's authorities take their time to read.
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}

    async def ask(self, address: str) -> tuple[str, ...]:
        """Those of the names, in their order, that the server at `address` has chosen when they were offered.

        All are offered, then those that it has not chosen yet, until it chooses none: one handshake more than it has
        protocols. A server that takes no notice of ALPN has confirmed none. ProviderError when the server cannot be
        reached, refuses a handshake for another reason, or chooses what it was not offered.
        """
        left = self._names
        try:
            async with asyncio.timeout(self._timeout):
                while left:
                    context = await self._offering(left)
                    opened = await connect(address, self._preamble)
                    chosen = await _choice(opened, context, self._tls.server_name or host_of(address))
                    if chosen is None:
                        break
                    if chosen not in left:
                        raise ProviderError(f"cannot probe {address}: it chooses a protocol that was not offered")
                    left = tuple(name for name in left if name != chosen)
        except TimeoutError as error:
            raise ProviderError(f"cannot probe {address}: not done within {self._timeout:g} s") from error
        except (CheckError, NotCheckedError) as error:
            raise ProviderError(f"cannot probe {address}: {error}") from error
        return tuple(name for name in self._names if name not in left)

    async def _offering(self, names: tuple[str, ...]) -> ssl.SSLContext:
        if names not in self._contexts:
            context = await asyncio.to_thread(tls_context, self._tls)
            context.set_alpn_protocols(names)
            self._contexts[names] = context
        return self._contexts[names]


async def _choice(opened: socket.socket, context: ssl.SSLContext, server_name: str | None) -> str | None:
    try:
        async with talk(opened, context, server_name) as stream:
            return stream.alpn
    except CheckError as error:
        if _NONE_OF_THESE in str(error):
            return None
        raise
