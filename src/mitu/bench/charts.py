"""Line charts as SVG: plain shapes and text, coloured by the page's own style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 34
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """`name` is in the legend, `style` a class of the page's style; None breaks the line."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`; `ticks` are where it is labelled."""

    low: float
    high: float
    ticks: Sequence[float]
    label: Callable[[float], str]
    scale: Callable[[float], float] = lambda value: value

    def place(self, value: float) -> float:
        """From 0 at `low` to 1 at `high`."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / ((high - low) or 1.0)


def linear(high: float, label: Callable[[float], str]) -> Axis:
    """From 0 to a round number not below `high`."""
    step = _round_step((high or 1.0) / _TICKS)
    count = max(1, math.ceil((high or 1.0) / step - 1e-9))
    return Axis(0.0, count * step, [step * tick for tick in range(count + 1)], label)


def logarithmic(low: float, high: float, label: Callable[[float], str]) -> Axis:
    """Between powers of ten around `low` and `high`, both above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if first == last:
        last += 1
    return Axis(10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1)], label, math.log10)


def percentiles(last: float) -> Axis:
    """Ever closer to 100, as far as `last`: 50, 90, 99, 99.9 and so on are equally far apart, but for the first."""
    ticks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999]
    shown = [tick for tick in ticks if tick <= last] or ticks[:1]
    return Axis(0.0, max(last, 50.0), shown, lambda value: f"{value:g}%", lambda value: -math.log10(1 - value / 100))


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """A figure with its legend. `title` tells those who cannot see it what it shows."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_label(y, tick)}</text>')
    for tick in x.ticks:
        at = _x(x, tick)
        low = HEIGHT - _BOTTOM
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{low}" y2="{low + 5}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{low + 20}" text-anchor="middle">{_label(x, tick)}</text>')
    for line in lines:
        parts.extend(_draw(line, x, y))
    parts.append("</svg>")
    legend = "".join(f'<span><i class="{line.style}"></i>{escape(line.name)}</span>' for line in lines)
    return f'<figure>{"".join(parts)}<figcaption class="legend">{legend}</figcaption></figure>'


def _draw(line: Line, x: Axis, y: Axis) -> list[str]:
    drawn = []
    for run in _runs(line.points):
        path = " ".join(f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in run)
        if line.filled:
            first, last, low = _x(x, run[0][0]), _x(x, run[-1][0]), HEIGHT - _BOTTOM
            drawn.append(f'<polygon class="{line.style} area" points="{first:.1f},{low} {path} {last:.1f},{low}"/>')
        if len(run) == 1:
            at, value = run[0]
            drawn.append(f'<circle class="{line.style} dot" cx="{_x(x, at):.1f}" cy="{_y(y, value):.1f}" r="3"/>')
        drawn.append(f'<polyline class="{line.style}" points="{path}"/>')
        for at, value in run:
            told = escape(f"{line.name} at {x.label(at)}: {y.label(value)}")
            place = f'cx="{_x(x, at):.1f}" cy="{_y(y, value):.1f}"'
            drawn.append(f'<circle class="hover" {place} r="5"><title>{told}</title></circle>')
    return drawn


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The parts of a line without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value is not None:
            runs[-1].append((at, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _label(axis: Axis, value: float) -> str:
    return escape(axis.label(value))


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5, 10 and so on."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
