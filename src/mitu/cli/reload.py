"""`mitu reload`: make the configuration file, as it now is, live."""

from __future__ import annotations

import typer

from mitu.cli.output import Exit, console, print_error, print_json
from mitu.cli.remote import AsJson, Config, Socket, admin_socket, reporting


def command(config: Config = None, socket: Socket = None, as_json: AsJson = False) -> None:
    """Reload a running gateway's configuration, whole or not at all.

    Exit code 0: it is live; 1: it was refused, and the last good configuration stays; 2: no gateway could be asked.
    """
    from mitu.admin.client import AdminClient

    with reporting(as_json=as_json):
        status, answer = AdminClient(admin_socket(config, socket)).post("/reload")
    ok = status == 200
    if as_json:
        print_json(answer)
    elif ok:
        told = "reloaded" if answer["changed"] else "nothing has changed"
        console().print(f"{told}: configuration {answer['digest'][:12]}")
    else:
        print_error(answer["error"], console(stderr=True), "not reloaded, the last good configuration stays")
    raise typer.Exit(int(Exit.OK if ok else Exit.PROBLEM))
