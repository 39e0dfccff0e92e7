"""The public names of the package."""

from __future__ import annotations

import mitu
import mitu.config
from mitu.errors import MituError


def test_every_public_name_is_there() -> None:
    for module in (mitu, mitu.config):
        for name in module.__all__:
            assert getattr(module, name) is not None, name


def test_errors_have_one_root_and_say_what_they_are() -> None:
    errors = [getattr(mitu, name) for name in mitu.__all__ if name.endswith("Error")]
    assert len(errors) >= 5
    for error in errors:
        assert issubclass(error, MituError)
        assert error.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(mitu, "no_such_name")
    assert not hasattr(mitu.config, "no_such_name")
