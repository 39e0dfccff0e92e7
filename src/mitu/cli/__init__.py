"""The command line: one file per command, imported when the command runs, so that `mitu` starts quickly."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mitu.config.diagnostic import nearest

# Each is a module of this package with a function `command`, or an `app` of several. The order is that of
# `mitu --help`.
COMMANDS = (
    "run",
    "check",
    "reload",
    "status",
    "drain",
    "discover",
    "alpn",
    "schema",
    "explain",
    "crypto",
    "bench",
    "dev",
)


class _Commands(TyperGroup):
    """Finds a command's module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"mitu.cli.{name}") is not None]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            closest = nearest(args[0], known)
            ctx.fail(f"no command '{args[0]}'" + (f"; did you mean '{closest}'?" if closest else ""))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"mitu.cli.{cmd_name}")
        if hasattr(module, "app"):
            group = typer.main.get_command(module.app)
            group.name = cmd_name
            return group
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name, no_args_is_help=False)(module.command)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    help="The TLS edge gateway: HTTP/1.1, HTTP/2, MQTT and private protocols on one port, chosen by ALPN.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mitu {version('mitu')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What goes in front of a command."""


def main() -> None:
    """The entry point. Exit codes: 0 well, 1 a problem was found, 2 wrong usage or it could not be checked."""
    app()
