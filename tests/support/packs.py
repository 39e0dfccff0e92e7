"""Packs: modules of cases that belong together. The terminal's summary tells how many were tried and how many failed.

A module says `PACK = "h2 floods"`; several may have the same name. What its tests note by `record_property` as a float
is summed up.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

PROPERTY = "pack"
OUTCOMES = {"passed": "", "failed": "failed", "error": "failed", "xfailed": "known", "skipped": "skipped"}


@dataclass
class Pack:
    """The cases by what became of them, each once, and the figures by name, each with the case that it is of."""

    cases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    figures: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))

    def note(self, became: str, report: pytest.TestReport) -> None:
        self.cases[became].add(report.nodeid)
        for name, value in report.user_properties:
            if isinstance(value, float):
                self.figures[name].append((value, report.nodeid.rpartition("::")[2]))

    def lines(self, name: str) -> Iterator[str]:
        count = len(set().union(*self.cases.values()))
        known, skipped = (len(self.cases[became]) for became in ("known", "skipped"))
        more = (f", {known} known ones" if known else "") + (f", {skipped} skipped" if skipped else "")
        yield f"{name}: {count} cases, {len(self.cases['failed'])} failed{more}"
        for figure, values in self.figures.items():
            middle = statistics.median(value for value, _ in values)
            most, case = max(values)
            yield f"  {figure}: {middle:.3g} in the middle, {most:.3g} at most, in {case}"


def mark(items: Iterable[pytest.Item]) -> None:
    """Has the reports of each test say which pack it belongs to."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item.module, "PACK"):
            item.user_properties.append((PROPERTY, item.module.PACK))


def summary(stats: Mapping[str, Iterable[Any]]) -> Iterator[str]:
    """The lines about the packs that were run, from what the terminal's reporter has gathered."""
    packs: dict[str, Pack] = defaultdict(Pack)
    for outcome, became in OUTCOMES.items():
        for report in stats.get(outcome, ()):
            pack = dict(getattr(report, "user_properties", ())).get(PROPERTY)
            if pack is not None:
                packs[pack].note(became, report)
    for name, pack in sorted(packs.items()):
        yield from pack.lines(name)
