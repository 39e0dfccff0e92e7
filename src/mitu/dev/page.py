"""The built-in page: what the client and the gateway agreed on, for people, for curl and as JSON."""

from __future__ import annotations

import html
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from mitu.dev.config import Target

Connections = Callable[[], list[dict[str, Any]]]

_STAGES = {
    "accept_wait_us": "accept",
    "client_hello_us": "ClientHello",
    "select_us": "select",
    "gate_us": "gate",
    "crypto_us": "crypto",
    "client_flight_us": "client",
}


class Page:
    """An HTTP server on a Unix socket, for as long as the context lasts. `connections`: those of the gateway."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._seen: dict[int, int] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="mitu-dev-"))  # mode 0700
        self._socket = self._folder / "page.sock"
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    @property
    def target(self) -> Target:
        """As an upstream."""
        return Target(f"unix:{self._socket}")

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.UnixSite(self._runner, self._socket).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _answer(self, request: web.Request) -> web.Response:
        # Before anything else happens: the request's own connection is the one that has a request more than before.
        connection = self._current()
        if request.path == "/favicon.ico":
            return web.Response(status=204)
        accepted = request.headers.get("Accept", "")
        if "text/html" in accepted:
            return web.Response(text=_as_html(request, connection), content_type="text/html")
        if "application/json" in accepted:
            text = json.dumps(_as_json(request, connection), indent=1)
            return web.Response(text=f"{text}\n", content_type="application/json")
        return web.Response(text=_as_text(request, connection), content_type="text/plain")

    def _current(self) -> dict[str, Any] | None:
        """The connection that the request came by; None when several were busy at once."""
        found = self._connections()
        busy = [one for one in found if one["requests"] > self._seen.get(one["connection"], 0)]
        self._seen = {one["connection"]: one["requests"] for one in found}
        return busy[0] if len(busy) == 1 else None


def _facts(request: web.Request, connection: dict[str, Any] | None) -> list[tuple[str, str]]:
    asked = ("request", f"{request.method} {request.path_qs} for {request.host}")
    if connection is None:
        return [("protocol", "cannot be told: several requests came at once"), asked]
    session = "resumed session" if connection["resumed"] else "new session"
    return [
        ("protocol", f"{connection['alpn']} (ALPN)"),
        ("TLS", f"{connection['tls_version'].removeprefix('TLSv')}, {connection['cipher']}, {session}"),
        ("handshake", _timing(connection["stages"])),
        (
            "connection",
            f"number {connection['connection']} from {connection['client']}, request {connection['requests']}",
        ),
        asked,
    ]


def _timing(stages: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {stages[key] / 1000:.2f}" for key, name in _STAGES.items())
    return f"{stages['total_us'] / 1000:.2f} ms ({parts})"


def _as_json(request: web.Request, connection: dict[str, Any] | None) -> dict[str, Any]:
    return {"method": request.method, "host": request.host, "path": request.path_qs, "connection": connection}


_NEXT = ("mitu dev --to 3000", "puts trusted HTTPS in front of what you have at port 3000")


def _as_text(request: web.Request, connection: dict[str, Any] | None) -> str:
    lines = [f"  {name:<12}{value}" for name, value in _facts(request, connection)]
    return "\n".join(
        ["It works: this is mitu, over HTTPS.", "", *lines, "", f"Next: {_NEXT[0]}", f"      {_NEXT[1]}", ""]
    )


def _as_html(request: web.Request, connection: dict[str, Any] | None) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _facts(request, connection)
    )
    return _HTML.replace("{rows}", rows).replace("{command}", _NEXT[0]).replace("{does}", _NEXT[1])


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>It works: mitu</title>
<style>
  body { font: 1.05rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 12vh auto; padding: 0 1.5rem }
  h1 { font-size: 2rem; margin: 0 0 1.5rem }
  table { border-collapse: collapse; width: 100% }
  th, td { text-align: left; vertical-align: top; padding: .45rem 1rem .45rem 0; border-top: 1px solid #8884 }
  th { font-weight: 500; opacity: .65; white-space: nowrap }
  code { font: .95em ui-monospace, monospace; background: #8882; padding: .15em .4em; border-radius: .3em }
</style>
<h1>It works over HTTPS.</h1>
<table>{rows}</table>
<p>Next: <code>{command}</code> {does}.</p>
"""
