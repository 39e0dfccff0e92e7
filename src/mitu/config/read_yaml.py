"""YAML 1.2 to a tree of nodes, from the parser's events: no recursion, no tags, bounded aliases."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from mitu.config.source import MAX_DEPTH, MAX_NODES, Mark, Node, SourceError

# The core schema of YAML 1.2 (§10.3.2): `yes`, `on` and dates are text.
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,32}|[0-9]{1,32}(\.[0-9]{0,32})?)([eE][-+]?[0-9]{1,3})?")


@dataclass(slots=True)
class _Open:
    """A container whose end has not been seen."""

    node: Node
    anchor: str | None
    key: str | None = None
    key_mark: Mark | None = None
    merges: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 1


def read_yaml(text: str) -> Node:
    """The document's root. SourceError for anything but one plain document."""
    try:
        return _Builder().build(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        hint = "indent with spaces" if "\\t" in str(error.problem) else None
        raise SourceError("E003", f"not valid YAML: {_told(error)}", line, column, hint) from error
    except YAMLError as error:
        raise SourceError("E003", f"not valid YAML: {str(error).splitlines()[0]}") from error
    except SourceError:
        raise
    except Exception as error:  # the parser's own accidents on odd input are the input's fault too
        raise SourceError("E003", f"not valid YAML: {type(error).__name__} in the parser") from error


def _told(error: MarkedYAMLError) -> str:
    parts = [str(part).strip() for part in (error.context, error.problem) if part]
    return ", ".join(parts) or "unknown problem"


def _tag_refused(tag: str, mark: Mark) -> SourceError:
    short = tag.replace("tag:yaml.org,2002:", "!!")
    return SourceError("E007", f"the YAML tag '{short}' is not allowed", mark.line, mark.column)


class _Builder:
    def __init__(self) -> None:
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        self.nodes = 0
        self.documents = 0
        self.root: Node | None = None

    def build(self, text: str) -> Node:
        for event in YAML(typ="safe", pure=True).parse(text):
            self._event(event)
        return self.root if self.root is not None else Node(None, Mark(1, 1))

    def _event(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, NodeEvent):
            if len(self.stack) >= MAX_DEPTH:
                raise SourceError("E005", f"nested more than {MAX_DEPTH} levels deep", line, column)
            self._node(event, line, column)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            done = self.stack.pop()
            _merge(done)
            self._add(done.node, done.anchor, done.size, done.height)
        elif isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise SourceError("E003", "more than one YAML document in the file", line, column)

    def _node(self, event: Any, line: int, column: int) -> None:
        if isinstance(event, AliasEvent):
            known = self.anchors.get(event.anchor)
            if known is None:
                raise SourceError("E006", f"alias '*{event.anchor}' before its anchor", line, column)
            self._add(known[0], None, known[1], known[2], (line, column))
            return
        mark = Mark(line, column)
        if isinstance(event, ScalarEvent):
            end = (event.end_mark.line + 1, event.end_mark.column + 1)
            mark = Mark(line, column, end)
            self._add(Node(self._scalar(event, mark), mark), event.anchor, 1, 0)
        elif event.tag not in (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise _tag_refused(event.tag, mark)
        elif isinstance(event, MappingStartEvent):
            self._check_key(line, column)
            self.stack.append(_Open(Node({}, mark), event.anchor))
        elif isinstance(event, SequenceStartEvent):
            self._check_key(line, column)
            self.stack.append(_Open(Node([], mark), event.anchor))

    def _check_key(self, line: int, column: int) -> None:
        if self.stack and isinstance(self.stack[-1].node.value, dict) and self.stack[-1].key is None:
            raise SourceError("E003", "a key must be plain text", line, column)

    def _scalar(self, event: ScalarEvent, mark: Mark) -> Any:
        tag = event.tag
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _tag_refused(str(tag), mark)
        parent = self.stack[-1] if self.stack else None
        is_key = parent is not None and isinstance(parent.node.value, dict) and parent.key is None
        text = str(event.value)
        return text if tag or is_key or event.style else plain_scalar(text)

    def _add(self, node: Node, anchor: str | None, size: int, height: int, at: tuple[int, int] | None = None) -> None:
        """Put a finished node where it belongs. `size`: the nodes it stands for, aliases
        expanded; `height`: its levels."""
        where = at or (node.mark.line, node.mark.column)
        self.nodes += 1
        if anchor is not None:
            self.anchors[anchor] = (node, size, height)
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif parent.key is None:
            self._key(parent, node)
            return
        elif parent.key == "<<":
            parent.merges.append(node)
            parent.key = None
        else:
            parent.node.value[parent.key] = node
            parent.key = None
        parent.size += size
        parent.height = max(parent.height, height + 1)
        if len(self.stack) + height > MAX_DEPTH:
            raise SourceError("E005", f"nested more than {MAX_DEPTH} levels deep, aliases expanded", *where)
        if parent.size > MAX_NODES or self.nodes > MAX_NODES:
            raise SourceError("E006", f"more than {MAX_NODES} values, aliases expanded", *where)

    def _key(self, parent: _Open, node: Node) -> None:
        if not isinstance(node.value, str):
            raise SourceError("E003", "a key must be plain text", node.mark.line, node.mark.column)
        if node.value in parent.node.value:
            first = parent.node.keys[node.value]
            message = f"'{node.value}' is given twice, first in line {first.line}"
            raise SourceError("E004", message, node.mark.line, node.mark.column, "keep one of them")
        parent.key = node.value
        if node.value != "<<":
            parent.node.keys[node.value] = node.mark


def _merge(done: _Open) -> None:
    """`<<: *base`: the base's entries that the mapping does not set itself."""
    sources = [one for node in done.merges for one in (node.value if isinstance(node.value, list) else [node])]
    for source in sources:
        if not isinstance(source.value, dict):
            raise SourceError("E003", "'<<' merges mappings only", source.mark.line, source.mark.column)
        for key, child in source.value.items():
            if key not in done.node.value:
                done.node.value[key] = child
                done.node.keys[key] = source.keys[key]


def plain_scalar(text: str) -> Any:
    """What an unquoted scalar means."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
