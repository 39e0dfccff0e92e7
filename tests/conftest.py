"""What every test shares: which programs are there, and what waits for those that are not."""

from __future__ import annotations

from collections import Counter

import pytest

from support.programs import WANTED

_waiting: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): skipped, with how to get it, where the program is missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        wanted = WANTED[marker.args[0]]
        if not wanted.found():
            _waiting[wanted.name] += 1
            pytest.skip(f"{wanted.name} is missing: {wanted.advice}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in sorted(_waiting.items()):
        terminalreporter.write_line(f"{name} is missing, and {count} tests wait for it: {WANTED[name].advice}")
