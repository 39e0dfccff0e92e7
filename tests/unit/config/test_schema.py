"""The JSON Schema takes what the models take."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitu.config.schema import json_schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")
GOLDEN = Path(__file__).parents[2] / "golden"


def data(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return tomllib.loads(text) if path.suffix == ".toml" else YAML(typ="safe").load(text)


def errors(path: Path) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    return [error.message for error in validator.iter_errors(data(path))]


@pytest.mark.parametrize(
    "path", sorted(p for p in (GOLDEN / "good").iterdir() if p.name.count(".") == 1), ids=lambda p: p.name
)
def test_good_configurations_are_valid(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert errors(path) == []


@pytest.mark.parametrize(
    "name",
    ["unknown-field", "missing-field", "wrong-type-list", "wrong-choice", "workers-out-of-range", "tls-unknown-group",
     "redirect-status", "size-decimal", "duration-words", "tls-old-version"],
)  # fmt: skip
def test_bad_shapes_are_not(name: str) -> None:
    assert errors(GOLDEN / "bad" / f"{name}.yaml")


def fields(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            yield f"{path}.{name}", field
        for key, value in node.items():
            yield from fields(value, f"{path}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from fields(value, path)


def test_every_field_is_described() -> None:
    schema = json_schema()
    described = {name for name, one in schema["$defs"].items() if one.get("description")}
    for path, field in fields(schema):
        reference = field.get("$ref", "").removeprefix("#/$defs/")
        assert field.get("description") or reference in described, path
