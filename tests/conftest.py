"""What every test shares: which programs are there, what waits for those that are not, and the count of each pack."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from support import packs
from support.programs import WANTED

_waiting: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    # Where the tests run in the background it is ignored, and so by all programs that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(program): skipped, with how to get it, where the program is missing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    packs.mark(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        wanted = WANTED[marker.args[0]]
        if not wanted.found():
            _waiting[wanted.name] += 1
            pytest.skip(f"{wanted.name} is missing: {wanted.advice}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in packs.summary(terminalreporter.stats):
        terminalreporter.write_line(line)
    for name, count in sorted(_waiting.items()):
        terminalreporter.write_line(f"{name} is missing, and {count} tests wait for it: {WANTED[name].advice}")
