"""The catalogue of error codes. Its text is `codes.toml`; what raises a code refers to it by name only."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Code:
    """One error (`E…`) or warning (`W…`): what it means, what raises it, and how to mend it."""

    code: str
    title: str
    meaning: str
    example: str
    mend: str

    @property
    def is_error(self) -> bool:
        return self.code.startswith("E")


@cache
def catalogue() -> dict[str, Code]:
    """Every code, in order."""
    tables = tomllib.loads(files("mitu.config").joinpath("codes.toml").read_text(encoding="utf-8"))
    return {code: Code(code, **table) for code, table in tables.items()}
