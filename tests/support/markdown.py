"""Markdown pages taken apart: fenced blocks, code in the text, links and the headings that they lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MADE = {"target", "dist", "node_modules"}
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>\w*)\n(?P<text>.*?)^ *(?P=fence) *$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block. `line`: of its first line, counted from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """The file that a first line such as `# counter.py` names; empty without one."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Page:
    """One page. `text` is all of it, `prose` what is outside of fenced blocks, line for line."""

    path: Path
    text: str

    @cached_property
    def prose(self) -> str:
        return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), self.text)

    def blocks(self, *languages: str) -> Iterator[Block]:
        for match in _FENCE.finditer(self.text):
            if match["language"] in languages:
                line = self.text.count("\n", 0, match.start("text")) + 1
                indent = match["indent"]
                lines = [one.removeprefix(indent) for one in match["text"].splitlines(keepends=True)]
                yield Block(self.path, line, match["language"], "".join(lines))

    def code(self) -> Iterator[tuple[str, str]]:
        """Each piece of code in the text, and what stands right after it."""
        for match in re.finditer(r"`([^`\n]+)`", self.prose):
            yield match[1], self.prose[match.end() : match.end() + 120]

    def links(self) -> Iterator[str]:
        for match in re.finditer(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", self.prose)):
            yield match[1]

    def anchors(self) -> set[str]:
        """What a link to a heading here may be called, as GitHub does."""
        headings = re.findall(r"^#+ +(.+?) *$", self.prose, re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


def pages() -> list[Page]:
    """Every page of the repository, but for what tools put there."""
    found = []
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") or part in _MADE for part in parts):
            found.append(Page(path, path.read_text(encoding="utf-8")))
    return found
