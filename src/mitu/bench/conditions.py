"""`--fail-if 'p99>50ms'`: a metric, a comparison, a value with its unit."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from mitu.bench import WantedError
from mitu.bench.result import STAGES, Check, Latency, Outcome, Result
from mitu.bench.units import SECONDS, milliseconds
from mitu.config.diagnostic import nearest

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
# As people write them; without the dot, and with an underscore, they are the fields of the result.
_FIGURES = ("mean", "min", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max")
_STAGES = tuple(name.replace("_", "-") for name in STAGES)
_COUNTS = ("completed", "failed", "unfinished", "connections", "retries", "dropped")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# Those that are neither a latency nor a count, with the unit that they take.
_OTHERS: dict[str, tuple[str, Callable[[Outcome], float | None]]] = {
    "rate": ("/s", lambda outcome: outcome.per_second),
    "errors": ("", lambda outcome: sum(one.count for one in outcome.errors.values())),
    "error-rate": ("%", lambda outcome: _share(outcome.failed, outcome.completed + outcome.failed)),
    "resumed": ("%", lambda outcome: _share(outcome.resumed, outcome.connections)),
}
METRICS = (
    *_FIGURES,
    *(f"{stage}.{figure}" for stage in _STAGES for figure in _FIGURES),
    *_COUNTS,
    *_OTHERS,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """`value`: milliseconds of a latency, a share, a rate per second or a count, as the metric is."""

    text: str
    metric: str
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """WantedError says what is wrong, and the nearest thing that is right."""
        match = re.fullmatch(r"\s*([a-z0-9.-]+)\s*(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*(%|/s|[a-zµ]*)\s*", text)
        if match is None:
            raise WantedError(f"--fail-if: '{text}' is not a condition; write p99>50ms, error-rate>1% or rate<1000")
        metric, comparison, number, unit = match.groups()
        if metric not in METRICS:
            closest = nearest(metric, METRICS)
            hint = f"did you mean '{closest}'?" if closest else "known: p99, handshake.p99, rate, failed, error-rate"
            raise WantedError(f"--fail-if: no metric '{metric}'; {hint}")
        kind = _kind(metric)
        if kind == "ms":
            if unit not in SECONDS:
                raise WantedError(f"--fail-if: '{metric}' is a time; write {metric}{comparison}{number}ms")
            return cls(text.strip(), metric, comparison, float(number) * SECONDS[unit] * 1e3)
        allowed = {"%": ("%", ""), "/s": ("/s", ""), "": ("",)}[kind]
        if unit not in allowed:
            right = f"{metric}{comparison}{number}{kind}"
            raise WantedError(f"--fail-if: '{unit}' is not a unit of '{metric}'; write {right}")
        return cls(text.strip(), metric, comparison, float(number) / (100 if unit == "%" else 1))

    def check(self, outcome: Outcome) -> Check:
        """What was not measured has failed: nothing completed is no pass."""
        value = measured(self.metric, outcome)
        failed = value is None or _COMPARISONS[self.comparison](value, self.value)
        return Check(condition=self.text, value=None if value is None else shown(self.metric, value), failed=failed)


def _kind(metric: str) -> str:
    if metric in _OTHERS:
        return _OTHERS[metric][0]
    return "" if metric in _COUNTS else "ms"


def measured(metric: str, outcome: Outcome) -> float | None:
    """None: nothing was measured that it could be told from."""
    if metric in _OTHERS:
        return _OTHERS[metric][1](outcome)
    if metric in _COUNTS:
        return float(getattr(outcome, metric))
    # Of `handshake.p99.9` the first part is the stage; without one it is the whole.
    stage, _, figure = metric.partition(".") if metric.partition(".")[0] in _STAGES else ("total", "", metric)
    latency: Latency = getattr(outcome.stages, stage.replace("-", "_"))
    return float(getattr(latency, figure.replace(".", ""))) if latency.count else None


def shown(metric: str, value: float) -> str:
    kind = _kind(metric)
    if kind == "ms":
        return milliseconds(value)
    if kind == "%":
        return f"{value * 100:.4g}%"
    return f"{value:,.0f}{kind}"


def failures(result: Result) -> list[str]:
    """What failed, for people."""
    return [
        f"{check.condition}: {'nothing was measured' if check.value is None else f'it is {check.value}'}"
        for check in result.checks
        if check.failed
    ]
