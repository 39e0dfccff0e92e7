"""The interface of registries, and what all of them need."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator
from typing import Protocol

from mitu.config.discovery import Discover
from mitu.config.tls import UpstreamTls
from mitu.discovery.instance import Snapshot

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
LASTING = 5.0


class ProviderError(Exception):
    """A registry cannot be asked, or its answer is no good. What was known before still holds."""


class Provider(Protocol):
    """A registry that can be watched. Its constructor opens nothing."""

    kind: str
    """`consul`, `etcd`, …: whose word its instances' health is."""

    def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        """Yields the whole state of a service, first as it is, then each time that it may have changed.

        ProviderError when the registry cannot be asked; whoever watches begins anew then. Never ends otherwise.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds. No watch is running any more."""
        ...


class Backoff:
    """Pauses between attempts: twice as long each time, with full jitter (Brooker, 2015), in seconds."""

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE, lasting: float = LASTING) -> None:
        self._first, self._longest, self._lasting = first, longest, lasting
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self) -> float:
        """How long to wait now. A fleet that lost its registry at one time does not come back to it at one time."""
        most = min(self._longest, self._first * 2 ** min(self._failures, 32))
        self._failures += 1
        return random.uniform(self._first / 2, most)  # noqa: S311 - not a secret

    async def wait(self, lasted: float = 0.0) -> None:
        """`lasted`: seconds for which it went well before. After more than `lasting` of them it begins anew."""
        if lasted > self._lasting:
            self.reset()
        await asyncio.sleep(self.next())


def tls_context(tls: UpstreamTls | None) -> ssl.SSLContext:
    """A client's TLS as configured: the system's authorities and full verification when nothing is said.

    ProviderError when a file that it names cannot be read.
    """
    settings = tls or UpstreamTls()
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate is not None:
            # With a password, so that nobody is asked for one at a terminal.
            context.load_cert_chain(settings.certificate, settings.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ProviderError(f"cannot load its TLS files: {error}") from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
