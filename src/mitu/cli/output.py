"""What all commands print with: colours where they are wanted, JSON where a machine reads, and the exit codes."""

from __future__ import annotations

import json
import os
import sys
from enum import IntEnum
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from mitu.config.diagnostic import Diagnostic, Report

_SOURCE_WIDTH = 140
_WIDTH = 200


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    PROBLEM = 1
    """What was looked at is not in order."""
    UNKNOWN = 2
    """Wrong usage, or it could not be looked at: never a pass."""


def console(*, stderr: bool = False) -> Console:
    """A console for people. Rich itself honours NO_COLOR and drops colours where no terminal reads."""
    stream = sys.stderr if stderr else sys.stdout
    # Where no terminal has a width, nothing is cut off for it.
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=width)


def print_json(value: Any, *, line: bool = False) -> None:
    """`value` on stdout as JSON, without colours and in one go. `line`: as one of several, a line for each."""
    print(json.dumps(value, indent=None if line else 2, ensure_ascii=True), flush=True)


def print_error(error: object, to: Console, title: str = "error") -> None:
    """`error` as it is: brackets in it are its own, and no markup."""
    text = Text()
    text.append(title, style="bold red")
    text.append(f": {error}")
    to.print(text)


def fail(reason: object, *, as_json: bool) -> NoReturn:
    """Ends a command that could not do what it is for."""
    if as_json:
        print_json({"ok": False, "error": str(reason)})
    else:
        print_error(reason, console(stderr=True))
    raise typer.Exit(int(Exit.UNKNOWN))


def exit_code(report: Report, *, strict: bool = False) -> Exit:
    """`strict`: warnings count as problems."""
    if any(one.code in ("E001", "E002", "E009") for one in report.errors):
        return Exit.UNKNOWN
    return Exit.PROBLEM if report.errors or (strict and report.warnings) else Exit.OK


def print_report(report: Report, to: Console) -> None:
    for one in (*report.errors, *report.warnings):
        to.print(render(one))
    if report.errors or report.warnings:
        to.print(summary(report))


def summary(report: Report) -> Text:
    counts = [_count(len(report.errors), "error"), _count(len(report.warnings), "warning")]
    told = " and ".join(one for one in counts if one)
    first = (*report.errors, *report.warnings)[0].code
    return Text(f"{told}; 'mitu explain {first}' says more", style="bold")


def _count(number: int, what: str) -> str:
    return "" if not number else f"{number} {what}{'' if number == 1 else 's'}"


def render(one: Diagnostic) -> Text:
    """A diagnostic with its line of the file and a caret below what is meant."""
    colour, kind = ("red", "error") if one.is_error else ("yellow", "warning")
    text = Text()
    text.append(f"{kind}[{one.code}]", style=f"bold {colour}")
    text.append(f": {one.message}\n", style="bold")
    gutter = " " * len(str(one.line or ""))
    where = "  ".join(part for part in (one.position, one.path) if part)
    if where:
        text.append(f"{gutter}--> ", style="blue")
        text.append(f"{where}\n")
    if one.source is not None and one.line is not None:
        line, caret, width = _excerpt(one.source, one.column, one.width)
        text.append(f"{gutter} |\n", style="blue")
        text.append(f"{one.line} | ", style="blue")
        text.append(f"{line}\n")
        if caret is not None:
            text.append(f"{gutter} | ", style="blue")
            text.append(f"{' ' * caret}{'^' * width}\n", style=colour)
    for label, value in _notes(one):
        text.append(f"{gutter} = ", style="blue")
        text.append(f"{label}{value}\n")
    return text


def _notes(one: Diagnostic) -> list[tuple[str, str]]:
    notes = []
    if one.nearest is not None:
        notes.append(("did you mean ", f"'{one.nearest}'?"))
    if one.allowed:
        notes.append(("allowed: ", ", ".join(one.allowed)))
    if one.hint is not None:
        notes.append(("", one.hint))
    return notes


def _excerpt(source: str, column: int | None, width: int) -> tuple[str, int | None, int]:
    """The part of a line around `column` that fits, the caret's offset in it, and how many carets."""
    line = "".join(char if char.isprintable() else " " for char in source)
    if column is None:
        return line[:_SOURCE_WIDTH], None, 0
    start = 0 if column <= _SOURCE_WIDTH - 20 else column - 40
    shown = line[start : start + _SOURCE_WIDTH]
    caret = column - 1 - start
    if start:
        shown, caret = f"…{shown}", caret + 1
    return shown, caret, max(1, min(width, len(shown) - caret))
