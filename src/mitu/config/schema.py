"""The JSON Schema of the configuration, made from the models."""

from __future__ import annotations

from typing import Any

from mitu.config.model import Config


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, for files: every shorthand is in it."""
    schema = Config.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://mitu.invalid/schema/mitu.schema.json",
        **schema,
    }
