"""What a gateway that follows its upstreams is held to: what clients negotiate, and that none of them fails."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, Self

from support import openssl
from support.client import Address, Http1, connect, context
from support.gateway import MITU, Gateway, Settings
from support.net import eventually
from support.process import output

BOTH = "h2,http/1.1"


def negotiated(gateway: Gateway, ca: Path, offered: str = BOTH, name: str = "localhost") -> str | None:
    """What a new handshake of `openssl s_client` comes to; None: the gateway refuses it with an alert."""
    said = openssl.negotiate(gateway.address(), ca, "-alpn", offered, name=name)
    if "no application protocol" in said:
        return None
    line = next(line for line in said.splitlines() if "ALPN" in line)
    assert "ALPN protocol: " in line, said
    return line.removeprefix("ALPN protocol: ").strip()


def becomes(
    gateway: Gateway, ca: Path, wanted: str | None, *, offered: str = BOTH, name: str = "localhost", within: float = 10
) -> None:
    """New handshakes come to `wanted` before `within` seconds have passed."""
    found: list[str | None] = []

    def there() -> bool:
        found.append(negotiated(gateway, ca, offered, name))
        return found[-1] == wanted

    try:
        eventually(there, within)
    except AssertionError:
        orders = gateway.json("/alpn")
        raise AssertionError(f"clients get {found[-1]}, not {wanted}: {orders}\n{gateway.program.log}") from None


def service(gateway: Gateway, upstream: str = "app") -> Settings:
    """What the gateway knows of an upstream."""
    found: Settings = next(one for one in gateway.json("/discovery") if one["upstream"] == upstream)
    return found


def healths(gateway: Gateway, upstream: str = "app") -> dict[str, str]:
    """How each instance of an upstream is, by its name."""
    return {one["name"]: one["health"] for one in service(gateway, upstream)["instances"]}


def decisions(gateway: Gateway) -> list[Settings]:
    """All changes of orders, with their causes."""
    return [decision for one in gateway.json("/alpn") for decision in one["decisions"]]


def explained(gateway: Gateway, name: str = "localhost") -> Settings:
    """What `mitu alpn explain` says of the only listener."""
    (found,) = json.loads(output([*MITU, "alpn", "explain", name, "--socket", gateway.socket, "--json"]))
    order: Settings = found
    return order


def discovered(gateway: Gateway) -> tuple[int, Any]:
    """The exit code of `mitu discover`, and what it prints."""
    done = gateway.mitu("discover", "--json")
    return done.returncode, json.loads(done.stdout)


class Requests:
    """Requests over HTTP/1.1, kept alive and each on a connection of its own, from now until the end of the block.

    Every one has to be answered with 200.
    """

    def __init__(self, address: Address, ca: Path, path: str = "/", *, pause: float = 0.005) -> None:
        self.failures: list[str] = []
        self._answered = {"kept": 0, "fresh": 0}
        self._address, self._path, self._pause = address, path, pause
        self._tls = context(ca)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._kept, self._fresh)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        if kind is None:
            assert all(self._answered.values()), self._answered
            answered = sum(self._answered.values())
            assert not self.failures, f"{len(self.failures)} of {answered} failed: {self.failures[:5]}"

    def go_on(self) -> None:
        """Until each of both has been answered twice: what was under way before is over then."""
        before = dict(self._answered)
        eventually(lambda: all(self._answered[one] >= before[one] + 2 for one in before), 30)

    def _kept(self) -> None:
        while not self._end.is_set():
            try:
                with connect(self._address, self._tls) as stream:
                    client = Http1(stream)
                    while not self._end.is_set():
                        self._ask(client, "kept")
            except (OSError, EOFError, AssertionError) as error:
                self._failed(f"kept: {error!r}")

    def _fresh(self) -> None:
        while not self._end.is_set():
            try:
                with connect(self._address, self._tls) as stream:
                    self._ask(Http1(stream), "fresh")
            except (OSError, EOFError, AssertionError) as error:
                self._failed(f"fresh: {error!r}")

    def _ask(self, client: Http1, which: str) -> None:
        response = client.request(self._path)
        if response.status != 200:
            self.failures.append(f"status {response.status}: {response.body[:200]!r}")
        self._answered[which] += 1
        time.sleep(self._pause)

    def _failed(self, why: str) -> None:
        self.failures.append(why)
        self._end.wait(0.1)
