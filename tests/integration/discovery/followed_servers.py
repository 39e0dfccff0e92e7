"""The instances of a service that is followed: real servers that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mitu.discovery.instance import Health
from support.certificates import Pair
from support.gateway import Settings, configuration, listener, to_app
from support.registries import AnyRegistry
from support.servers import Handler, Loop, Server


class ServerAt(Server):
    """A server at an address of this machine."""

    def __init__(self, loop: Loop, handler: Handler, host: str) -> None:
        self._host = host
        super().__init__(loop, handler)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, self._host, self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server


@dataclass(frozen=True)
class Fleet:
    """`new` speaks h2 alone and `old` http/1.1 alone: h2 is worth 10 / 2 while `new` is well, http/1.1 6 / 2."""

    registry: AnyRegistry
    new: Server
    old: Server

    def put_new(self, health: Health = Health.HEALTHY, note: str = "") -> None:
        self.registry.put("new", self.new.port, ["h2"], health, note)

    def put_third(self, protocols: Sequence[str]) -> None:
        """Another name for the server that `new` is."""
        self.registry.put("third", self.new.port, protocols)

    def settings(self, edge: Pair, state: Path, *, by: int | None = None) -> Settings:
        """Of a gateway that follows it. `by`: the registry is to be reached by way of this port."""
        found = {"providers": [{"name": "main", **self.registry.provider(by)}], "state": str(state)}
        serving = listener(edge, routes=[to_app()], alpn_ranking={"hold": "0s"})
        upstream = {"name": "app", "discover": self.registry.discover("main")}
        return configuration([serving], upstream, discovery=found)
