"""`mitu alpn explain HOST`: why clients of a server name get their protocols in this order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mitu.cli.discover import ranking_line
from mitu.cli.output import console, print_json
from mitu.cli.remote import AsJson, Config, Socket, admin_socket, reporting

app = typer.Typer(
    help="The order of protocols that clients are offered.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def _group() -> None:
    """Keeps `explain` a command of its own, though there is only one so far."""


@app.command()
def explain(
    host: Annotated[str | None, typer.Argument(help="A server name; without one, all orders are explained.")] = None,
    config: Config = None,
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Say why clients of a server name get their protocols in this order, from which evidence, and what changed it.

    Exit code 0: it is explained; 2: no gateway could be asked.
    """
    from mitu.admin.client import AdminClient

    with reporting(as_json=as_json):
        client = AdminClient(admin_socket(config, socket))
        rankings = client.get("/alpn")
        listeners = client.get("/config")["listeners"]
    orders = [_explained(listener, rankings, host) for listener in listeners]
    if as_json:
        print_json(orders)
        return
    for at, order in enumerate(orders):
        if at:
            console().print()
        _show(order)


def _explained(listener: dict[str, Any], rankings: list[dict[str, Any]], host: str | None) -> dict[str, Any]:
    """What a listener does for `host`: the rankings concerned, or the order that stays and why."""
    from mitu.config.sites import settings_of

    site = None
    if host is not None:
        sites = listener.get("sites", [])
        at = settings_of(host.lower(), [tuple(one["names"]) for one in sites])
        site = None if at is None else sites[at]
    own = [one for one in rankings if one["listener"] == listener["name"]]
    if host is not None:
        wanted = [] if site is None else site["names"]
        own = [one for one in own if one["server_names"] == wanted]
    fixed = None
    if not own:
        protocols = [one["alpn"] for one in listener["protocols"]]
        order = protocols if site is None else site.get("alpn_order") or site.get("protocols") or protocols
        pinned = site is not None and site.get("alpn_order") is not None
        why = "alpn_order pins it" if pinned else "the listener has no alpn_ranking"
        fixed = {"order": order, "why": why}
    return {"listener": listener["name"], "host": host, "rankings": own, "fixed": fixed}


def _show(order: dict[str, Any]) -> None:
    out = console()
    if order["fixed"] is not None:
        offered = ", ".join(order["fixed"]["order"])
        out.print(Text.assemble((order["listener"], "bold"), f" offers {offered}, always: {order['fixed']['why']}"))
    for ranking in order["rankings"]:
        out.print(ranking_line(ranking))
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("protocol", "score", "upstreams", "why"):
            table.add_column(title, justify="right" if title == "score" else "left")
        for one in ranking["protocols"]:
            score = "" if one["score"] is None else f"{one['score']:g}"
            cells = (one["alpn"], score, ", ".join(one["upstreams"]), one["why"])
            table.add_row(*(Text(cell) for cell in cells))
        out.print(table)
        for decision in ranking["decisions"][-5:]:
            out.print(_decision(decision))


def _decision(decision: dict[str, Any]) -> Text:
    at = datetime.fromtimestamp(decision["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    orders = f"{', '.join(decision['before'])} -> {', '.join(decision['after'])}"
    causes = "; ".join(decision["causes"])
    return Text.assemble((at, "dim"), f"  {orders}  after {decision['took'] * 1e3:.0f} ms: {causes}")
