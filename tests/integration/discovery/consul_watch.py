"""Watches one service in Consul, for the tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from mitu.config.discovery import ConsulProvider, Discover
from mitu.discovery.consul import Consul
from mitu.discovery.instance import Instance, Snapshot
from mitu.discovery.provider import ProviderError

SOON = 30.0
"""Seconds, on a machine that is busy with other things."""

Instances = dict[str, Instance]


class Watch:
    """What a provider says of one service, in the order in which it does."""

    def __init__(self, provider: Consul, discover: Discover) -> None:
        self._said: asyncio.Queue[Instances | ProviderError] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen(provider, discover))

    async def _listen(self, provider: Consul, discover: Discover) -> None:
        try:
            async with aclosing(provider.watch(discover)) as snapshots:
                async for snapshot in snapshots:
                    self._said.put_nowait(by_name(snapshot))
        except ProviderError as error:
            self._said.put_nowait(error)

    async def next(self) -> Instances:
        """By their names. ProviderError when it says that."""
        async with asyncio.timeout(SOON):
            said = await self._said.get()
        if isinstance(said, ProviderError):
            raise said
        return said

    async def until(self, good: Callable[[Instances], bool]) -> Instances:
        """The first that is `good`: on the way to it Consul may show a change in several steps."""
        while True:
            said = await self.next()
            if good(said):
                return said

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def by_name(snapshot: Snapshot) -> Instances:
    """Identifiers are left to the tests of them: nodes have other names each time."""
    return {one.name: replace(one, id=one.name) for one in snapshot.instances}


def provider(address: str, *, margin: float = SOON, **settings: object) -> Consul:
    return Consul(ConsulProvider.model_validate({"address": address, **settings}), margin=margin)


@asynccontextmanager
async def watched(asked: Consul, service: str, tag: str | None = None) -> AsyncIterator[Watch]:
    watch = Watch(asked, Discover(provider="consul", service=service, tag=tag))
    try:
        yield watch
    finally:
        await watch.close()
        await asked.close()


async def refused(asked: Consul, service: str = "web") -> str:
    """Why it cannot be asked, which is the first that it says."""
    async with watched(asked, service) as watch:
        with pytest.raises(ProviderError) as told:
            await watch.next()
    print(told.value)
    return str(told.value)
