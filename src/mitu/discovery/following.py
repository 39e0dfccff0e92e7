"""The tasks that keep track of one upstream: its registry's watch, active checks, and probes of what it speaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial

from mitu.config.discovery import Provider as ProviderSettings
from mitu.config.model import Config
from mitu.config.tls import UpstreamTls
from mitu.config.upstreams import Upstream
from mitu.discovery.checker import Checker
from mitu.discovery.checks import Check
from mitu.discovery.probe import Probe
from mitu.discovery.provider import Backoff, Provider, ProviderError
from mitu.discovery.providers import make_provider
from mitu.discovery.store import Memory, Store
from mitu.discovery.tracked import Change, Tracked
from mitu.watch import fingerprint, named_files

log = logging.getLogger("mitu")

_PROBE_EVERY = 60.0
_PROBE_TIMEOUT = 5.0
_PROBES_AT_ONCE = 8

_LONGEST_PAUSE = 60.0
"""Seconds, after a fault of this gateway's own."""
_DISK = 5.0
"""Seconds that it may take to keep what is known."""


def is_tracked(upstream: Upstream) -> bool:
    """Whether anything of it can change without a reload."""
    return upstream.discover is not None or upstream.health_check is not None or upstream.probe_alpn


def settings_of(config: Config, upstream: Upstream) -> tuple[object, ...]:
    """What tracking `upstream` depends on, the content of its TLS files included: where all is equal, it can go on."""
    provider = _provider(config, upstream)
    files = fingerprint({*named_files(upstream), *named_files(provider)})
    return upstream, provider, config.discovery.state, _spoken_to(config, upstream), files


class Following:
    """Begins with its construction, on the running event loop; `stop` ends it.

    `settings`: its `settings_of`; `store`: where what is known is kept; `changed`: told of all that changes; `before`:
    what followed the upstream under other settings.
    """

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        settings: tuple[object, ...],
        store: Store,
        changed: Callable[[Change], None],
        before: Following | None,
    ) -> None:
        self.settings = settings
        self._provider: Provider | None = None
        memory = None
        named = _provider(config, upstream)
        if upstream.discover is not None and named is not None:
            self._provider = make_provider(named)
            # Secrets are redacted in it.
            discover = upstream.discover.model_dump(mode="json")
            source = {"provider": named.model_dump(mode="json"), "discover": discover}
            memory = Memory(store, upstream.name, source)
        self.tracked = Tracked(upstream, self._provider, memory, changed)
        if before is not None:
            self.tracked.take_over(before.tracked)
        self._names = _spoken_to(config, upstream)
        self._tasks = [self._begin(self.tracked.watch)]
        if upstream.health_check is not None:
            self._tasks.append(self._begin(self._check))
        if upstream.probe_alpn and upstream.tls is not None:
            self._tasks.append(self._begin(partial(self._probe, upstream.tls)))

    async def stop(self, successor: Following | None = None, *, forget: bool = False) -> None:
        """`successor`: who follows the same upstream instead; `forget`: what is kept of it, unless that is theirs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        memory = self.tracked.memory
        if memory is not None:
            theirs = None if successor is None else successor.tracked.memory
            if theirs is not None and theirs.source == memory.source:
                memory.abandon()
            else:
                await self._leave(memory, forget=forget)
        if self._provider is not None:
            await self._provider.close()

    async def _leave(self, memory: Memory, *, forget: bool) -> None:
        """Nothing waits for a disk that hangs, least of all the end of the gateway."""
        try:
            async with asyncio.timeout(_DISK):
                await (memory.forget() if forget else memory.close())
        except TimeoutError:
            log.warning("%s: what is known of it is not kept: the disk takes too long", self.tracked.name)

    def _begin(self, work: Callable[[], Coroutine[object, object, None]]) -> asyncio.Task[None]:
        async def guarded() -> None:
            pause = Backoff(longest=_LONGEST_PAUSE, lasting=_LONGEST_PAUSE)
            while True:
                begun = time.monotonic()
                try:
                    return await work()
                except Exception:  # Not silent, and no reason to go by an old state for ever.
                    log.exception("%s is followed no further for now", self.tracked.name)
                await pause.wait(time.monotonic() - begun)

        return asyncio.create_task(guarded(), name=f"follow {self.tracked.name}")

    async def _check(self) -> None:
        tracked, upstream = self.tracked, self.tracked.upstream
        if upstream.health_check is None:
            return
        try:
            check = Check(
                upstream.health_check,
                tls=upstream.tls,
                protocol=upstream.protocol,
                proxy_protocol=upstream.proxy_protocol,
            )
        except ProviderError as error:
            log.error("%s is not checked: it %s", tracked.name, error)
            return
        async with Checker(upstream.health_check, check, tracked.checked) as checker:
            while True:
                moved = tracked.next_move()
                checker.set_targets({one.id: one.address for one in tracked.instances})
                await moved

    async def _probe(self, tls: UpstreamTls) -> None:
        tracked = self.tracked
        slots = asyncio.Semaphore(_PROBES_AT_ONCE)

        async def ask(probe: Probe, address: str) -> tuple[str, tuple[str, ...] | None]:
            async with slots:
                try:
                    return address, await probe.ask(address)
                except ProviderError as error:
                    log.debug("%s", error)
                    return address, tracked.spoken.get(address)

        while True:
            moved = tracked.next_move()
            proxied = tracked.upstream.proxy_protocol
            probe = Probe(tls, self._names, _PROBE_TIMEOUT, proxy_protocol=proxied)
            silent = [one.address for one in tracked.instances if one.protocols is None]
            found = await asyncio.gather(*(ask(probe, address) for address in silent))
            tracked.heard({address: names for address, names in found if names is not None})
            await asyncio.wait((moved,), timeout=_PROBE_EVERY)


def _provider(config: Config, upstream: Upstream) -> ProviderSettings | None:
    return None if upstream.discover is None else config.discovery.provider(upstream.discover.provider)


def _spoken_to(config: Config, upstream: Upstream) -> tuple[str, ...]:
    """Which protocols an upstream may be spoken to in."""
    relayed = [
        protocol.alpn
        for listener in config.listeners
        for protocol in listener.protocols
        if protocol.relay == upstream.name
    ]
    routed = any(route.upstream == upstream.name for listener in config.listeners for route in listener.routes)
    return tuple(dict.fromkeys((*(("h2", "http/1.1") if routed else ()), *relayed)))
