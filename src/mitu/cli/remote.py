"""What the commands share that talk to a running gateway: how they find it, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mitu.cli.output import Exit, console, exit_code, print_error, print_json, print_report

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The configuration file that the gateway runs with; names its admin socket."),
]
Socket = Annotated[Path | None, typer.Option("--socket", help="The gateway's admin socket.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def admin_socket(config: Path | None, socket: Path | None) -> Path:
    """The socket that the options name, or the default one."""
    from mitu.config.load import load_config
    from mitu.config.model import default_admin_socket

    if socket is not None:
        return socket
    return default_admin_socket() if config is None else load_config(config).admin.socket_path


@contextmanager
def reporting(*, as_json: bool, lines: bool = False) -> Iterator[None]:
    """Ends the command with a clear message when the gateway cannot be asked. `lines`: its JSON is a line for each."""
    from mitu.errors import AdminError, ConfigError

    try:
        yield
    except ConfigError as error:
        print_report(error.report, console(stderr=True))
        raise typer.Exit(int(exit_code(error.report))) from None
    except AdminError as error:
        if as_json:
            print_json({"ok": False, "error": str(error)}, line=lines)
        else:
            print_error(error, console(stderr=True))
        raise typer.Exit(int(Exit.UNKNOWN)) from None
