"""Watches one service in DNS, for the tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from mitu.config.discovery import Discover, DnsProvider
from mitu.discovery.dns import Dns
from mitu.discovery.instance import Snapshot
from mitu.discovery.provider import ProviderError

SOON = 20
"""Seconds, on a machine that is busy with other things."""


class Watch:
    """What a provider says of one service."""

    def __init__(self, settings: DnsProvider, service: str, port: str | None) -> None:
        discover = Discover.model_validate({"provider": "dns", "service": service, "port": port})
        self._snapshots = Dns(settings).watch(discover)

    async def next(self, timeout: float = SOON) -> Snapshot:  # noqa: ASYNC109 - of the test, not of what it tests
        return await asyncio.wait_for(anext(self._snapshots), timeout)

    async def addresses(self) -> list[str]:
        return [one.address for one in (await self.next()).instances]

    async def close(self) -> None:
        await self._snapshots.aclose()


@asynccontextmanager
async def asking(
    servers: list[str], service: str, port: str | None = None, **settings: object
) -> AsyncIterator[Watch]:
    watch = Watch(DnsProvider.model_validate({"servers": servers, "min_ttl": "100ms", **settings}), service, port)
    try:
        yield watch
    finally:
        await watch.close()


async def refused(asked: AbstractAsyncContextManager[Watch]) -> str:
    async with asked as watch:
        with pytest.raises(ProviderError) as told:
            await watch.next()
    print(told.value)
    return str(told.value)
