"""What only Consul has: the ways in which an instance says there what it speaks, each of which reaches handshakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.certificates import Authority, Pair
from support.consul import Consul
from support.following import becomes, negotiated
from support.gateway import configuration, listener, to_app
from support.servers import Server

from ..conftest import Start


def _said(spelling: str, protocols: str) -> dict[str, Any]:
    if spelling == "tag":
        return {"tags": ["blue", f"alpn.supported={protocols}"]}
    return {"meta": {spelling: protocols}}


def test_every_spelling(app: Server, authority: Authority, edge: Pair, gateway: Start, tmp_path: Path) -> None:
    with Consul(tmp_path / "consul") as consul:
        consul.register("api", "old", app.port, **_said("alpn_supported", "http/1.1"))
        consul.register("api", "new", app.port, **_said("alpn_supported", "http/1.1"))
        found = {"providers": [{"name": "main", "consul": {"address": consul.url}}], "state": str(tmp_path / "state")}
        serving = listener(edge, routes=[to_app()], alpn_ranking=True)
        upstream = {"name": "app", "discover": {"provider": "main", "service": "api"}}
        running = gateway(configuration([serving], upstream, discovery=found))
        for spelling in ("alpn_supported", "alpn-supported", "tag"):
            becomes(running, authority.certificate, None, offered="h2", within=30)
            consul.register("api", "new", app.port, **_said(spelling, "h2,http/1.1"))
            becomes(running, authority.certificate, "h2", offered="h2", within=30)
            consul.register("api", "new", app.port, **_said(spelling, "http/1.1"))
        becomes(running, authority.certificate, None, offered="h2", within=30)
        # Metadata goes before tags.
        both = _said("alpn-supported", "h2") | _said("tag", "http/1.1")
        consul.register("api", "new", app.port, **both)
        becomes(running, authority.certificate, "h2", offered="h2", within=30)
        assert negotiated(running, authority.certificate) == "h2", "(10 / 2 is more than 6 / 2)"
