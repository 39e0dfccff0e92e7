"""Writes the reference pages from the models and the catalogue: `python -m mitu.config.reference [FOLDER]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mitu.config.catalogue import catalogue
from mitu.config.schema import json_schema

_MADE = "<!-- Made by `python -m mitu.config.reference`; edit the models instead. -->\n"
_INTRO = """\
# Configuration reference

YAML, TOML or JSON, told by the file's name. Relative paths start from the file's folder. In every text value `${NAME}`
and `${NAME:-default}` are filled in from the environment; `$$` is a plain `$`. Where a secret is expected,
`{file: path}` stands for what the file holds. Durations are written `500ms`, `10s`, `5m`, `1h`, sizes `64KiB`, `1MiB`,
or in bytes. `mitu schema` prints all of this as JSON Schema for editors, `mitu check --resolved FILE` prints a
configuration with every default filled in.
"""


def configuration_page() -> str:
    """docs/reference/configuration.md."""
    schema = json_schema()
    parts = [_MADE, _INTRO, _section("The file", schema, schema["$defs"])]
    parts += [_section(name, _full(definition), schema["$defs"]) for name, definition in _in_order(schema)]
    return "\n".join(parts)


def errors_page() -> str:
    """docs/reference/errors.md."""
    parts = [
        _MADE,
        "# Error codes\n\n`E…` are errors, `W…` warnings. `mitu explain CODE` prints the same on the command line.\n",
    ]
    for code in catalogue().values():
        example = code.example.strip("\n")
        parts.append(
            f"## {code.code}: {code.title}\n\n{code.meaning}\n\n```\n{example}\n```\n\nTo mend it: {code.mend}\n"
        )
    return "\n".join(parts)


def _in_order(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The definitions in the order in which the page first refers to them."""
    seen: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            name = node.get("$ref", "").removeprefix("#/$defs/")
            if name and name not in seen:
                seen.append(name)
                visit(schema["$defs"][name])
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(schema["properties"])
    return ((name, schema["$defs"][name]) for name in seen)


def _full(definition: dict[str, Any]) -> dict[str, Any]:
    """The mapping form of a definition that has a short one too."""
    for form in definition.get("anyOf", ()):
        if "properties" in form:
            return {**form, "short": next(one for one in definition["anyOf"] if one is not form)}
    return definition


def _section(name: str, definition: dict[str, Any], others: dict[str, Any]) -> str:
    lines = [f"## {name}", "", definition.get("description", ""), ""]
    if "short" in definition:
        lines += [f"Short form: {_kind(definition['short'])}.", ""]
    lines += ["| field | kind | default | meaning |", "|---|---|---|---|"]
    required = definition.get("required", [])
    for field, schema in definition["properties"].items():
        default = "required" if field in required else _default(schema)
        # pydantic leaves out a field's description when its model says the same.
        model = others.get(schema.get("$ref", "").removeprefix("#/$defs/"), {})
        meaning = schema.get("description", model.get("description", "")).replace("|", "\\|")
        lines.append(f"| `{field}` | {_kind(schema)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None:
        return ""
    if isinstance(value, dict):
        return "see there" if value else "none"
    if value == []:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema:
        words = dict.fromkeys(str(one) for one in schema["enum"])
        return ", ".join(f"`{word}`" for word in words)
    if "const" in schema:
        word = schema["const"]
        return f"`{str(word).lower() if isinstance(word, bool) else word}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("type") == "object":
        extra = schema.get("additionalProperties")
        return f"mapping to {_kind(extra)}" if isinstance(extra, dict) else "mapping"
    return _scalar(schema)


def _scalar(schema: dict[str, Any]) -> str:
    if schema.get("type") == "integer":
        low, high = schema.get("minimum"), schema.get("maximum")
        return f"{low} to {high}" if low is not None and high is not None else "whole number"
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    pattern = schema.get("pattern", "")
    if "ms|s|m|h|d" in pattern:
        return "duration"
    if "KiB" in pattern:
        return "size"
    return "path of a file" if schema.get("format") == "path" else "text"


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    (folder / "errors.md").write_text(errors_page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
