"""`mitu check`: everything that can be wrong with a configuration, found before it runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer

from mitu.cli.output import console, exit_code, print_json, print_report


def command(
    file: Annotated[Path, typer.Argument(help="The configuration: YAML, TOML or JSON.", show_default=False)],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the full form, every default filled in, secrets redacted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as problems.")] = False,
) -> None:
    """Check a configuration and every file that it names.

    Exit code 0: in order; 1: problems were found; 2: it could not be checked.
    """
    from mitu.config.checker import inspect
    from mitu.config.resolve import resolved as resolve

    checked = inspect(file)
    report, code = checked.report, exit_code(checked.report, strict=strict)
    form = resolve(checked.config) if resolved and checked.config is not None else None
    if as_json:
        print_json(report.as_json() | ({"resolved": form} if resolved else {}))
    elif form is not None:
        print(to_yaml(form), end="")
        print_report(report, console(stderr=True))
    else:
        out = console()
        print_report(report, out)
        if not report.errors and checked.config is not None:
            out.print(_ok(file, checked.config, len(report.warnings)))
    raise typer.Exit(int(code))


def _ok(file: Path, config: Any, warnings: int) -> str:
    routes = sum(len(listener.routes) for listener in config.listeners)
    counts = (
        (len(config.listeners), "listener"),
        (routes, "route"),
        (len(config.upstreams), "upstream"),
    )
    told = ", ".join(f"{number} {what}{'' if number == 1 else 's'}" for number, what in counts)
    return f"{file}: {'ok' if not warnings else 'usable'}: {told}"


def to_yaml(value: Any) -> str:
    """`value` as YAML in block style, which `mitu check` and `mitu run` read back."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()
