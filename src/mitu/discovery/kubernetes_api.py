"""Requests to a Kubernetes API server, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from mitu.config.discovery import KubernetesProvider
from mitu.discovery.exec_credential import Credential, Plugin
from mitu.discovery.http_answer import read_body, reason
from mitu.discovery.kubeconfig import find
from mitu.discovery.kubernetes_access import Access
from mitu.discovery.kubernetes_objects import Status, parse
from mitu.discovery.provider import ProviderError

CONNECT = 10.0
"""Seconds for a connection, TLS included."""
LARGEST_PAGE = 64 << 20
LONGEST_LINE = 16 << 20
"""Bytes. A slice has 1000 endpoints at most, of 100 addresses each, and etcd refuses what is above 1.5 MiB."""
_LONGEST_REFUSAL = 1 << 16


class GoneError(Exception):
    """What was asked for is of a time that the API server does not know any more."""


class Api:
    """As whom, and where, is found out anew for each request."""

    def __init__(self, settings: KubernetesProvider) -> None:
        self._settings = settings
        self._issued: tuple[Plugin, Credential] | None = None
        self._plugin_runs = asyncio.Lock()

    async def access(self) -> Access:
        """ProviderError when it cannot be found, or its plugin fails."""
        found = await asyncio.to_thread(find, self._settings)
        if found.plugin is None:
            return found
        async with self._plugin_runs:
            if self._issued is None or self._issued[0] != found.plugin or not self._issued[1].holds():
                self._issued = (found.plugin, await found.plugin.run())
            return found.issued(self._issued[1])

    @asynccontextmanager
    async def get(
        self, path: str, parameters: Mapping[str, str], limits: aiohttp.ClientTimeout, what: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whose status is 200; it comes within `limits`.

        GoneError when the API server says so; ProviderError, which names `what` was wanted, on every other trouble.
        """
        access = await self.access()
        tls = await asyncio.to_thread(access.tls) if access.server.startswith("https:") else None
        # What is compressed has no bound that holds for what comes out of it.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if access.token is not None:
            headers["Authorization"] = f"Bearer {access.token}"
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True),
                    timeout=limits,
                    headers=headers,
                    auto_decompress=False,
                ) as session,
                session.get(
                    access.server + path,
                    params=parameters,
                    allow_redirects=False,
                    server_hostname=access.server_name,
                ) as response,
            ):
                if response.status != 200:
                    raise await self._refusal(response, access, what)
                yield response
        except TimeoutError as error:
            raise ProviderError(f"cannot {what}: {access.server} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderError(f"cannot {what} at {access.server}: {reason(error)}") from error

    async def _refusal(self, response: aiohttp.ClientResponse, access: Access, what: str) -> Exception:
        if response.status == 410:
            return GoneError()
        if response.status == 401:
            self._issued = None
            return ProviderError(f"cannot {what}: {access.server} does not accept the credentials")
        try:
            status = parse(Status, await body(response, _LONGEST_REFUSAL), "the refusal")
        except ProviderError:
            status = Status()
        if response.status == 404:
            return ProviderError(f"cannot {what}: {access.server} has none, as Kubernetes has them from 1.21 on")
        permission = "; its Role wants 'list' and 'watch' on 'endpointslices'" if response.status == 403 else ""
        told = message(status) or "no reason given"
        return ProviderError(f"cannot {what}: {access.server} answers {response.status}: {told}{permission}")


def message(status: Status) -> str:
    """What the API server says, fit for one line of a log."""
    return _line(status.message)


def _line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:400])


async def body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """ProviderError when there is more than `limit` bytes of it."""
    return bytes(await read_body(response, limit, f"the API server answers with more than {limit >> 10} KiB"))


async def lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Each whole line. ProviderError when one is longer than LONGEST_LINE; what stands after the last is left out."""
    held = bytearray()
    async for chunk in response.content.iter_any():
        first, *others = chunk.split(b"\n")
        held += first
        for other in others:
            yield bytes(held)
            held = bytearray(other)
        if len(held) > LONGEST_LINE:
            raise ProviderError(f"the API server sends an event of more than {LONGEST_LINE >> 20} MiB")
