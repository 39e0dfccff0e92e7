"""The frame of every benchmark: its options, the servers that are there, alternated rounds, CPU for one operation."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

from benchmarks.harness import certificates, process
from benchmarks.harness.load import LoadError
from benchmarks.harness.results import Form, Result, write
from benchmarks.harness.server import Server, ServerError
from benchmarks.peers import DEFAULT, PEERS, Peer, Settings

T = TypeVar("T")


class Named(Protocol):
    """What is compared: a server, or a load generator."""

    @property
    def name(self) -> str: ...


Subject = TypeVar("Subject", bound=Named)

#: The core that the servers get, and the one that everything else gets.
SERVER_CORE, CLIENT_CORE = "0", "1"

#: Above this share of the servers' core taken by something else, the result says so.
NOISE = 0.05

# What a server still does for a connection after the client has seen it closed.
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Options:
    """A benchmark's command line. `seconds`: how long one measurement lasts; `connections`: to hold, where any are.

    `outputs`: the forms that are asked for, each with its file, None for standard output.
    """

    quick: bool
    outputs: Mapping[Form, Path | None]
    only: Sequence[str]
    cases: Sequence[str]
    rounds: int
    seconds: float
    connections: int | None


@dataclass(frozen=True)
class Defaults:
    """Rounds and seconds of the full mode and of the quick one."""

    rounds: int = 5
    seconds: float = 4.0
    quick_rounds: int = 2
    quick_seconds: float = 1.0
    servers: Sequence[str] = DEFAULT


@dataclass
class Bench:
    """One run of a benchmark."""

    options: Options
    result: Result
    peers: dict[str, Peer]
    folder: Path
    #: The largest share of the servers' core that something else took during a measurement.
    noise: float = 0.0

    def wants(self, case: str, *, quick: bool) -> bool:
        """Whether the table `case` is to be made. `quick`: whether the quick mode includes it unasked."""
        return case in self.options.cases if self.options.cases else quick or not self.options.quick

    def log(self, text: str) -> None:
        """Progress, for who watches; never on standard output, which is the result's."""
        print(f"{self.result.benchmark}: {text}", file=sys.stderr)

    def certificate(self, key_type: certificates.KeyType) -> certificates.Certificate:
        """A certificate that lives as long as the run."""
        return certificates.make(self.folder, key_type)

    @contextmanager
    def servers(
        self, settings: Settings, *, only: Callable[[Peer], bool] = lambda peer: True
    ) -> Iterator[list[Server]]:
        """Every selected server that starts; one that does not is noted as missing, with its reason."""
        with ExitStack() as stack:
            started = []
            for name, peer in self.peers.items():
                if not only(peer):
                    continue
                try:
                    started.append(stack.enter_context(peer.start(settings)))
                except ServerError as error:
                    self.result.missing[name] = f"it did not start: {error}"
            yield started

    def alternate(
        self, subjects: Sequence[Subject], measure: Callable[[Subject], None], *, rounds: int | None = None
    ) -> None:
        """Measure each of those that are compared once a round, in turn, each round beginning with the next of them.

        One that fails is noted and left out of the rest.
        """
        left = list(subjects)
        for number in range(rounds or self.options.rounds):
            shift = number % max(1, len(left))
            for subject in [*left[shift:], *left[:shift]]:
                try:
                    measure(subject)
                except (LoadError, ServerError, RuntimeError) as error:
                    self.result.note(f"{subject.name} was left out after round {number}: {error}")
                    left.remove(subject)

    def cost(self, server: Server, work: Callable[[], T]) -> tuple[T, float]:
        """Do `work`, and say how many nanoseconds of CPU the server spent on it."""
        core = int(SERVER_CORE)
        busy, before, started = process.core_busy(core), server.cpu(), time.monotonic_ns()
        done = work()
        time.sleep(_SETTLE_SECONDS)
        spent = server.cpu().since(before)
        others = (process.core_busy(core) - busy - spent) / (time.monotonic_ns() - started)
        self.noise = max(self.noise, others)
        return done, float(spent)


def options(name: str, description: str | None, defaults: Defaults, arguments: Sequence[str] | None) -> Options:
    """Read a benchmark's command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute, less exact")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    parser.add_argument("--markdown", nargs="?", const="-", metavar="FILE", help="print Markdown, or write it to FILE")
    parser.add_argument("--only", metavar="NAMES", help=f"servers to measure, of: {','.join(PEERS)}")
    parser.add_argument("--case", metavar="NAMES", help="tables to make, by their names in the JSON")
    parser.add_argument("--connections", type=int, help="idle connections to hold (idle_memory, held)")
    parser.add_argument("--rounds", type=int, help="times that each server has its turn")
    parser.add_argument("--seconds", type=float, help="how long each turn lasts")
    given = parser.parse_args(arguments)
    asked: dict[Form, str | None] = {"json": given.json, "markdown": given.markdown}
    if list(asked.values()).count("-") > 1:
        parser.error("JSON and Markdown cannot both be printed: name a file for one of them")
    outputs = {form: None if file == "-" else Path(file) for form, file in asked.items() if file is not None}
    only = given.only.split(",") if given.only else list(defaults.servers)
    if unknown := [server for server in only if server not in PEERS]:
        parser.error(f"unknown server {', '.join(unknown)}; known: {', '.join(PEERS)}")
    return Options(
        quick=given.quick,
        outputs=outputs,
        only=only,
        cases=given.case.split(",") if given.case else (),
        rounds=given.rounds or (defaults.quick_rounds if given.quick else defaults.rounds),
        seconds=given.seconds or (defaults.quick_seconds if given.quick else defaults.seconds),
        connections=given.connections,
    )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as its module describes it. `name`: the module's."""

    name: str
    description: str | None
    run: Callable[[Bench], None]
    defaults: Defaults = Defaults()

    def measure(self, arguments: Sequence[str]) -> tuple[Options, Result]:
        """Run it with this command line.

        Raises:
            LoadError: it cannot be run at all.
        """
        chosen = options(self.name, self.description, self.defaults, arguments)
        command = " ".join(["python -m", f"benchmarks.{self.name}", *arguments])
        result = Result(self.name, command, chosen.quick, chosen.rounds)
        result.missing = {server: PEERS[server].get for server in chosen.only if PEERS[server].find() is None}
        peers = {server: PEERS[server] for server in chosen.only if server not in result.missing}
        if (os.cpu_count() or 1) < 2:
            result.note("one core only: the load generator competes with the servers; the figures are not comparable")
        with TemporaryDirectory(prefix="bench-") as folder:
            bench = Bench(chosen, result, peers, Path(folder))
            self.run(bench)
        if bench.noise > NOISE:
            result.note(f"not quiet: something else took up to {bench.noise:.0%} of core {SERVER_CORE} meanwhile")
        return chosen, result

    def main(self) -> int:
        """The command line: run it and print the result. Returns the exit code."""
        try:
            chosen, result = self.measure(sys.argv[1:])
        except LoadError as error:
            print(f"benchmarks.{self.name}: {error}", file=sys.stderr)
            return 1
        write(chosen.outputs, result.document(), [result])
        if None not in chosen.outputs.values():
            result.show()
        return 0
