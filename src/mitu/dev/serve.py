"""Runs the gateway of `mitu dev`: from a certificate that is there to Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime

from mitu.config.certificates import names_of
from mitu.config.load import parse_config
from mitu.config.types import split_host_port
from mitu.dev.authority import Authority, Pair
from mitu.dev.config import Target, configuration
from mitu.dev.page import Page
from mitu.gateway import Gateway

DRAIN_TIMEOUT = 1.0
"""Seconds that connections get to finish: a page's WebSocket would hold up every Ctrl-C for longer."""

_RENEW_EVERY = 3600.0
_PROBE_TIMEOUT = 0.5


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, once it is."""

    authority: Authority
    pair: Pair
    names: tuple[str, ...]
    """What was asked for besides localhost."""
    address: str
    """Bound `host:port`."""
    to: Target | None
    reachable: bool
    """Whether `to` accepts connections now."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def urls(self) -> list[str]:
        """Of localhost, then of `names`."""
        hosts = ["localhost", *(f"[{name}]" if ":" in name else name for name in self.names if "*" not in name)]
        return [f"https://{host}:{self.port}/" for host in hosts]

    @property
    def covered(self) -> list[str]:
        """All names that the certificate is for."""
        return list(names_of(self.pair.leaf))

    @property
    def expires(self) -> datetime:
        return self.pair.leaf.not_valid_after_utc


async def serve(
    authority: Authority,
    names: Sequence[str],
    bind: str,
    to: Target | None,
    ready: Callable[[Serving], None],
    *,
    access_log: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, which drain it; a second one ends it at once.

    `ready` is called once connections are accepted. StartError when the address cannot be bound.
    """
    async with AsyncExitStack() as stack:
        pair = await asyncio.to_thread(authority.server, names)
        upstream = to
        if upstream is None:
            page = await stack.enter_async_context(Page(lambda: gateway.connections()))
            upstream = page.target
        gateway = Gateway(parse_config(configuration(pair, bind, upstream, access_log=access_log)))
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        ending = _end_on_signals(gateway)
        renewing = asyncio.create_task(_renew(gateway, authority, names))
        stack.callback(renewing.cancel)
        reachable = to is None or await _accepts(to)
        ready(Serving(authority, pair, tuple(names), gateway.addresses["dev"], to, reachable))
        await gateway.serve_forever()
        await asyncio.gather(*ending)


def _end_on_signals(gateway: Gateway) -> list[asyncio.Task[bool]]:
    """The drains that signals have begun."""
    ending: list[asyncio.Task[bool]] = []

    def end() -> None:
        ending.append(asyncio.create_task(gateway.drain(0 if ending else DRAIN_TIMEOUT)))

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    return ending


async def _renew(gateway: Gateway, authority: Authority, names: Sequence[str]) -> None:
    """A gateway that runs for a year still has a certificate that is good."""
    while True:
        await asyncio.sleep(_RENEW_EVERY)
        await asyncio.to_thread(authority.server, names)
        await gateway.reload()


async def _accepts(to: Target) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            if to.address.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(to.address.removeprefix("unix:"))
            else:
                host, port = split_host_port(to.address) or ("", 0)
                _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
