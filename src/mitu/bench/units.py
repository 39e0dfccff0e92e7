"""Quantities as people write them: `50ms`, `30%`, `100..2000`."""

from __future__ import annotations

import math
import re

from mitu.bench import WantedError

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"


def seconds(text: str, option: str) -> float:
    """`10s` in seconds. WantedError names `option`."""
    match = re.fullmatch(rf"({_NUMBER})({'|'.join(SECONDS)})", text.strip())
    if match is None:
        hint = f"; write {text}s or {text}ms" if re.fullmatch(_NUMBER, text) else "; write 500ms, 10s or 5m"
        raise WantedError(f"{option}: '{text}' is not a duration{hint}")
    return float(match[1]) * SECONDS[match[2]]


def share(text: str, option: str) -> float:
    """`30%` or `0.3`."""
    match = re.fullmatch(rf"({_NUMBER})(%?)", text.strip())
    value = math.nan if match is None else float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise WantedError(f"{option}: '{text}' is not a share; write 30% or 0.3")
    return value


def span(text: str, option: str) -> tuple[float, float]:
    """`500` (twice the same) or `100..2000`: from the first to the last."""
    match = re.fullmatch(rf"({_NUMBER})(?:\.\.({_NUMBER}))?", text.strip())
    if match is None or not (first := float(match[1])) + (last := float(match[2] or match[1])) > 0:
        raise WantedError(f"{option}: '{text}' is not a rate; write 500, or 100..2000 for a ramp")
    return first, last


def milliseconds(value: float) -> str:
    """For people: three digits, in the unit that fits. `value`: milliseconds."""
    for factor, unit in ((1e3, "µs"), (1.0, "ms"), (1e-3, "s")):
        scaled = value * factor
        if scaled < 1000 or unit == "s":
            digits = 0 if scaled >= 100 or scaled == 0 else 1 if scaled >= 10 else 2
            return f"{scaled:,.{digits}f} {unit}"
    raise AssertionError("the last unit takes every value")
