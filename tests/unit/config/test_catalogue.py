"""Every code that is raised is in the catalogue, and every entry is raised; the reference pages are not stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mitu
from mitu.config.catalogue import catalogue
from mitu.config.reference import configuration_page, errors_page

SOURCE = Path(mitu.__file__).parent
DOCS = Path(__file__).parents[3] / "docs" / "reference"


def test_catalogue_and_code_agree() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "output.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    raised = set(re.findall(r'"([EW]\d{3})"', text))
    assert raised == set(catalogue())


def test_entries_are_whole_and_in_order() -> None:
    codes = list(catalogue())
    assert codes == sorted(codes)
    for code in catalogue().values():
        assert all(part.strip() for part in (code.title, code.meaning, code.example, code.mend)), code.code
        assert code.title[0].islower() or code.title[:2].isupper(), code.code
        assert code.meaning.endswith((".", "2.")), code.code


@pytest.mark.parametrize(("page", "make"), [("configuration.md", configuration_page), ("errors.md", errors_page)])
def test_reference_is_not_stale(page: str, make: object) -> None:
    assert callable(make)
    assert (DOCS / page).read_text(encoding="utf-8") == make(), "run: python -m mitu.config.reference"
