"""The running data plane, called where its caller does not wait for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from mitu import _native

P = ParamSpec("P")
T = TypeVar("T")

NOTHING = "{}"
"""A document that says nothing."""

_THREADS = 4


class DataPlane:
    """`server` is None until it has been started."""

    def __init__(self) -> None:
        self.server: _native.Server | None = None
        # Its own, since names that do not resolve can hold up all of asyncio's.
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(_THREADS, "mitu-data-plane")

    async def call(self, function: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
        """Call what may block in it."""
        called = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, called)

    async def discover(self, discovered: str) -> None:
        """Make what is known of the upstreams (JSON) live."""
        if self.server is not None and self._threads is not None:
            await self.call(self.server.discover, discovered)

    async def endpoints(self) -> str:
        """What it knows of the upstreams' endpoints (JSON)."""
        if self.server is None or self._threads is None:
            return NOTHING
        return await self.call(self.server.endpoints)

    async def end(self) -> None:
        """It has been stopped. What is still asked of it asyncio's own threads have time for."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
