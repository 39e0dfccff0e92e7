"""`${NAME}` and `${NAME:-default}` in text, from the environment; `$$` is a plain `$`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PART = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Expanded:
    """`text` with its variables filled in; `used`: their values by name; `problem`: code, message, hint."""

    text: str
    used: tuple[tuple[str, str], ...] = ()
    problem: tuple[str, str, str | None] | None = None


def expand(text: str, environ: Mapping[str, str]) -> Expanded:
    """Fill in the variables of `text`. A variable that is set but empty takes its default, as in a shell."""
    if "$" not in text:
        return Expanded(text)
    used: list[tuple[str, str]] = []
    problems: list[tuple[str, str, str | None]] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        inside = _INSIDE.fullmatch(match[1]) if match[1] is not None else None
        if inside is None:
            problems.append(("E011", "'${' without a variable's name and '}'", "write '$$' for a plain '$'"))
            return ""
        value = environ.get(inside[1]) or inside[2]
        if value is None:
            what = "empty" if inside[1] in environ else "not set"
            hint = f"set it, or give a default: ${{{inside[1]}:-…}}"
            problems.append(("E010", f"the environment variable {inside[1]} is {what}", hint))
            return ""
        used.append((inside[1], value))
        return value

    expanded = _PART.sub(replace, text)
    return Expanded(expanded, tuple(used), problems[0] if problems else None)
