"""Two results side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mitu.bench.conditions import measured, shown
from mitu.bench.result import Result

METRICS = (
    "completed",
    "failed",
    "rate",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "connect.p99",
    "handshake.p50",
    "handshake.p99",
    "response.p50",
    "response.p99",
    "late.p99",
)


@dataclass(frozen=True, slots=True)
class Row:
    """`before` and `after`: None where nothing was measured."""

    metric: str
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        return None if not self.before or self.after is None else self.after / self.before

    def cells(self) -> tuple[str, str, str, str]:
        sides = ["-" if value is None else self.shown(value) for value in (self.before, self.after)]
        return self.metric, sides[0], sides[1], "-" if self.ratio is None else f"{self.ratio:.2f}"

    def shown(self, value: float) -> str:
        return shown(self.metric, value)


def rows(before: Result, after: Result) -> list[Row]:
    found = [Row(name, measured(name, before.outcome), measured(name, after.outcome)) for name in METRICS]
    for name in ("client_cpu_us", "gateway_cpu_us"):
        found.append(_CpuRow(name.replace("_us", "").replace("_", "-"), getattr(before, name), getattr(after, name)))
    return [row for row in found if row.before is not None or row.after is not None]


class _CpuRow(Row):
    """Microseconds of CPU for each that was completed."""

    def shown(self, value: float) -> str:
        return f"{value:,.1f} µs"


def differences(before: Result, after: Result) -> list[str]:
    """What was not the same in both, so that their ratio may mean something else."""
    told = []
    if before.command != after.command:
        told.append(f"command: {before.command}, {after.command}")
    for name in sorted({*before.settings, *after.settings}):
        sides = [one.settings.get(name, "not set") for one in (before, after)]
        if sides[0] != sides[1]:
            told.append(f"{name}: {sides[0]}, {sides[1]}")
    for name in ("cpu", "cores", "kernel"):
        values = [getattr(one.machine, name) for one in (before, after)]
        if values[0] != values[1]:
            told.append(f"{name}: {values[0]}, {values[1]}")
    return told


def as_json(before: Result, after: Result) -> dict[str, Any]:
    return {
        "differences": differences(before, after),
        "metrics": [
            {"metric": row.metric, "before": row.before, "after": row.after, "ratio": row.ratio}
            for row in rows(before, after)
        ],
    }
