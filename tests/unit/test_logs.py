"""The form of the gateway's own log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from mitu.config.model import Logging
from mitu.logs import configure


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("mitu").level
    yield
    root.handlers[:], level, own = before
    root.setLevel(level)
    logging.getLogger("mitu").setLevel(own)


def lines(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logging())
    logging.getLogger("mitu.admin").info('served\n"%s"', "x\x1b[31m")
    text = capsys.readouterr().err
    (line,) = lines(text)
    assert line["message"] == 'served\n"x\x1b[31m"'
    assert (line["level"], line["logger"]) == ("info", "mitu.admin")
    assert datetime.fromisoformat(line["ts"]).tzinfo is not None
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logging())
    try:
        raise ValueError("no\ngood")
    except ValueError:
        logging.getLogger("mitu").exception("failed")
    (line,) = lines(capsys.readouterr().err)
    assert line["traceback"].endswith("ValueError: no\ngood")


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logging(level="warning"))
    for logger in ("mitu", "asyncio"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(logger).log(level, "said")
    assert [(line["logger"], line["level"]) for line in lines(capsys.readouterr().err)] == [
        ("mitu", "warning"), ("mitu", "error"), ("asyncio", "warning"), ("asyncio", "error"),
    ]  # fmt: skip
    configure(Logging(level="debug"))
    logging.getLogger("mitu").debug("said")
    logging.getLogger("asyncio").debug("not said")
    assert [line["level"] for line in lines(capsys.readouterr().err)] == ["debug"]


def test_text_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logging(format="text"))
    logging.getLogger("mitu").warning("listeners[0].routes[/x] on [::]:443")
    assert "listeners[0].routes[/x] on [::]:443" in capsys.readouterr().err
