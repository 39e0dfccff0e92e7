"""`mitu explain`: what an error code means and how to mend it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from mitu.cli.output import Exit, console, print_json


def command(
    code: Annotated[str | None, typer.Argument(help="A code such as E012; without one, all are listed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what an error code means, what raises it, and how to mend it."""
    from mitu.config.catalogue import catalogue
    from mitu.config.diagnostic import nearest

    known = catalogue()
    if code is None:
        if as_json:
            print_json([_as_json(one) for one in known])
        else:
            console().print("\n".join(f"{one.code}  {one.title}" for one in known.values()), markup=False)
        return
    entry = known.get(code.upper())
    if entry is None:
        closest = nearest(code.upper(), known)
        advice = f"; did you mean {closest}?" if closest else ""
        console(stderr=True).print(f"no error code '{code}'{advice}", markup=False)
        raise typer.Exit(int(Exit.UNKNOWN))
    if as_json:
        print_json(_as_json(entry.code))
        return
    text = Text()
    text.append(f"{entry.code}: {entry.title}\n\n", style="bold")
    text.append(f"{entry.meaning}\n\n")
    text.append("Raised by\n", style="bold")
    text.append("".join(f"    {line}\n" for line in entry.example.strip("\n").splitlines()), style="yellow")
    text.append("\nTo mend it\n", style="bold")
    text.append(f"    {entry.mend}")
    console().print(text)


def _as_json(code: str) -> dict[str, str]:
    from mitu.config.catalogue import catalogue

    entry = catalogue()[code]
    return {"code": code, "title": entry.title, "meaning": entry.meaning, "example": entry.example, "mend": entry.mend}
