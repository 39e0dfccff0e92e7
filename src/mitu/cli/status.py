"""`mitu status`: what a running gateway serves, and how its last reload went."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from mitu.cli.output import Exit, console, print_error, print_json
from mitu.cli.remote import AsJson, Config, Socket, admin_socket, reporting


def command(config: Config = None, socket: Socket = None, as_json: AsJson = False) -> None:
    """Show what a running gateway serves.

    Exit code 0: it serves; 1: it drains, or its last reload was refused; 2: no gateway could be asked.
    """
    from mitu.admin.client import AdminClient

    with reporting(as_json=as_json):
        status = AdminClient(admin_socket(config, socket)).get("/status")
    well = status["state"] == "serving" and status["reloads"]["last_error"] is None
    if as_json:
        print_json(status)
    else:
        _show(status)
    raise typer.Exit(int(Exit.OK if well else Exit.PROBLEM))


def _show(status: dict[str, Any]) -> None:
    out = console()
    colour = "green" if status["state"] == "serving" else "yellow"
    out.print(
        f"mitu {status['version']}  [{colour}]{status['state']}[/]  pid {status['pid']}"
        f"  {status['connections']} connections",
        markup=True,
    )
    handshakes = status["handshakes"]
    if handshakes["waiting"] or handshakes["shed"]:
        out.print(f"handshakes: {handshakes['waiting']} wait for a turn, {handshakes['shed']} shed since the start")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("listener", "address", "protocols"):
        table.add_column(title)
    for listener in status["listeners"]:
        cells = (listener["name"], listener["address"], ", ".join(listener["protocols"]))
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)
    config, reloads = status["config"], status["reloads"]
    live = f"configuration {config['digest'][:12]} of {config['file']}, live since {_time(config['loaded_at'])}"
    out.print(live, markup=False)
    out.print(f"reloads: {reloads['succeeded']} done, {reloads['failed']} refused")
    for warning in config["warnings"]:
        out.print(Text.assemble(("warning", "yellow"), f": {warning}"))
    if reloads["last_error"] is not None:
        print_error(reloads["last_error"], out, f"the last reload was refused at {_time(reloads['last_at'])}")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
