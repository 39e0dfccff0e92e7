"""Every bad configuration in tests/golden/bad, each with its full message.

`pytest tests/unit/config --update` writes the messages anew; read the difference before committing it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from mitu.cli.output import render, summary
from mitu.config.catalogue import catalogue
from mitu.config.checker import inspect
from mitu.config.diagnostic import Report

BAD = Path(__file__).parents[2] / "golden" / "bad"
CASES = sorted(path for path in BAD.iterdir() if path.suffix != ".txt")
ENVIRON = {"MITU_TEST_SECRET_WORD": "sesame-opens-the-mountain"}


def told(path: Path, certs: Path, folder: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, str]:
    """What `check` finds in a copy of `path` that has the certificates beside it."""
    (folder / path.name).write_bytes(path.read_bytes())
    (folder / "certs").symlink_to(certs)
    monkeypatch.chdir(folder)
    report = inspect(path.name, environ=ENVIRON, now=now).report
    # Whether the data plane is built makes no difference to the messages of all others.
    report = Report(report.errors, tuple(one for one in report.warnings if one.code != "W009"))
    found = [render(one).plain for one in (*report.errors, *report.warnings)]
    text = "\n".join([*found, summary(report).plain if found else "nothing found"]) + "\n"
    return report, text.replace(str(folder), "$FOLDER")


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.name))
def test_message(
    path: Path, certs: Path, tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch, update: bool
) -> None:
    if path.stem.startswith("data-plane"):
        pytest.importorskip("mitu._native", reason="the data plane is not built: maturin develop")
    report, text = told(path, certs, tmp_path, now, monkeypatch)
    golden = path.with_name(f"{path.name}.txt")
    if update:
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), f"no golden for {path.name}: run with --update"
    assert text == golden.read_text(encoding="utf-8")
    assert report.warnings if path.stem.startswith("warning") else report.errors
    assert not (path.stem.startswith("warning") and report.errors)
    assert "sesame" not in text
    assert "hunter2" not in text


def test_there_are_enough() -> None:
    assert len(CASES) >= 60
    assert {path.suffix for path in CASES} == {".yaml", ".toml", ".json"}


def test_every_golden_has_its_configuration() -> None:
    assert {path.name.removesuffix(".txt") for path in BAD.glob("*.txt")} == {path.name for path in CASES}


def test_every_code_has_a_golden() -> None:
    """But those of files that cannot be there: missing, huge, or of no known format; a missing data plane; and what
    only a running gateway knows."""
    text = "".join(path.read_text(encoding="utf-8") for path in BAD.glob("*.txt"))
    unseen = {code for code in catalogue() if f"[{code}]" not in text}
    assert unseen == {"E001", "E002", "E009", "W009", "W011"}
