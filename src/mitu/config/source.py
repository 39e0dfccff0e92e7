"""A configuration file read into a tree that knows the line and column of every key and value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitu.config.diagnostic import Diagnostic, Loc, Part

MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_BYTES = 1 << 20

_SECRET_KEYS = (
    "token",
    "password",
    "passphrase",
    "secret",
    "secrets",
    "authorization",
    "proxy-authorization",
    "cookie",
)

_ODD_LINE_ENDS = set("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file, counted from 1; `end` is where the value stops (exclusive), None for containers."""

    line: int
    column: int
    end: tuple[int, int] | None = None


@dataclass(slots=True)
class Node:
    """A value: a scalar, a list of nodes, or a dictionary of nodes."""

    value: Any
    mark: Mark
    raw: str | None = None
    """How it was written, when it holds variables."""
    filled: str | None = None
    """What it says with those filled in."""
    keys: dict[str, Mark] = field(default_factory=dict)


class SourceError(Exception):
    """A file cannot be turned into a tree; says where and with which code."""

    def __init__(
        self, code: str, message: str, line: int | None = None, column: int | None = None, hint: str | None = None
    ):
        super().__init__(message)
        self.code, self.message, self.line, self.column, self.hint = code, message, line, column, hint


def is_secret(loc: Loc) -> bool:
    """Whether what stands there must never be shown."""
    return any(isinstance(part, str) and secret_name(part) for part in loc)


def secret_name(name: str) -> bool:
    lowered = name.lower()
    return lowered in _SECRET_KEYS or lowered.replace("-", "_").endswith(("_token", "_secret", "_password", "_key"))


@dataclass(frozen=True)
class Document:
    """A file's text and tree. `data` is the tree as plain values with `${ENV}` filled in."""

    file: Path
    text: str = field(repr=False)
    root: Node = field(repr=False)
    data: Any = field(repr=False)
    redactions: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def find(self, loc: Loc) -> tuple[Node, Mark]:
        """The node at `loc`, or the nearest one above it, and the mark of its key or of itself."""
        node, mark = self.root, self.root.mark
        for part in loc:
            child = _child(node, part)
            if child is None:
                break
            mark = _key_mark(node, part) or child.mark
            node = child
        return node, mark

    def has(self, loc: Loc) -> bool:
        node: Node | None = self.root
        for part in loc:
            node = None if node is None else _child(node, part)
        return node is not None

    def raw(self, loc: Loc) -> str | None:
        """How the scalar at `loc` was written, when that differs from its value (`${PORT}`)."""
        node: Node | None = self.root
        for part in loc:
            node = None if node is None else _child(node, part)
        return None if node is None else node.raw

    def diagnostic(self, code: str, message: str, loc: Loc, *, at_key: bool = False, **rest: Any) -> Diagnostic:
        """A diagnostic that points at `loc`: at the value, or at its key."""
        node, key = self.find(loc)
        mark = key if at_key or not self.has(loc) else node.mark
        width = mark.end[1] - mark.column if mark.end is not None and mark.end[0] == mark.line else 1
        if node.raw is not None and isinstance(node.filled, str) and node.filled:
            message = message.replace(f"'{node.filled}'", f"'{node.raw}'")
            rest["found"] = None if rest.get("found") is None else node.raw
        texts = {name: value for name, value in rest.items() if isinstance(value, str)}
        return Diagnostic(
            code,
            self.redact(message),
            loc,
            self.file,
            mark.line,
            mark.column,
            source=self.line(mark.line),
            width=width,
            **{**rest, **{name: self.redact(value) for name, value in texts.items()}},
        )

    def redact(self, text: str) -> str:
        """`text` without the values of variables that hold secrets."""
        for value, name in self.redactions:
            text = text.replace(value, f"${{{name}}}")
        return text

    def line(self, number: int) -> str | None:
        """A line of the file with the secrets in it masked."""
        lines = self.text.split("\n")
        # Where parsers disagree on what ends a line, a mask could miss its secret.
        if not 1 <= number <= len(lines) or _ODD_LINE_ENDS & set(self.text):
            return None
        line = lines[number - 1]
        for mark in _secret_marks(self.root):
            line = _mask(line, number, mark)
        return line


def _child(node: Node, part: Part) -> Node | None:
    if isinstance(node.value, dict) and isinstance(part, str):
        # Header names are compared without regard to case, and the models keep them in lower case.
        found = node.value.get(part) or next((one for key, one in node.value.items() if key.lower() == part), None)
    elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        found = node.value[part]
    else:
        found = None
    return found if isinstance(found, Node) else None


def _key_mark(node: Node, part: Part) -> Mark | None:
    return node.keys.get(str(part)) or next((mark for key, mark in node.keys.items() if key.lower() == part), None)


def _secret_marks(node: Node, secret: bool = False) -> Iterator[Mark]:
    """Every scalar under a key that holds secrets."""
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            # `key: path` names a file; only under a secret's own name does `file:` need no mask.
            yield from _secret_marks(child, (secret and key != "file") or secret_name(key))
    elif isinstance(node.value, list):
        for child in node.value:
            yield from _secret_marks(child, secret)
    elif secret or (isinstance(node.value, str) and "-----BEGIN" in node.value):
        yield node.mark


def _mask(line: str, number: int, mark: Mark) -> str:
    last, stop = mark.end or (mark.line, len(line) + 1)
    if not mark.line <= number <= last:
        return line
    start = mark.column - 1 if number == mark.line else 0
    end = stop - 1 if number == last else len(line)
    return line[:start] + "*" * max(0, end - start) + line[end:]
