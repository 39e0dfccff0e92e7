"""JSON (RFC 8259) to a tree of nodes; Python's parser gives no positions and hides duplicate keys."""

from __future__ import annotations

import re
from bisect import bisect_right
from json import JSONDecodeError, JSONDecoder
from typing import Any

from mitu.config.source import MAX_DEPTH, MAX_NODES, Mark, Node, SourceError

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(\.[0-9]{1,32})?([eE][-+]?[0-9]{1,3})?(?![0-9.eE+-])")
_STRINGS = JSONDecoder()
_WORDS = {"true": True, "false": False, "null": None}


def read_json(text: str) -> Node:
    """The document's root. SourceError for anything else than one JSON value."""
    reader = _Reader(text)
    node = reader.value(0)
    reader.skip()
    if reader.at < len(text):
        raise reader.problem("more text after the end of the document")
    return node


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nodes = 0
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def problem(self, message: str, at: int | None = None, code: str = "E003", hint: str | None = None) -> SourceError:
        text = f"not valid JSON: {message}" if code == "E003" else message
        return SourceError(code, text, *self.place(self.at if at is None else at), hint)

    def skip(self) -> str:
        """Past white space; the next character, or nothing at the end."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> Node:
        self.nodes += 1
        next_char = self.skip()
        if depth >= MAX_DEPTH:
            raise self.problem(f"nested more than {MAX_DEPTH} levels deep", code="E005")
        if self.nodes > MAX_NODES:
            raise self.problem(f"more than {MAX_NODES} values", code="E006")
        if next_char == "{":
            return self.object(depth)
        if next_char == "[":
            return self.array(depth)
        start = self.at
        value = self.string() if next_char == '"' else self.word()
        return Node(value, Mark(*self.place(start), self.place(self.at)))

    def string(self) -> str:
        start = self.at
        try:
            value, self.at = _STRINGS.raw_decode(self.text, start)
        except JSONDecodeError as error:
            raise self.problem(error.msg[:1].lower() + error.msg[1:], error.pos) from error
        return str(value)

    def word(self) -> Any:
        for word, value in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise self.problem("expected a value" if self.at < len(self.text) else "the document ends too early")
        self.at = match.end()
        return float(match[0]) if match[1] or match[2] else int(match[0])

    def object(self, depth: int) -> Node:
        node = Node({}, Mark(*self.place(self.at)))
        self.at += 1
        if self.skip() == "}":
            self.at += 1
            return node
        while True:
            if self.skip() != '"':
                raise self.problem("expected a key in double quotes")
            start = self.at
            key = self.string()
            if key in node.value:
                message = f"'{key}' is given twice, first in line {node.keys[key].line}"
                raise self.problem(message, start, "E004", "keep one of them")
            node.keys[key] = Mark(*self.place(start), self.place(self.at))
            if self.skip() != ":":
                raise self.problem("expected ':' after a key")
            self.at += 1
            node.value[key] = self.value(depth + 1)
            if self.more("}"):
                return node

    def array(self, depth: int) -> Node:
        node = Node([], Mark(*self.place(self.at)))
        self.at += 1
        if self.skip() == "]":
            self.at += 1
            return node
        while True:
            node.value.append(self.value(depth + 1))
            if self.more("]"):
                return node

    def more(self, end: str) -> bool:
        """Past a comma; True at the container's end."""
        found = self.skip()
        if found not in (",", end):
            raise self.problem(f"expected ',' or '{end}'")
        self.at += 1
        if found == "," and self.skip() == end:
            raise self.problem(f"a comma before '{end}'")
        return found == end
