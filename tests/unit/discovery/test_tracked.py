"""What is known of one upstream, through all that is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest

from mitu.config.discovery import Discover
from mitu.config.upstreams import Endpoint, Upstream
from mitu.discovery.instance import Evidence, Health, Instance, Snapshot
from mitu.discovery.provider import Backoff, ProviderError
from mitu.discovery.store import Memory, Store
from mitu.discovery.tracked import Change, Tracked
from mitu.discovery.traffic import Traffic
from support.net import until

GOOD, POOR, BAD = Health.HEALTHY, Health.DEGRADED, Health.UNAVAILABLE
A, B = Instance("a", "10.0.0.1:80"), Instance("b", "10.0.0.2:80", protocols=("h2",))


class Script:
    """A registry that says what it is told to; an error ends the watch, as it does in a real one."""

    kind = "script"

    def __init__(self) -> None:
        self.lines: asyncio.Queue[Snapshot | Exception] = asyncio.Queue()

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        while True:
            line = await self.lines.get()
            if isinstance(line, Exception):
                raise line
            yield line

    async def close(self) -> None:
        """Nothing is held."""


class World:
    def __init__(self, folder: Path, **settings: object) -> None:
        self.changes: list[Change] = []
        self.script = Script()
        upstream = Upstream.model_validate(
            {"name": "api", "discover": {"provider": "consul", "service": "api"}, **settings}
        )
        discover = Discover.model_validate(upstream.model_dump()["discover"])
        memory = Memory(Store(folder), "api", {"discover": discover.model_dump(mode="json")})
        self.tracked = Tracked(upstream, self.script, memory, self.changes.append)

    async def close(self) -> None:
        assert self.tracked.memory is not None
        await self.tracked.memory.close()

    @property
    def told(self) -> list[str]:
        return [change.what for change in self.changes]


async def test_an_error_leaves_what_is_known_and_marks_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    watching = asyncio.create_task(world.tracked.watch())
    await world.script.lines.put(Snapshot.of([A, B]))
    await until(lambda: len(world.changes) == 2)
    assert world.told == ["api/a is new", "api/b is new"]
    await world.script.lines.put(ProviderError("nobody answers"))
    await until(lambda: world.tracked.state.stale)
    assert world.tracked.instances == (A, B) and world.tracked.state.error == "nobody answers"
    await world.script.lines.put(Snapshot.of([B]))
    await until(lambda: len(world.changes) == 3)
    assert world.told[2:] == ["api/a is gone"]
    assert not world.tracked.state.stale and world.tracked.state.error is None
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await world.close()
    again = World(tmp_path)
    assert again.tracked.instances == (B,) and again.tracked.state.stale and not again.tracked.answered.is_set()


async def test_the_worst_word_counts_and_keeps_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    tracked = world.tracked
    tracked._learn(Snapshot.of([Instance("a", "10.0.0.1:80", health=POOR, reason="slow")]))
    (view,) = tracked.views()
    assert (view.health, view.reason) == (POOR, "script: slow")
    tracked.checked("a", Evidence(GOOD, "check"))
    assert tracked.views()[0].health is POOR
    tracked.observed(Traffic({"10.0.0.1:80": Evidence(BAD, "traffic", "ejected after 503")}))
    (view,) = tracked.views()
    assert (view.health, view.reason) == (BAD, "traffic: ejected after 503")
    tracked.observed(Traffic())
    assert tracked.views()[0].health is POOR
    assert world.told[-2:] == [
        "api/10.0.0.1:80 is unavailable (traffic: ejected after 503)",
        "api/10.0.0.1:80 is healthy (traffic)",
    ]
    await world.close()


async def test_a_check_of_an_instance_that_has_gone_is_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path)
    tracked = world.tracked
    tracked._learn(Snapshot.of([A]))
    moved = tracked.next_move()
    tracked.checked("a", Evidence(BAD, "check", "connection refused"))
    tracked._learn(Snapshot.of([]))
    assert moved.done()
    tracked._learn(Snapshot.of([A]))
    assert tracked.views()[0].health is GOOD
    await world.close()


async def test_an_instance_that_moves_is_another_one_to_its_checks(tmp_path: Path) -> None:
    world = World(tmp_path)
    tracked = world.tracked
    tracked._learn(Snapshot.of([A]))
    tracked.checked("a", Evidence(BAD, "check", "connection refused"))
    tracked._learn(Snapshot.of([Instance("a", "10.0.0.9:80")]))
    assert tracked.views()[0].health is GOOD, "what was found was found elsewhere"
    await world.close()


async def test_what_an_instance_says_it_speaks_goes_before_what_was_found_out(tmp_path: Path) -> None:
    world = World(tmp_path, protocol="auto", tls=True)
    tracked = world.tracked
    tracked._learn(Snapshot.of([A, B]))
    assert [(one.protocols, one.protocols_from) for one in tracked.views()] == [(None, None), (("h2",), "script")]
    tracked.observed(Traffic(chose_http11=frozenset({A.address, B.address})))
    assert [one.protocols for one in tracked.views()] == [("http/1.1",), ("h2",)]
    tracked.heard({A.address: ("h2", "http/1.1"), B.address: ("http/1.1",)})
    assert [(one.protocols, one.protocols_from) for one in tracked.views()] == [
        (("h2", "http/1.1"), "probe"),
        (("h2",), "script"),
    ]
    await world.close()


async def test_listed_endpoints_are_instances_too(tmp_path: Path) -> None:
    upstream = Upstream(name="api", endpoints=(Endpoint(address="10.0.0.1:80", weight=3),))
    tracked = Tracked(upstream, None, None, lambda change: None)
    assert tracked.instances == (Instance("10.0.0.1:80", "10.0.0.1:80", 3),)
    assert tracked.answered.is_set() and not tracked.state.stale
    await tracked.watch()


async def test_a_fault_in_the_watch_is_an_error_like_any_other(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.tracked._learn(Snapshot.of([A]))
    await world.script.lines.put(ValueError("a bug"))
    watching = asyncio.create_task(world.tracked.watch())
    await until(lambda: world.tracked.state.stale)
    assert world.tracked.instances == (A,)
    await world.script.lines.put(Snapshot.of([B]))
    await until(lambda: world.tracked.instances == (B,))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await world.close()


async def test_other_settings_keep_what_was_known(tmp_path: Path) -> None:
    before = World(tmp_path)
    before.tracked._learn(Snapshot.of([A, B]))
    before.tracked.checked("a", Evidence(BAD, "check", "connection refused"))
    before.tracked.heard({A.address: ("h2",)})
    after = World(tmp_path, timeouts={"connect": "1s"})
    after.tracked.take_over(before.tracked)
    assert after.tracked.answered.is_set() and after.tracked.instances == (A, B)
    assert [(one.health, one.protocols) for one in after.tracked.views()] == [(BAD, ("h2",)), (GOOD, ("h2",))]
    elsewhere = World(tmp_path, discover={"provider": "consul", "service": "another"})
    elsewhere.tracked.take_over(before.tracked)
    assert not elsewhere.tracked.answered.is_set() and elsewhere.tracked.instances == ()
    for world in (before, after, elsewhere):
        await world.close()


async def test_what_a_registry_says_moves_no_cursor(tmp_path: Path) -> None:
    world = World(tmp_path)
    rude = "\x1b]52;c;aGk=\x07"
    world.tracked._learn(
        Snapshot.of([Instance(f"a{rude}", "10.0.0.1:80", health=BAD, reason=f"x\n{rude}", zone=rude)])
    )
    world.tracked._lose(f"no{rude}")
    (view,) = world.tracked.views()
    one = view.instance
    shown = (one.id, one.name, view.reason, one.zone or "", world.tracked.state.error or "", *world.told)
    assert all(text.isprintable() for text in shown) and one.name == "a?]52;c;aGk=?"
    await world.close()


class Once:
    """A registry that answers once, and then fails."""

    kind = "script"

    def __init__(self) -> None:
        self.watches = 0

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        self.watches += 1
        yield Snapshot.of([A])
        raise ProviderError("you may list, and not watch")

    async def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("lasts", [True, False])
async def test_only_a_watch_that_lasts_makes_pauses_short_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    monkeypatch.setattr("mitu.discovery.provider.random.uniform", lambda low, high: high)
    if lasts:
        monkeypatch.setattr("mitu.discovery.tracked.Backoff", partial(Backoff, lasting=-1.0))
    tracked, registry = World(tmp_path).tracked, Once()
    tracked.provider = registry
    watching = asyncio.create_task(tracked.watch())
    await asyncio.sleep(1.4)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    # After 0.1 s each, or after 0.1, 0.3 and 0.7 s.
    assert registry.watches > 5 if lasts else 2 <= registry.watches <= 4
    assert tracked.memory is not None
    await tracked.memory.close()


async def test_an_instance_is_called_by_its_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    tracked = world.tracked
    tracked._learn(Snapshot.of([Instance("n1/a", "10.0.0.1:80", name="a")]))
    tracked.checked("n1/a", Evidence(BAD, "check", "connection refused"))
    tracked._learn(
        Snapshot.of([Instance("n1/a", "10.0.0.1:80", name="a@n1"), Instance("n2/a", "10.0.0.2:80", name="a@n2")])
    )
    assert [one.health for one in tracked.views()] == [BAD, GOOD], "what is known of it stays"
    tracked.checked("n1/a", Evidence(GOOD, "check"))
    tracked._learn(Snapshot.of([Instance("n1/a", "10.0.0.1:80", name="a", health=BAD, reason="slow")]))
    assert world.told == [
        "api/a is new",
        "api/a is unavailable (check: connection refused)",
        "api/a@n2 is new",
        "api/a@n1 is healthy (check)",
        "api/a is unavailable, was healthy (slow)",
        "api/a@n2 is gone",
    ]
    await world.close()
    (kept,) = World(tmp_path).tracked.instances
    assert (kept.id, kept.name) == ("n1/a", "a")
