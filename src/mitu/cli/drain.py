"""`mitu drain`: end a running gateway in good order."""

from __future__ import annotations

import time

import typer

from mitu.cli.output import Exit, console, print_json
from mitu.cli.remote import AsJson, Config, Socket, admin_socket, reporting

_POLL = 0.1


def command(config: Config = None, socket: Socket = None, as_json: AsJson = False) -> None:
    """Drain a running gateway: it stops accepting, its connections finish, and it ends.

    Waits for the end. Exit code 0: it has ended; 2: no gateway could be asked.
    """
    from mitu.admin.client import AdminClient
    from mitu.errors import AdminError

    with reporting(as_json=as_json):
        client = AdminClient(admin_socket(config, socket))
        pid = client.pid()
        status, answer = client.post("/drain")
        if status != 202:
            raise AdminError(str(answer.get("error", f"status {status}")))
    if not as_json:
        console().print(f"draining: {answer['connections']} connections have to finish")
    begun = time.monotonic()
    while client.pid() == pid:  # A successor may be on the same socket by now.
        time.sleep(_POLL)
    took = time.monotonic() - begun
    if as_json:
        print_json({"ok": True, "connections": answer["connections"], "seconds": round(took, 3)})
    else:
        console().print(f"drained in {took:.1f} s")
    raise typer.Exit(int(Exit.OK))
