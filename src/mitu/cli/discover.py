"""`mitu discover`: which instances a running gateway knows of, how they are, and what protocols are worth by that."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mitu.cli.output import Exit, console, print_json
from mitu.cli.remote import AsJson, Config, Socket, admin_socket, reporting

_COLOURS = {"healthy": "green", "degraded": "yellow", "unavailable": "red"}
_WATCH_EVERY = 0.5


def command(
    upstream: Annotated[str | None, typer.Argument(help="Only this upstream.")] = None,
    config: Config = None,
    socket: Socket = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again as it changes, until Ctrl+C.")] = False,
) -> None:
    """Show the instances of discovered and checked upstreams: health, protocols, and the order that follows from them.

    Exit code 0: something of everything is known and up to date; 1: an upstream has no usable instance, or a registry
    cannot be asked; 2: no gateway could be asked, or it has no such upstream. With --watch 0 after Ctrl+C, and 2 once
    the gateway has ended; with --json too, each state is one line.
    """
    with reporting(as_json=as_json, lines=watch):
        where = admin_socket(config, socket)
        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                _watch(where, upstream, as_json=as_json)
            return
        found = _ask(where, upstream)
    if as_json:
        print_json(found)
    else:
        console().print(_show(found))
    raise typer.Exit(int(Exit.OK if _well(found) else Exit.PROBLEM))


def _ask(socket: Path, upstream: str | None) -> dict[str, Any]:
    from mitu.admin.client import AdminClient
    from mitu.config.diagnostic import nearest
    from mitu.errors import AdminError

    client = AdminClient(socket)
    services, rankings = client.get("/discovery"), client.get("/alpn")
    if upstream is not None:
        names = [one["upstream"] for one in services]
        if upstream not in names:
            closest = nearest(upstream, names)
            advice = f"; did you mean '{closest}'?" if closest else "; 'mitu discover' lists those there are"
            raise AdminError(f"no upstream '{upstream}' is discovered or checked{advice}")
        services = [one for one in services if one["upstream"] == upstream]
        rankings = [one for one in rankings if any(upstream in each["upstreams"] for each in one["protocols"])]
    return {"upstreams": services, "rankings": rankings}


def _well(found: dict[str, Any]) -> bool:
    return all(not one["stale"] and any(each["used"] for each in one["instances"]) for one in found["upstreams"])


def _watch(socket: Path, upstream: str | None, *, as_json: bool) -> None:
    """In place on a terminal; elsewhere once more each time that something is otherwise."""
    out = console()
    if not as_json and out.file.isatty() and not out.is_dumb_terminal:
        # What is wider would be cut off, since a line that the terminal wraps itself cannot be written over.
        out.soft_wrap = False
        with Live(console=out, auto_refresh=False, screen=False) as live:
            while True:
                live.update(_show(_ask(socket, upstream)), refresh=True)
                time.sleep(_WATCH_EVERY)
    before = None
    while True:
        found = _ask(socket, upstream)
        # A registry that says the same again says nothing.
        told = found | {"upstreams": [one | {"known_at": None} for one in found["upstreams"]]}
        if told != before:
            before = told
            if as_json:
                print_json(found, line=True)
            else:
                out.print(_show(found))
                out.file.flush()
        time.sleep(_WATCH_EVERY)


def _show(found: dict[str, Any]) -> Group:
    if not found["upstreams"]:
        hint = "nothing is discovered: give an upstream 'discover' or 'health_check' (docs/guide/discovery.md)"
        return Group(Text(hint))
    parts: list[Any] = []
    for service in found["upstreams"]:
        parts += [_title(service), _instances(service), Text()]
    for ranking in found["rankings"]:
        parts.append(ranking_line(ranking))
    return Group(*parts)


def _title(service: dict[str, Any]) -> Text:
    provider = "listed in the configuration"
    if service["provider"] is not None:
        provider = f"{service['service']} in {service['provider']}"
    text = Text.assemble((service["upstream"], "bold"), f"  {provider}")
    if service["stale"]:
        known = "nothing known"
        if service["known_at"] is not None:
            known = f"as known {_ago(time.time() - service['known_at'])} ago"
        text.append(f"  {known}: {service['error']}", style="yellow")
    return text


def _instances(service: dict[str, Any]) -> Table | Text:
    if not service["instances"]:
        return Text("  no instance", style="red")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("instance", "address", "weight", "used", "health", "protocols", "zone", "why"):
        # The reason gives way, where there is not room for all: addresses are to be copied.
        table.add_column(title, justify="right" if title == "weight" else "left", no_wrap=title != "why")
    for one in service["instances"]:
        protocols = "?" if one["protocols"] is None else ", ".join(one["protocols"]) or "none"
        table.add_row(
            Text(one["name"]),
            Text(one["address"]),
            str(one["weight"]),
            "yes" if one["used"] else "no",
            Text(one["health"], style=_COLOURS[one["health"]]),
            Text(protocols),
            Text(one["zone"] or ""),
            Text(one["reason"]),
        )
    return table


def ranking_line(ranking: dict[str, Any]) -> Text:
    """`edge offers h2 (10), http/1.1 (6)`."""
    scores = {one["alpn"]: one["score"] for one in ranking["protocols"]}
    order = ", ".join(_scored(name, scores.get(name)) for name in ranking["order"])
    left_out = [one["alpn"] for one in ranking["protocols"] if not one["offered"]]
    text = Text.assemble((ranking["ranking"], "bold"), f" offers {order}")
    if left_out:
        text.append(f", not {', '.join(left_out)}", style="yellow")
    if ranking["fallback"]:
        text.append("  (the configured order: nobody serves any of them)", style="yellow")
    return text


def _scored(name: str, score: float | None) -> str:
    return name if score is None else f"{name} ({score:g})"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
