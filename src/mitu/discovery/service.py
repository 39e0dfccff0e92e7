"""Makes the gateway follow its upstreams: what is known of them goes to the data plane as it changes.

A configuration is prepared, then taken over or given up, as a reload goes: whatever it tracks that the live one tracks
too goes on undisturbed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from mitu.alpn.decisions import Decisions
from mitu.alpn.ranking import Ranking
from mitu.alpn.sources import Ranked, ranked
from mitu.alpn.steady import Steady
from mitu.config.model import Config
from mitu.data_plane import DataPlane
from mitu.discovery import report, traffic
from mitu.discovery.following import Following, is_tracked, settings_of
from mitu.discovery.plan import Plan
from mitu.discovery.store import Store, default_folder
from mitu.discovery.tracked import Change

log = logging.getLogger("mitu")

_LOOK_EVERY = 1.0
"""Seconds between two looks at what traffic shows. The data plane itself acts on that at once."""

_TOGETHER = 0.01
"""Changes that come closer together than this, in seconds, are one: registries tell of a deployment piece by piece."""

_MOST_CHANGES = 10_000
"""That wait to be told as causes, should nothing of them be made live; the first ones tell most."""

_AGAIN = 1.0
"""Seconds after which something is made live again that could not be."""


class Discovery:
    """Follows what the configurations of one gateway name, for its data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self.decisions = Decisions()
        self._plane = plane
        self._plan: Plan | None = None
        self._orders: dict[str, Ranking] = {}
        self._changes: list[Change] = []
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closed = False
        # What is made live belongs to the configuration that is, so a reload and a change take turns.
        self._making_live = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    # -- configurations -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def following(self, config: Config) -> AsyncGenerator[str]:
        """What is known of the upstreams of `config` (JSON), for the body to make live. They are followed from here
        on, unless it fails.
        """
        plan = await self._prepare(config)
        live = {} if self._plan is None else self._plan.following
        try:
            async with self._making_live:
                document, rankings, _ = plan.known(time.monotonic())
                yield document
                self._plan, self._orders = plan, rankings
        except BaseException:
            await _stop(((one, live.get(one.tracked.name)) for one in plan.new), forget=True)
            raise
        kept = {id(one) for one in plan.following.values()}
        gone = [(one, plan.following.get(name)) for name, one in live.items() if id(one) not in kept]
        await _stop((pair for pair in gone if pair[1] is not None), forget=True)
        await _stop((pair for pair in gone if pair[1] is None), forget=False)
        if self._closed:
            await self._end()
            return
        if not self._tasks and plan.following:
            self._tasks = [asyncio.create_task(self._publish_for_ever()), asyncio.create_task(self._look_for_ever())]
        # What changed between the document and now.
        self._wake.set()

    async def _prepare(self, config: Config) -> Plan:
        """Begin to follow what `config` names, and wait a while for what has not been asked yet."""
        live = {} if self._plan is None else self._plan.following
        following: dict[str, Following] = {}
        new: list[Following] = []
        try:
            store = Store(config.discovery.state or default_folder())
            for upstream in filter(is_tracked, config.upstreams):
                settings = await asyncio.to_thread(settings_of, config, upstream)
                known = live.get(upstream.name)
                if known is None or known.settings != settings:
                    known = Following(config, upstream, settings, store, self._changed, known)
                    new.append(known)
                following[upstream.name] = known
            await self._first_words(new, config.discovery.start_timeout.total_seconds())
        except BaseException:
            await _stop(((one, live.get(one.tracked.name)) for one in new), forget=True)
            raise
        rankings = tuple(one for listener in config.listeners for one in ranked(listener))
        before = {} if self._plan is None else self._plan.steady
        steady = {one.name: before.get(one.name, Steady(one.hold)).copy(one.hold) for one in rankings}
        return Plan(config, following, rankings, steady, new)

    async def _first_words(self, new: list[Following], timeout: float) -> None:  # noqa: ASYNC109 - a bound
        """Wait until all have been asked, for `timeout` seconds at most, and no longer than there is time for."""
        asked = asyncio.gather(*(one.tracked.answered.wait() for one in new))
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait((asked, hurry), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (asked, hurry):
                one.cancel()
            await asyncio.gather(asked, hurry, return_exceptions=True)

    def hurry(self) -> None:
        """The gateway is about to end: nothing is waited for any more."""
        self._hurry.set()

    async def close(self) -> None:
        """Follow nothing any more."""
        self._closed = True
        self.hurry()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        # The plan stays: what was known is told for as long as the gateway answers.
        if self._plan is not None:
            await _stop(((one, None) for one in self._plan.following.values()), forget=False)

    # -- changes ------------------------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if len(self._changes) < _MOST_CHANGES:
            self._changes.append(change)
        self._wake.set()

    async def _publish_for_ever(self) -> None:
        timeout: float | None = None
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
                await asyncio.sleep(_TOGETHER)
            except TimeoutError:
                pass  # Something that was held back is due.
            self._wake.clear()
            try:
                async with self._making_live:
                    timeout = await self._publish()
            except Exception:  # The last good state is in force.
                log.exception("what is known of the upstreams could not be made live")
                # Whatever changes meanwhile: else a fault would be told, and paid for, at the rate of changes.
                await asyncio.sleep(_AGAIN)
                self._wake.set()

    async def _look_for_ever(self) -> None:
        """What real traffic shows is evidence as well."""
        failing = False
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                found = traffic.seen(await self._plane.endpoints())
                for name, one in ({} if self._plan is None else self._plan.following).items():
                    one.tracked.observed(found.get(name, traffic.Traffic()))
                failing = False
            except Exception:  # Evidence from elsewhere still counts.
                if not failing:
                    log.exception("what traffic shows of the upstreams is not known")
                failing = True

    async def _publish(self) -> float | None:
        """Make what is known live. Seconds after which to look again without a change; None: never."""
        plan = self._plan
        if plan is None:
            return None
        told = len(self._changes)
        document, rankings, again = plan.known(time.monotonic())
        await self._plane.discover(document)
        changes, self._changes = self._changes[:told], self._changes[told:]
        now = time.monotonic()
        for one in plan.rankings:
            self._decide(one, rankings[one.name], changes, now)
        self._orders = rankings
        return None if again is None else max(0.0, again - now)

    def _decide(self, one: Ranked, after: Ranking, changes: Iterable[Change], now: float) -> None:
        """Take note of what has become of an order, if anything has."""
        before = self._orders[one.name]
        if before.order == after.order:
            return
        behind = {name for names in one.upstreams.values() for name in names}
        causes = [change for change in changes if change.upstream in behind]
        told = [change.what for change in causes] or ["an instance has been well for long enough"]
        took = now - min((change.at for change in causes), default=now)
        log.info("%s", self.decisions.add(one.name, before.order, after.order, told, took))

    # -- what it knows ------------------------------------------------------------------------------------------------

    def services(self) -> list[dict[str, Any]]:
        """What is known of each upstream that is followed."""
        plan = self._plan
        if plan is None:
            return []
        views = plan.views()
        return [
            report.service(one.tracked, views[name], plan.shares(one.tracked, views[name]))
            for name, one in plan.following.items()
        ]

    def rankings(self, decisions: int) -> list[dict[str, Any]]:
        """Every ranking: its order, each protocol's standing with the reason, and so many of its last changes."""
        rankings = () if self._plan is None else self._plan.rankings
        return [
            report.ranking(one, self._orders[one.name], self.decisions.of(one.name, decisions)) for one in rankings
        ]

    def metrics(self) -> str:
        """What the data plane cannot know, in Prometheus text format."""
        following = {} if self._plan is None else self._plan.following
        services = [(one.tracked, one.tracked.views()) for one in following.values()]
        return report.metrics(services, self.decisions.total) if services else ""


async def _stop(pairs: Iterable[tuple[Following, Following | None]], *, forget: bool) -> None:
    """Stop each, beside which stands who follows the same upstream instead. `forget`: what it has kept, unless that is
    theirs as well."""
    stops = (one.stop(successor, forget=forget) for one, successor in pairs)
    for found in await asyncio.gather(*stops, return_exceptions=True):
        if isinstance(found, Exception):
            log.error("an upstream is not followed any more, and left something behind", exc_info=found)
