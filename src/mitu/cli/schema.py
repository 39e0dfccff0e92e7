"""`mitu schema`: the configuration's JSON Schema, for editors."""

from __future__ import annotations

from mitu.cli.output import print_json


def command() -> None:
    """Print the JSON Schema of the configuration, for completion and hints in editors.

    With the YAML language server: write the schema to a file and begin the configuration with
    `# yaml-language-server: $schema=mitu.schema.json`.
    """
    from mitu.config.schema import json_schema

    print_json(json_schema())
