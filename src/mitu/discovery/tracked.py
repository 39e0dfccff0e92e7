"""One upstream whose instances are watched or checked: what is known of it now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from mitu.config.upstreams import Upstream
from mitu.discovery.instance import Evidence, Health, Instance, Snapshot, printable
from mitu.discovery.provider import Backoff, Provider, ProviderError
from mitu.discovery.store import Memory
from mitu.discovery.traffic import Traffic

log = logging.getLogger("mitu")

_CONFIGURED = "configuration"


@dataclass(frozen=True, slots=True)
class View:
    """An instance, with everything that is said of its health. The worst word counts."""

    instance: Instance
    evidence: tuple[Evidence, ...]
    """At least that of who says that it is there."""
    protocols: tuple[str, ...] | None
    """What it speaks: as its registry says, or else as it was found out; None: it is not known."""
    protocols_from: str | None = None
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        # Once, since it is asked for many times, of every instance at every change.
        worst = self.evidence[0].health if len(self.evidence) == 1 else max(one.health for one in self.evidence)
        object.__setattr__(self, "health", worst)

    @property
    def declared(self) -> bool:
        """Whether its protocols are its own word, and not what was found out."""
        return self.instance.protocols is not None

    @property
    def reason(self) -> str:
        """The worst word."""
        worst = max(self.evidence, key=lambda one: one.health)
        return "" if worst.health is Health.HEALTHY else str(worst)


@dataclass(frozen=True, slots=True)
class Change:
    """Something has become known."""

    upstream: str
    what: str
    at: float
    """Monotonic seconds."""


@dataclass(slots=True)
class State:
    """What the registry last said."""

    snapshot: Snapshot | None = None
    at: float | None = None
    """Unix time at which that was so; None: nothing is known."""
    stale: bool = False
    """It may be otherwise by now: the registry cannot be asked."""
    error: str | None = None


@dataclass
class Tracked:
    """`provider`: None for endpoints that the configuration lists, and then so is `memory`. `changed` is called with
    what has changed.
    """

    upstream: Upstream
    provider: Provider | None
    memory: Memory | None
    changed: Callable[[Change], None]
    state: State = field(default_factory=State)
    checks: dict[str, Evidence] = field(default_factory=dict)
    """By instance."""
    traffic: Traffic = field(default_factory=Traffic)
    spoken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What instances were found to speak, by address."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once whoever knows has been asked, be it in vain."""
    _moved: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        if self.memory is None:
            listed = (Instance(one.address, one.address, one.weight) for one in self.upstream.endpoints)
            self.state = State(Snapshot.of(listed), time.time())
            self.answered.set()
        elif (kept := self.memory.load()) is not None:
            self.state = State(kept.snapshot, kept.at, stale=True, error="not asked yet since the start")

    def take_over(self, before: Tracked) -> None:
        """What `before`, which had other settings, knew of the same service and the same instances."""
        if self.memory is not None and before.memory is not None and self.memory.source == before.memory.source:
            self.state = replace(before.state)
            if before.answered.is_set():
                self.answered.set()
            if self.state.snapshot is not None:
                self.memory.save(self.state.snapshot, self.state.at or time.time())
        self.checks, self.spoken, self.traffic = dict(before.checks), dict(before.spoken), before.traffic
        self._forget(before.state.snapshot)

    @property
    def name(self) -> str:
        return self.upstream.name

    @property
    def source(self) -> str:
        """Whose word the instances' health is, when nobody else has one."""
        return _CONFIGURED if self.provider is None else self.provider.kind

    @property
    def instances(self) -> tuple[Instance, ...]:
        return () if self.state.snapshot is None else self.state.snapshot.instances

    async def watch(self) -> None:
        """Follow the registry, for ever. An error leaves what is known, marked as stale."""
        discover, provider = self.upstream.discover, self.provider
        if discover is None or provider is None:
            return
        backoff = Backoff()
        while True:
            known_at: float | None = None
            try:
                async with aclosing(provider.watch(discover)) as snapshots:
                    async for snapshot in snapshots:
                        known_at = time.monotonic() if known_at is None else known_at
                        self._learn(snapshot)
            except ProviderError as error:
                self._lose(str(error))
            except Exception:  # A fault here is no reason to go by an old state for ever.
                log.exception("%s: the watch failed", self.name)
                self._lose("the watch failed, see the log")
            # A registry that answers once and then fails, as one whose token may list and not watch, is down.
            await backoff.wait(0.0 if known_at is None else time.monotonic() - known_at)

    def next_move(self) -> asyncio.Future[None]:
        """Done when there are other instances than now, or one of them is elsewhere."""
        if self._moved is None or self._moved.done():
            self._moved = asyncio.get_running_loop().create_future()
        return self._moved

    def checked(self, instance: str, evidence: Evidence) -> None:
        """What the active check of an instance has come to."""
        before, self.checks[instance] = self.checks.get(instance), evidence
        if before is None or before.health is not evidence.health:
            name = instance if self.state.snapshot is None else self.state.snapshot.name(instance)
            self._tell(f"{self.name}/{name} is {evidence.health.word} ({evidence})")

    def observed(self, traffic: Traffic) -> None:
        """What real traffic shows."""
        before, self.traffic = self.traffic, traffic
        for address in sorted(before.ejected.keys() ^ traffic.ejected.keys()):
            word = traffic.ejected.get(address, Evidence(Health.HEALTHY, "traffic"))
            self._tell(f"{self.name}/{address} is {word.health.word} ({word})")
        if self.upstream.protocol == "auto":
            for address in sorted(before.chose_http11 ^ traffic.chose_http11):
                chosen = "http/1.1" if address in traffic.chose_http11 else "h2"
                self._tell(f"{self.name}/{address} has chosen {chosen}")

    def heard(self, spoken: Mapping[str, tuple[str, ...]]) -> None:
        """What instances were found to speak, by address."""
        before, self.spoken = self.spoken, dict(spoken)
        for address in sorted(self.spoken):
            if before.get(address) != self.spoken[address]:
                self._tell(f"{self.name}/{address} was found to speak {_names(self.spoken[address])}")

    def views(self) -> list[View]:
        return [self._view(one) for one in self.instances]

    def _view(self, one: Instance) -> View:
        said = Evidence(one.health, self.source, one.reason)
        check, ejected = self.checks.get(one.id), self.traffic.ejected.get(one.address)
        words = tuple(word for word in (said, check, ejected) if word is not None)
        if one.protocols is not None:
            return View(one, words, one.protocols, self.source)
        if one.address in self.spoken:
            return View(one, words, self.spoken[one.address], "probe")
        # It was offered h2 as well.
        if self.upstream.protocol == "auto" and one.address in self.traffic.chose_http11:
            return View(one, words, ("http/1.1",), "traffic")
        return View(one, words, None)

    def _learn(self, snapshot: Snapshot) -> None:
        before, lost = self.state.snapshot, self.state.stale and self.answered.is_set()
        self.state = State(snapshot, time.time())
        self.answered.set()
        if lost:
            log.info("%s: %s answers again", self.name, self.source)
        if before == snapshot:
            return
        self._forget(before)
        for what in _differences(before, snapshot):
            self._tell(f"{self.name}/{what}")
        if self.memory is not None:
            self.memory.save(snapshot, time.time())

    def _forget(self, before: Snapshot | None) -> None:
        """What was known of instances that are not there any more; and whoever waits is told that they have moved."""
        where = {one.id: one.address for one in before.instances} if before is not None else {}
        stayed = [one.id for one in self.instances if where.get(one.id) == one.address]
        self.checks = {key: self.checks[key] for key in stayed if key in self.checks}
        self.spoken = {one.address: self.spoken[one.address] for one in self.instances if one.address in self.spoken}
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    def _lose(self, error: str) -> None:
        told = printable(error)
        if not self.state.stale or self.state.error != told:
            what = "what was known of it holds" if self.state.snapshot is not None else "nothing is known of it"
            log.warning("%s: %s; %s", self.name, told, what)
        self.state.stale, self.state.error = True, told
        self.answered.set()

    def _tell(self, what: str) -> None:
        self.changed(Change(self.name, what, time.monotonic()))


def _differences(before: Snapshot | None, after: Snapshot) -> Iterable[str]:
    """What became of which instance, for people."""
    old = {} if before is None else {one.id: one for one in before.instances}
    new = {one.id: one for one in after.instances}
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if now is None:
            yield f"{was.name if was is not None else key} is gone"
            continue
        name = now.name
        if was is None:
            yield f"{name} is new"
        elif was.health is not now.health:
            yield f"{name} is {now.health.word}, was {was.health.word}" + (f" ({now.reason})" if now.reason else "")
        elif was.protocols != now.protocols:
            yield f"{name} speaks {_names(now.protocols)}, spoke {_names(was.protocols)}"
        elif was != now:
            yield f"{name} has changed"


def _names(protocols: tuple[str, ...] | None) -> str:
    return "what is not known" if protocols is None else ", ".join(protocols) or "nothing"
