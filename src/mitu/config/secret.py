"""Secrets: written down, from the environment, or in a file of their own."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, SecretStr, field_serializer, model_validator

from mitu.config.base import Model
from mitu.config.types import ConfigPath, fail


class Secret(Model):
    """A secret: `{file: path}`, or text (better from `${ENV}` than as written)."""

    shorthand: ClassVar[str | None] = "value"
    value: SecretStr | None = Field(default=None, description="The secret itself.")
    file: ConfigPath | None = Field(default=None, description="The file that holds it; the last newline is dropped.")

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.value is None) == (self.file is None):
            fail("E022", "a secret is exactly one of these", allowed=("text", "{file: path}"))
        return self

    @field_serializer("value")
    def _redact(self, value: SecretStr | None) -> str | None:
        return None if value is None else "(redacted)"

    def reveal(self) -> str:
        """The secret. OSError or UnicodeDecodeError when its file cannot be read."""
        if self.file is not None:
            return self.file.read_text(encoding="utf-8").removesuffix("\n")
        return "" if self.value is None else self.value.get_secret_value()
