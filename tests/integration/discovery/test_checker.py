"""The checker, with HTTP servers that say what the test wants of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from integration.conftest import Serve
from mitu.discovery.checker import MOST_AT_ONCE, Checker
from mitu.discovery.checks import Check
from mitu.discovery.instance import Evidence, Health
from support.certificates import Pair
from support.servers import Reader, Writer, http_head, http_response

from .checked_servers import Nginx, no_more_files, running_nginx, settings, sockets, soon

HEALTHY = Evidence(Health.HEALTHY, "check")


def unavailable(reason: str) -> Evidence:
    return Evidence(Health.UNAVAILABLE, "check", reason)


@dataclass
class App:
    """Answers with the statuses of `script`, one each, and with the last one from then on."""

    script: list[int] = field(default_factory=lambda: [200])
    seconds: float = 0
    """How long an answer takes."""
    asked: list[float] = field(default_factory=list)
    """When."""
    most: int = 0
    """Requests that were there at one time."""
    _now: int = 0

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await http_head(reader)
            self.asked.append(time.monotonic())
            status = self.script[min(len(self.asked), len(self.script)) - 1]
            await asyncio.sleep(self.seconds)
        finally:
            # Before the answer: once it has that, the client may come again.
            self._now -= 1
        writer.write(http_response(f"{status} {'Fine' if status < 400 else 'Broken'}"))


@dataclass
class Heard:
    """What a checker has said."""

    said: list[tuple[str, Evidence]] = field(default_factory=list)
    also: Callable[[], object] = lambda: None

    def __call__(self, instance: str, evidence: Evidence) -> None:
        self.said.append((instance, evidence))
        self.also()

    def of(self, instance: str) -> list[Evidence]:
        return [evidence for name, evidence in self.said if name == instance]


def checker(heard: Heard, most: int = MOST_AT_ONCE, **more: object) -> Checker:
    made = settings("http", **{"interval": "100ms", **more})
    return Checker(made, Check(made), heard, most)


@pytest.fixture(scope="module")
def nginx(edge: Pair) -> Iterator[Nginx]:
    """A server that has files while this process has none."""
    with running_nginx(edge) as nginx:
        yield nginx


class TestRiseAndFall:
    async def test_counts(self, serve: Serve) -> None:
        #            first           one short           turns           one short       turns
        app = App([200, 503, 503, 200, 503, 503, 503, 200, 503, 200, 200])
        turned: list[int] = []
        heard = Heard(also=lambda: turned.append(len(app.asked)))
        async with checker(heard, unhealthy_after=3, healthy_after=2) as running:
            running.set_targets({"a": serve(app).endpoint})
            await soon(lambda: len(app.asked) > 15)
        assert heard.said == [("a", HEALTHY), ("a", unavailable("status 503")), ("a", HEALTHY)]
        assert turned == [1, 7, 11]

    async def test_the_first_check_decides_by_itself(self, serve: Serve) -> None:
        app = App([503, 200, 503, 200, 200, 200])
        turned: list[int] = []
        heard = Heard(also=lambda: turned.append(len(app.asked)))
        async with checker(heard, unhealthy_after=100, healthy_after=3) as running:
            running.set_targets({"a": serve(app).endpoint})
            await soon(lambda: len(heard.said) == 2)
        assert heard.said == [("a", unavailable("status 503")), ("a", HEALTHY)]
        assert turned == [1, 6]

    async def test_flapping_turns_nothing(self, serve: Serve) -> None:
        app, heard = App([200, 503] * 8), Heard()
        async with checker(heard, unhealthy_after=2, healthy_after=1) as running:
            running.set_targets({"a": serve(app).endpoint})
            await soon(lambda: len(app.asked) >= 16)
        assert heard.said == [("a", HEALTHY)]

    async def test_another_reason_is_told(self, serve: Serve) -> None:
        heard = Heard()
        server = serve(App([500, 500, 503]))
        async with checker(heard) as running:
            running.set_targets({"a": server.endpoint})
            await soon(lambda: len(heard.said) == 2)
            server.stop()
            await soon(lambda: unavailable("connection refused") in heard.of("a"))
        assert heard.of("a")[:2] == [unavailable("status 500"), unavailable("status 503")]

    async def test_a_server_that_goes_and_comes_back(self, serve: Serve) -> None:
        heard, server = Heard(), serve(App())
        async with checker(heard) as running:
            running.set_targets({"a": server.endpoint})
            await soon(lambda: heard.of("a") == [HEALTHY])
            server.stop()
            await soon(lambda: heard.of("a")[-1].health == Health.UNAVAILABLE)
            server.start()
            await soon(lambda: heard.of("a")[-1] == HEALTHY)


class TestPace:
    async def test_an_interval_lies_between_checks(self, serve: Serve) -> None:
        app = App()
        async with checker(Heard(), interval="200ms") as running:
            running.set_targets({"a": serve(app).endpoint})
            await soon(lambda: len(app.asked) > 10)
        spent = app.asked[10] - app.asked[0]
        # A tenth less at least, and the first may have been noted late.
        assert spent > 10 * 0.2 * 0.9 - 0.1

    async def test_the_time_that_a_check_takes_is_part_of_it(self, serve: Serve) -> None:
        app = App(seconds=0.4)
        async with checker(Heard(), interval="500ms") as running:
            running.set_targets({"a": serve(app).endpoint})
            await soon(lambda: len(app.asked) > 5)
        # With the interval behind it, each would take 0.85 s at least.
        assert app.asked[5] - app.asked[0] < 5 * 0.85

    async def test_first_checks_are_spread(self, serve: Serve) -> None:
        app, heard = App(), Heard()
        address = serve(app).endpoint
        async with checker(heard, most=1_000, interval="1m") as running:
            running.set_targets({str(number): address for number in range(500)})
            await soon(lambda: len(heard.said) == 500)
        assert len({name for name, _ in heard.said}) == 500
        assert app.asked[-1] - app.asked[0] > 0.4

    async def test_no_more_than_so_many_at_one_time(self, serve: Serve) -> None:
        app, heard = App(seconds=0.02), Heard()
        address = serve(app).endpoint
        async with checker(heard, most=8, interval="1m") as running:
            running.set_targets({str(number): address for number in range(200)})
            await soon(lambda: len(heard.said) == 200)
        assert 4 <= app.most <= 8

    async def test_those_that_hang_do_not_keep_the_others_for_ever(self, serve: Serve) -> None:
        hanging, app, heard = App(seconds=60), App(), Heard()
        stuck, fine = serve(hanging).endpoint, serve(app).endpoint
        targets = {f"stuck {number}": stuck for number in range(8)}
        async with checker(heard, most=4, timeout="1s") as running:
            running.set_targets({**targets, "fine": fine})
            await soon(lambda: len({name for name, _ in heard.said}) == 9)
            await soon(lambda: len(app.asked) >= 3)
        assert heard.of("fine") == [HEALTHY]
        assert heard.of("stuck 0") == [unavailable("no answer within 1 s")]


class TestTargets:
    async def test_one_that_is_removed_is_left_alone(self, serve: Serve) -> None:
        here, gone, heard = App(), App(), Heard()
        both = {"here": serve(here).endpoint, "gone": serve(gone).endpoint}
        async with checker(heard) as running:
            running.set_targets(both)
            await soon(lambda: len(heard.said) == 2)
            running.set_targets({"here": both["here"]})
            gone.script = [503]
            before, asked = len(here.asked), len(gone.asked)
            await soon(lambda: len(here.asked) > before + 5)
        # One was perhaps under way.
        assert len(gone.asked) <= asked + 1
        assert heard.of("gone") == [HEALTHY]

    async def test_what_is_known_stays_while_the_address_does(self, serve: Serve) -> None:
        app, heard = App(), Heard()
        address = serve(app).endpoint
        async with checker(heard) as running:
            running.set_targets({"a": address})
            await soon(lambda: len(heard.said) == 1)
            running.set_targets({"a": address, "b": address})
            before = len(app.asked)
            await soon(lambda: len(app.asked) > before + 6)
        assert heard.said == [("a", HEALTHY), ("b", HEALTHY)]

    async def test_another_address_is_another_instance(self, serve: Serve) -> None:
        heard = Heard()
        async with checker(heard, unhealthy_after=100) as running:
            running.set_targets({"a": serve(App()).endpoint})
            await soon(lambda: heard.of("a") == [HEALTHY])
            running.set_targets({"a": serve(App([503])).endpoint})
            await soon(lambda: len(heard.said) == 2)
        assert heard.of("a")[1] == unavailable("status 503"), "its first check decides"

    async def test_removed_within_its_check(self, serve: Serve) -> None:
        server, heard = serve(App(seconds=60)), Heard()
        async with checker(heard) as running:
            running.set_targets({"a": server.endpoint})
            await soon(lambda: server.open == 1)
            before = sockets()
            running.set_targets({})
            await soon(lambda: sockets() < before)
        assert heard.said == []


class TestEnd:
    async def test_nothing_is_left(self, serve: Serve) -> None:
        server = serve(App(seconds=60))
        tasks, open_before = asyncio.all_tasks(), sockets()
        async with checker(Heard(), most=20) as running:
            running.set_targets({str(number): server.endpoint for number in range(100)})
            await soon(lambda: server.open == 20)
            assert len(asyncio.all_tasks()) == len(tasks) + 100
        assert asyncio.all_tasks() == tasks
        # The server's own side lasts until its minute is over.
        assert sockets() == open_before + 20
        server.stop()
        await soon(lambda: sockets() < open_before)

    async def test_an_error_within_ends_it_too(self, serve: Serve) -> None:
        tasks = asyncio.all_tasks()
        with pytest.raises(ZeroDivisionError):
            async with checker(Heard()) as running:
                running.set_targets({"a": serve(App()).endpoint})
                raise ZeroDivisionError
        assert asyncio.all_tasks() == tasks

    async def test_no_files_left_turns_nothing(self, nginx: Nginx, caplog: pytest.LogCaptureFixture) -> None:
        heard, address = Heard(), f"127.0.0.1:{nginx.h1}"

        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == "mitu"]

        async with checker(heard, unhealthy_after=1) as running:
            running.set_targets({"a": address})
            await soon(lambda: heard.said == [("a", HEALTHY)])
            with caplog.at_level(logging.WARNING, "mitu"), no_more_files():
                await soon(lambda: told() != [])
                # More than one goes wrong.
                await asyncio.sleep(0.5)
            running.set_targets({"a": address, "b": address})
            await soon(lambda: heard.of("b") == [HEALTHY])
        assert heard.of("a") == [HEALTHY]
        assert told() == ["instances are not checked for now, and stay as they are: too many open files"]
