"""Watches one service in Kubernetes, for the tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mitu.config.discovery import Discover, KubernetesProvider
from mitu.discovery.instance import Instance
from mitu.discovery.kubernetes import Kubernetes

SOON = 30
"""Seconds, on a machine that is busy with other things."""

Known = dict[str, Instance]


class Watch:
    """What a provider says of one service. It is held up between two questions."""

    def __init__(self, provider: Kubernetes, discover: Discover) -> None:
        self._snapshots = provider.watch(discover)

    async def next(self) -> Known:
        """The next state, by the instances' identifiers."""
        snapshot = await asyncio.wait_for(anext(self._snapshots), SOON)
        return {one.id: one for one in snapshot.instances}

    async def until(self, good: Callable[[Known], bool]) -> Known:
        """The next state that is `good`. AssertionError, with the last one, when none comes."""
        known: Known = {}
        try:
            async with asyncio.timeout(SOON):
                while not good(known := await self.next()):
                    pass
        except TimeoutError:
            raise AssertionError(f"the last state is {known}") from None
        return known

    async def close(self) -> None:
        await self._snapshots.aclose()


@asynccontextmanager
async def watching(
    service: str, port: str | None = None, *, kubeconfig: Path | None = None, **settings: object
) -> AsyncIterator[Watch]:
    provider = Kubernetes(KubernetesProvider.model_validate({"kubeconfig": kubeconfig, **settings}))
    watch = Watch(provider, Discover(provider="kubernetes", service=service, port=port))
    try:
        yield watch
    finally:
        await watch.close()
        await provider.close()
