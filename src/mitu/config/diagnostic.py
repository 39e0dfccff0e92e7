"""What is wrong with a configuration, and where: plain values that the CLI and the API render."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Part = str | int
Loc = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error or warning. `code` is an entry of the catalogue: `E…` an error, `W…` a warning.

    `message` is lower case and names what was found; a secret never appears in any field. `line` and `column` count
    from 1, `width` columns are meant; they, `file` and `source` (the line's text, secrets masked) are None for a
    configuration built in code.
    """

    code: str
    message: str
    loc: Loc = ()
    file: Path | None = None
    line: int | None = None
    column: int | None = None
    source: str | None = None
    found: str | None = None
    allowed: tuple[str, ...] = ()
    nearest: str | None = None
    hint: str | None = None
    width: int = 1

    @property
    def is_error(self) -> bool:
        return self.code.startswith("E")

    @property
    def path(self) -> str:
        """The field's path as people write it: `listeners[0].protocols[2].relay`."""
        return format_loc(self.loc)

    @property
    def position(self) -> str:
        """`file:line:column`, as far as it is known."""
        parts = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        return ":".join(parts)

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.position, self.path) if part)
        text = f"{self.code} {where}: {self.message}" if where else f"{self.code} {self.message}"
        return f"{text} ({self.advice})" if self.advice else text

    @property
    def advice(self) -> str:
        """Nearest match, what is allowed and the next step, in one line; empty when there is nothing to say."""
        parts = []
        if self.nearest is not None:
            parts.append(f"did you mean '{self.nearest}'?")
        if self.allowed:
            parts.append(f"allowed: {', '.join(self.allowed)}")
        if self.hint is not None:
            parts.append(self.hint)
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": "error" if self.is_error else "warning",
            "message": self.message,
            "path": self.path,
            "file": None if self.file is None else str(self.file),
            "line": self.line,
            "column": self.column,
            "found": self.found,
            "allowed": list(self.allowed),
            "nearest": self.nearest,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a check found, in the order of the file."""

    errors: tuple[Diagnostic, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.errors

    @classmethod
    def of(cls, diagnostics: Iterable[Diagnostic]) -> Report:
        ordered = sorted(diagnostics, key=lambda one: (one.line or 0, one.column or 0))
        unique = tuple(dict.fromkeys(ordered))
        return cls(
            errors=tuple(one for one in unique if one.is_error),
            warnings=tuple(one for one in unique if not one.is_error),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "errors": [one.as_json() for one in self.errors],
            "warnings": [one.as_json() for one in self.warnings],
        }


def format_loc(loc: Loc) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "a").replace("-", "a").isalnum() and part.isascii():
            text += f".{part}" if text else part
        else:
            quoted = part if part.isprintable() else part.encode("unicode_escape").decode("ascii")
            text += f'["{quoted}"]'
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, case aside; None when nothing is like it."""
    by_lower = {name.lower(): name for name in known}
    lowered = word[:256].lower()
    found = get_close_matches(lowered, by_lower, n=1, cutoff=0.6)
    if not found and len(lowered) >= 3:
        found = [name for name in by_lower if name.startswith(lowered)][:1]
    return by_lower[found[0]] if found else None
