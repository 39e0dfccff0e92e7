"""TOML 1.0 to a tree of nodes: `tomllib` reads and judges it, a scan over the text finds the positions."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from mitu.config.diagnostic import Part
from mitu.config.source import MAX_DEPTH, MAX_NODES, Mark, Node, SourceError

_AT = re.compile(r"\(at (?:line (\d+), column (\d+)|end of document)\)")
_TWICE = (
    "Cannot overwrite a value",
    "Cannot declare",
    "Cannot redefine",
    "Cannot mutate",
    "Duplicate inline table key",
)
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|\'[^\']*\'',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")

Places = dict[tuple[Part, ...], tuple[Mark, Mark]]


def read_toml(text: str) -> Node:
    """The document's root. SourceError when it is not TOML."""
    _bound_depth(text)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _problem(str(error), text) from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise SourceError("E003", f"not valid TOML: {type(error).__name__} in the parser") from error
    places = _Scanner(text).scan()
    return _Tree(places).node(data, (), Mark(1, 1))


def _problem(message: str, text: str) -> SourceError:
    match = _AT.search(message)
    line, column = (int(match[1]), int(match[2])) if match and match[1] else (text.count("\n") + 1, None)
    told = _AT.sub("", message).strip()
    code = "E004" if told.startswith(_TWICE) else "E003"
    told = told[:1].lower() + told[1:]
    return SourceError(code, f"not valid TOML: {told}", line, column)


def _bound_depth(text: str) -> None:
    """tomllib recurses into arrays and inline tables; refuse what could exhaust the stack."""
    depth = 0
    for match in re.finditer(r'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[\[\]{}]|#[^\n]*|\n(?=[ \t]*\[)', text):
        if match[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                line = text.count("\n", 0, match.start()) + 1
                raise SourceError("E005", f"nested more than {MAX_DEPTH} levels deep", line)
        elif match[0] in ("]", "}"):
            depth = max(0, depth - 1)


class _Tree:
    """Plain data and places to nodes."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.nodes = 0

    def node(self, data: Any, loc: tuple[Part, ...], parent: Mark) -> Node:
        self.nodes += 1
        mark = self.places.get(loc, (parent, parent))[1]
        if self.nodes > MAX_NODES:
            raise SourceError("E006", f"more than {MAX_NODES} values", mark.line, mark.column)
        if len(loc) > MAX_DEPTH:
            raise SourceError("E005", f"nested more than {MAX_DEPTH} levels deep", mark.line, mark.column)
        if isinstance(data, dict):
            node = Node({}, mark)
            for key, child in data.items():
                node.value[key] = self.node(child, (*loc, key), mark)
                node.keys[key] = self.places.get((*loc, key), (mark, mark))[0]
            return node
        if isinstance(data, list):
            return Node([self.node(child, (*loc, at), mark) for at, child in enumerate(data)], mark)
        scalar = data if isinstance(data, str | int | float | bool) else str(data)
        return Node(scalar, mark)


class _Scanner:
    """Finds where each key and value of a valid TOML document stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: Places = {}
        self.arrays: dict[tuple[Part, ...], int] = {}
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def scan(self) -> Places:
        table: tuple[Part, ...] = ()
        while self._peek():
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self.places

    def _mark(self, start: int, end: int | None = None) -> Mark:
        return Mark(*self._place(start), None if end is None else self._place(end))

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def _peek(self) -> str:
        match = _SKIP.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def _header(self) -> tuple[Part, ...]:
        """`[a.b]` or `[[a.b]]`; the location that the following pairs belong to."""
        start = self.at
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        *parents, last = self._dotted()
        self._peek()
        self.at += 2 if many else 1
        loc = (*self._inside((), parents), last)
        mark = self._mark(start)
        self.places.setdefault(loc, (mark, mark))
        if many:
            index = self.arrays.get(loc, -1) + 1
            self.arrays[loc] = index
            loc = (*loc, index)
            self.places[loc] = (mark, mark)
            return loc
        return self._inside((), [*parents, last])

    def _inside(self, loc: tuple[Part, ...], keys: list[str]) -> tuple[Part, ...]:
        """Follow `keys`, into the last element of each array of tables on the way."""
        for key in keys:
            loc = (*loc, key)
            if loc in self.arrays:
                loc = (*loc, self.arrays[loc])
        return loc

    def _dotted(self) -> list[str]:
        keys = []
        while True:
            next_char = self._peek()
            match = (_STRING if next_char in "\"'" else _BARE).match(self.text, self.at)
            if match is None:
                raise SourceError("E003", "not valid TOML: expected a key", *self._place(self.at))
            self.at = match.end()
            keys.append(_unquote(match[0]))
            if self._peek() != ".":
                return keys
            self.at += 1

    def _pair(self, table: tuple[Part, ...]) -> None:
        start = self.at
        keys = self._dotted()
        self.at += 1  # the equals sign
        key_mark = self._mark(start)
        loc = table
        for key in keys:
            loc = (*loc, key)
            self.places.setdefault(loc, (key_mark, key_mark))
        self.places[loc] = (key_mark, self._value(loc))

    def _value(self, loc: tuple[Part, ...]) -> Mark:
        next_char = self._peek()
        start = self.at
        if next_char == "[":
            self.at += 1
            for index in self._items("]"):
                mark = self._mark(self.at)
                self.places[(*loc, index)] = (mark, mark)
                mark = self._value((*loc, index))
                self.places[(*loc, index)] = (mark, mark)
            return self._mark(start)
        if next_char == "{":
            self.at += 1
            for _ in self._items("}"):
                self._pair(loc)
            return self._mark(start)
        match = (_STRING if next_char in ('"', "'") else _SCALAR).match(self.text, self.at)
        if match is None:
            raise SourceError("E003", "not valid TOML: expected a value", *self._place(self.at))
        self.at = match.end()
        return self._mark(start, start + len(match[0].rstrip()))

    def _items(self, end: str) -> Iterator[int]:
        """One turn for each item up to `end`, commas passed over."""
        index = 0
        while self._peek() not in (end, ""):
            yield index
            index += 1
            if self._peek() == ",":
                self.at += 1
        self.at += 1


def _unquote(key: str) -> str:
    if key[0] not in "\"'":
        return key
    return next(iter(tomllib.loads(f"{key} = 0")))
