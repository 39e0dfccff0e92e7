"""What every model of the configuration shares."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from mitu.config.types import fail, shown


def switch(value: object) -> object:
    """`true` in place of a mapping stands for all defaults, `false` for leaving it out."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Model(BaseModel):
    """Frozen, and refuses fields that it does not know.

    `shorthand` names the field that a bare string stands for: `h2` for `{alpn: h2}`. `unwatched`: paths of which no
    change is a change of the configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, protected_namespaces=())
    shorthand: ClassVar[str | None] = None
    unwatched: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def expand(cls, value: object) -> object:
        """The full form of what people may write short."""
        if cls.shorthand is not None and isinstance(value, str):
            return {cls.shorthand: value}
        return value

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        expanded = cls.expand(value)
        if not isinstance(expanded, dict | cls):
            short = ", or text" if cls.shorthand is not None else ""
            fail("E014", f"expected a mapping{short}, found {shown(value)}")
        return expanded

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(schema)
        if cls.shorthand is not None:
            full = handler.resolve_ref_schema(reference)
            field = full["properties"][cls.shorthand]
            short = {key: field[key] for key in ("type", "enum", "const", "anyOf", "examples", "$ref") if key in field}
            copy = dict(full)
            full.clear()
            full["anyOf"] = [short, copy]
            full["description"] = copy.get("description", "")
        return reference
