"""`mitu run`: the gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mitu.cli.output import Exit, console, exit_code, print_error, print_report


def command(
    file: Annotated[Path, typer.Argument(help="The configuration: YAML, TOML or JSON.", show_default=False)],
    drain_timeout: Annotated[
        float, typer.Option("--drain-timeout", min=0, metavar="SECONDS", help="How long a drain may take.")
    ] = 30.0,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Reload when a file of the configuration changes.")
    ] = True,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, which drain it; a second one ends it at once.

    SIGHUP reloads the configuration, SIGUSR1 reopens the access log. Exit code 0: every connection could finish;
    1: it could not start, or connections were cut off; 2: the configuration cannot be read.
    """
    from mitu.errors import ConfigError, MituError
    from mitu.supervisor import Supervisor

    errors = console(stderr=True)
    try:
        finished_well = asyncio.run(Supervisor(file, drain_timeout=drain_timeout, watch=watch).run())
    except ConfigError as error:
        print_report(error.report, errors)
        raise typer.Exit(int(exit_code(error.report))) from None
    except MituError as error:
        print_error(f"{error}{_next_step(str(error))}", errors)
        raise typer.Exit(int(Exit.PROBLEM)) from None
    raise typer.Exit(int(Exit.OK if finished_well else Exit.PROBLEM))


def _next_step(error: str) -> str:
    """What most people do about an error of the operating system."""
    if "Address already in use" in error:
        return "\n  = another program has this port: 'ss -ltnp' names it; or choose another port with 'bind'"
    if "Permission denied" in error:
        return "\n  = ports below 1024 need CAP_NET_BIND_SERVICE, or a socket from systemd (docs/guide/systemd.md)"
    if "Cannot assign requested address" in error:
        return "\n  = no interface of this machine has that address: 'ip addr' lists them"
    return ""
