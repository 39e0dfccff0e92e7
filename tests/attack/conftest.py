"""One gateway in front of two recording upstreams, and the count of what was tried through it."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attack.h1_framing import LIMIT
from attack.verdict import PASSED
from support.certificates import Authority, Pair
from support.client import Address, Http1
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.recording import H1Recorder, H2Recorder, Recorder
from support.servers import Loop

UPSTREAMS: dict[str, type[Recorder]] = {"http/1.1": H1Recorder, "h2": H2Recorder}


@dataclass
class Tally:
    """Cases by pair of protocols, and those that went wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)

    def note(self, pair: str, *, wrong: bool, known: bool) -> None:
        """`known`: it is no surprise."""
        self.tried[pair] += 1
        (self.known if known else self.wrong)[pair] += wrong

    @staticmethod
    def line(name: str, tried: int, wrong: int, known: int) -> str:
        more = f", {known} known ones" if known else ""
        return f"{name}{tried} cases, {wrong} discrepancies{more}"


TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if not tally.tried:
        return
    name = f"smuggling: {len(tally.tried)} pairs, "
    terminalreporter.write_line(tally.line(name, tally.tried.total(), tally.wrong.total(), tally.known.total()))
    for pair, count in sorted(tally.tried.items()):
        terminalreporter.write_line(tally.line(f"  {pair}: ", count, tally.wrong[pair], tally.known[pair]))


@dataclass
class Victim:
    """Another client, whose requests follow each case, and would be the ones to suffer."""

    address: Address
    ca: Path
    _client: Http1 | None = None
    _asked: float = 0.0

    def ask(self, target: bytes) -> str | None:
        """What the upstream says it was asked."""
        if self._client is None or time.monotonic() - self._asked > 10:
            # The gateway may close a connection that was idle for long; otherwise that would be a consequence.
            self.close()
            self._client = Http1.open(self.address, self.ca)
        self._asked = time.monotonic()
        return self._client.request(target.decode()).header("x-seen")

    def close(self) -> None:
        if self._client is not None:
            self._client.stream.close()


@dataclass
class Way:
    """To one upstream through the gateway, and around it."""

    address: Address
    relayed: Address
    ca: Path
    recorder: Recorder
    victim: Victim
    numbers: Iterator[int] = field(default_factory=itertools.count)


@pytest.fixture(scope="session")
def ways() -> Iterator[dict[str, Way]]:
    """The way to the upstream of each protocol."""
    # Short, since the path of a Unix socket may be 107 bytes long at most.
    folder = Path(tempfile.mkdtemp(prefix="mitu-"))
    authority = Authority(folder / "certificates")
    edge = authority.issue("edge", ("localhost",))
    loop = Loop()
    recorders = {protocol: kind(loop) for protocol, kind in UPSTREAMS.items()}
    (folder / "gateway").mkdir()
    gateway = Gateway(folder / "gateway", _settings(edge, recorders))
    try:
        gateway.ready()
        ca = authority.certificate
        addresses = {name: gateway.address(name) for name in gateway.addresses()}
        ways = {
            protocol: Way(
                addresses[_name(protocol)],
                addresses[f"relay-{_name(protocol)}"],
                ca,
                recorder,
                Victim(addresses[_name(protocol)], ca),
            )
            for protocol, recorder in recorders.items()
        }
        yield ways
        for way in ways.values():
            way.victim.close()
    finally:
        gateway.program.stop()
        print(gateway.program.log[-20_000:])
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)


def _name(protocol: str) -> str:
    return protocol.replace("/", "-").replace(".", "-")


def _settings(edge: Pair, recorders: dict[str, Recorder]) -> Settings:
    """Each upstream behind a listener that proxies requests, and one that relays bytes as they are."""
    name, value = (text.decode() for text in PASSED)
    filters = [{"request_headers": {"set": {name: value}}}]
    moved = {"match": {"path": "/moved"}, "redirect": {"path": "/elsewhere"}}
    listeners: list[Settings] = []
    upstreams: list[Settings] = []
    for protocol, recorder in recorders.items():
        app = _name(protocol)
        routes = [health(), moved, {**to_app(filters=filters), "upstream": app}]
        limits = {"request_body_size": f"{LIMIT}B", "request_header_size": "64KiB"}
        protocols = ["h3", "h2", "http/1.1"]
        listeners.append(listener(edge, name=app, protocols=protocols, routes=routes, limits=limits))
        relayed = [{"alpn": "http/1.1", "relay": f"relay-{app}"}, {"alpn": "h2", "relay": f"relay-{app}"}]
        listeners.append(listener(edge, name=f"relay-{app}", protocols=relayed))
        upstreams.append(upstream(app, recorder.endpoint, protocol=protocol))
        upstreams.append(upstream(f"relay-{app}", recorder.endpoint))
    return configuration(listeners, *upstreams)
