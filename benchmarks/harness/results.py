"""Results: medians with their spread, ratios against each peer, as JSON and as a table."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

SUBJECT = "mitu"
Form = Literal["json", "markdown"]


@dataclass(frozen=True)
class Series:
    """One figure, measured once a round."""

    rounds: Sequence[float]

    @property
    def median(self) -> float:
        """The figure that is reported."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Largest less smallest round, as a share of the median."""
        return (max(self.rounds) - min(self.rounds)) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Goal:
    """The most, or the least, that mitu's figure in `column` may be: as a share of that of the row `to`, or by itself
    without one.
    """

    column: str
    limit: float
    to: str | None = None
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether this is enough."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass
class Sheet:
    """One table. `rows`: by server, then by column; ratios are formed on the column `figure`."""

    name: str
    title: str
    figure: str
    columns: Mapping[str, str]
    rows: dict[str, dict[str, Series]] = field(default_factory=dict)
    #: Rows that show mitu's own figure under another condition; no ratio is formed against them.
    variants: frozenset[str] = frozenset()
    goals: Sequence[Goal] = ()

    def add(self, server: str, **values: float) -> None:
        """One round's figures of `server`."""
        row = self.rows.setdefault(server, {})
        for column, value in values.items():
            row[column] = Series([*row[column].rounds, value] if column in row else [value])

    def ratios(self) -> dict[str, float]:
        """mitu's figure as a share of each peer's."""
        if SUBJECT not in self.rows:
            return {}
        own = self.rows[SUBJECT][self.figure].median
        return {
            server: own / row[self.figure].median
            for server, row in self.rows.items()
            if server not in {SUBJECT, *self.variants} and self.figure in row and row[self.figure].median
        }

    def reached(self, goal: Goal) -> float | None:
        """What is held against `goal`; None when it was not measured, which is not the same as met."""
        rows = [SUBJECT] if goal.to is None else [SUBJECT, goal.to]
        if any(goal.column not in self.rows.get(row, {}) for row in rows):
            return None
        figures = [self.rows[row][goal.column].median for row in rows]
        if goal.to is None:
            return figures[0]
        return figures[0] / figures[1] if figures[1] else None

    def verdicts(self) -> Iterator[list[str]]:
        """For people: each goal, what was measured, and whether that is enough."""
        for goal in self.goals:
            value, column = self.reached(goal), self.columns[goal.column]
            sign = "≥" if goal.at_least else "≤"
            wanted = f"{column} {sign} {goal.limit:g}"
            if goal.to is not None:
                wanted = f"{column}, {SUBJECT} ÷ {goal.to} {sign} {goal.limit:.2f}"
            if value is None:
                yield [wanted, "", "not measured"]
            else:
                yield [wanted, f"{value:.2f}", "yes" if goal.met(value) else "no"]

    def document(self) -> dict[str, Any]:
        """The table as JSON has it."""
        rows = {
            server: {
                column: {"median": series.median, "spread": series.spread, "rounds": list(series.rounds)}
                for column, series in row.items()
            }
            for server, row in self.rows.items()
        }
        return {
            "name": self.name,
            "title": self.title,
            "figure": self.figure,
            "columns": dict(self.columns),
            "rows": rows,
            "ratios": {"subject": SUBJECT, "to": self.ratios()},
            "goals": [
                {
                    "column": goal.column,
                    "to": goal.to,
                    "goal": goal.limit,
                    "at_least": goal.at_least,
                    "value": value,
                    "met": None if value is None else goal.met(value),
                }
                for goal, value in ((goal, self.reached(goal)) for goal in self.goals)
            ],
        }

    def headings(self) -> list[str]:
        """What heads the columns of `lines`."""
        return ["server", *self.columns.values(), "spread", f"{SUBJECT} ÷ it"]

    def lines(self) -> Iterator[list[str]]:
        """For people: medians, the spread of the figure, and the ratio."""
        ratios = self.ratios()
        for server, row in self.rows.items():
            cells = [_number(row[column].median) if column in row else "" for column in self.columns]
            spread = f"±{row[self.figure].spread / 2:.0%}" if self.figure in row else ""
            yield [server, *cells, spread, f"{ratios[server]:.2f}" if server in ratios else ""]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        for heading in self.headings():
            table.add_column(heading, justify="left" if heading == "server" else "right")
        for line in self.lines():
            table.add_row(*line)
        if self.goals:
            table.caption = "\n".join(" | ".join(verdict) for verdict in self.verdicts())
            table.caption_justify = "left"
        return table

    def markdown(self) -> str:
        """For `docs/benchmarks.md`."""
        rule = ["---", *("---:" for _ in self.headings()[1:])]
        parts = [f"**{self.title}**", "", *_rows([self.headings(), rule, *self.lines()]), ""]
        if self.goals:
            parts += [*_rows([["goal", "measured", "met"], ["---", "---:", "---"], *self.verdicts()]), ""]
        return "\n".join(parts)


@dataclass
class Result:
    """Everything one benchmark has to say."""

    benchmark: str
    command: str
    quick: bool
    rounds: int
    sheets: list[Sheet] = field(default_factory=list)
    #: Server: how to get it.
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Something the reader must know about the figures; said once."""
        if text not in self.notes:
            self.notes.append(text)

    def document(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "benchmark": self.benchmark,
            "command": self.command,
            "quick": self.quick,
            "rounds": self.rounds,
            "machine": machine(),
            "missing": self.missing,
            "notes": self.notes,
            "sheets": [sheet.document() for sheet in self.sheets],
        }

    def remarks(self) -> Iterator[str]:
        """What must be said beside the tables."""
        for server, get in self.missing.items():
            yield f"not measured: {server} is missing; {get}"
        yield from (f"note: {note}" for note in self.notes)
        described = machine()
        yield f"{described['cpu']}, {described['cores']} cores, Linux {described['kernel']}; rounds: {self.rounds}"

    def markdown(self) -> str:
        """For `docs/benchmarks.md`."""
        return "\n".join([*(sheet.markdown() for sheet in self.sheets), *self.remarks()])

    def show(self) -> None:
        """Print it as tables to standard output."""
        console = Console(width=None if sys.stdout.isatty() else 140)
        for sheet in self.sheets:
            console.print(sheet.table())
        for remark in self.remarks():
            console.print(remark, markup=False, highlight=False)


def write(outputs: Mapping[Form, Path | None], document: Any, results: Sequence[Result]) -> None:
    """Write `results` in each form that is asked for, to its file or, for None, to standard output."""
    for form, path in outputs.items():
        text = json.dumps(document, indent=2) if form == "json" else "\n".join(one.markdown() for one in results)
        if path is None:
            print(text)
        else:
            path.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len([line for line in info if line.startswith("processor")]),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _rows(lines: Iterable[list[str]]) -> Iterator[str]:
    return (f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
