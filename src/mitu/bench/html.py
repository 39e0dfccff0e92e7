"""A result as one page: charts and tables, nothing loaded from anywhere, light or dark as its reader prefers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mitu.bench import charts
from mitu.bench.result import NOUNS, SHOWN, STAGES, Latency, Outcome, Result
from mitu.bench.units import milliseconds

_MEANING = {
    "late": "due until begun: the load generator's own lateness",
    "connect": "begun until TCP is connected",
    "handshake": "connected until the client's handshake is done",
    "response": "request sent until the response is whole",
    "total": "due until done",
    "since_start": "start of the storm until the device is in",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6878; --line: #dfe3ea; --paper: #fff; --card: #f5f7fa;
  --a: #2563c9; --b: #d9730d; --c: #c9302c; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --soft: #98a3b3; --line: #323a47; --paper: #14181f;
  --card: #1d232c; --a: #6ba4f8; --b: #f0a35a; --c: #f47c77; --good: #57c076; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 940px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { margin: 0; font-size: 1.5rem } h2 { margin: 2.2rem 0 .6rem; font-size: 1.05rem }
p { margin: .3rem 0 } .soft, .tick, th { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); gap: .75rem; margin: 1.4rem 0 }
.tile { padding: .6rem .75rem; border-radius: 8px; background: var(--card) }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3 } .tile span { color: var(--soft); font-size: .85rem }
.note { margin: 1rem 0; padding: .6rem .9rem; border-left: 3px solid var(--b); background: var(--card) }
.note.bad { border-color: var(--c) } .note.good { border-color: var(--good) }
figure { margin: 0 } svg { display: block; width: 100%; height: auto }
.grid { stroke: var(--line) } .tick { font-size: 12px; fill: var(--soft) }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round } polyline.a { stroke: var(--a) }
polyline.b { stroke: var(--b) } polyline.c { stroke: var(--c) } .area { opacity: .14 } .area.a { fill: var(--a) }
.area.b { fill: var(--b) } .area.c { fill: var(--c) } .dot.a { fill: var(--a) } .dot.b { fill: var(--b) }
.dot.c { fill: var(--c) } .hover { fill: transparent } .hover:hover { fill: var(--soft) }
.legend { display: flex; gap: 1.2rem; padding-left: 64px; color: var(--soft); font-size: .85rem }
.legend i { display: inline-block; width: 14px; height: 3px; margin: 0 .4rem 3px 0; border-radius: 2px }
i.a { background: var(--a) } i.b { background: var(--b) } i.c { background: var(--c) }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th { font-weight: 400; text-align: left; font-size: .85rem } td, th { padding: .3rem .8rem .3rem 0; border-bottom:
  1px solid var(--line); vertical-align: top } .number { text-align: right; white-space: nowrap }
td small { display: block; color: var(--soft) } tr.whole td { font-weight: 600 } tr.whole small { font-weight: 400 }
"""


def page(result: Result) -> str:
    """The whole document. Whatever the server said is escaped, and the page may load and run nothing."""
    outcome = result.outcome
    noun = NOUNS[result.command]
    title = f"mitu bench {result.command}"
    of = "a gateway made for this run" if result.to.own else result.to.address
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(result.to.url)}, {escape(of)}; {escape(result.started_at)}</p>',
        _checks(result),
        _tiles(result, noun),
        _lateness(outcome),
        f"<h2>{noun.capitalize()} per second</h2>",
        _throughput(result),
        "<h2>Latency over time</h2>",
        _latency(outcome),
        "<h2>Latency by percentile</h2>",
        _curve(outcome),
        "<h2>Stages</h2>",
        _stages(outcome),
        _errors(outcome),
        _counts("Negotiated", "version, suite, group, ALPN", outcome.negotiated),
        _counts("Status", "of responses", outcome.statuses),
        "<h2>Settings</h2>",
        _table((), [(name, value) for name, value in _settings(result)]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _checks(result: Result) -> str:
    notes = [
        _note("bad", f"failed: {check.condition}; {_value(check.value)}")
        if check.failed
        else _note("good", f"passed: not {check.condition}; {_value(check.value)}")
        for check in result.checks
    ]
    if result.outcome.phase != "done":
        notes.insert(0, _note("", "stopped before its end"))
    return "".join(notes)


def _value(value: str | None) -> str:
    return "nothing was measured" if value is None else f"it is {value}"


def _note(kind: str, text: str) -> str:
    return f'<div class="note {kind}">{escape(text)}</div>'


def _tiles(result: Result, noun: str) -> str:
    outcome = result.outcome
    total, since = outcome.stages.total, outcome.stages.since_start
    tiles = [
        (f"{outcome.completed:,}", f"{noun} in {outcome.seconds:,.1f} s"),
        (f"{outcome.per_second:,.0f}/s", "completed"),
        (_figure(total, total.p50), "P50, due until done"),
        (_figure(total, total.p99), "P99"),
        (f"{outcome.failed:,}", "failed"),
    ]
    if since.count:
        tiles.append((_figure(since, since.max), "until the last was in"))
    if result.gateway_cpu_us is not None:
        tiles.append((f"{result.gateway_cpu_us:,.0f} µs", "of the gateway's CPU, each"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _figure(latency: Latency, value: float) -> str:
    return milliseconds(value) if latency.count else "-"


def _lateness(outcome: Outcome) -> str:
    if not outcome.is_late:
        return ""
    late = milliseconds(outcome.stages.late.p99)
    return _note("", f"The load generator was late itself: {late} at P99, which is in the total.")


def _throughput(result: Result) -> str:
    timeline = result.outcome.timeline
    width = timeline.slot_seconds
    high = max((max(slot.begun, slot.completed, slot.failed) for slot in timeline.slots), default=0) / width

    def line(name: str, style: str, *, filled: bool = False) -> charts.Line:
        points = [(slot.at + width / 2, getattr(slot, name) / width) for slot in timeline.slots]
        return charts.Line(name, style, points, filled)

    lines = [line("completed", "a", filled=True), line("begun", "b")]
    if result.outcome.failed:
        lines.append(line("failed", "c"))
    return charts.chart("Begun, completed and failed per second", _time(result.outcome), _amount(high), lines)


def _latency(outcome: Outcome) -> str:
    timeline = outcome.timeline
    middle = timeline.slot_seconds / 2
    known = [value for slot in timeline.slots for value in (slot.p50, slot.p99) if value]
    if not known:
        return _NOTHING
    lines = [
        charts.Line("P99", "b", [(slot.at + middle, slot.p99) for slot in timeline.slots]),
        charts.Line("P50", "a", [(slot.at + middle, slot.p50) for slot in timeline.slots]),
    ]
    y = charts.logarithmic(min(known), max(known), _tick)
    return charts.chart("P50 and P99 of latency over time", _time(outcome), y, lines)


def _curve(outcome: Outcome) -> str:
    known = [(at, value) for at, value in outcome.curve if value > 0]
    if not known:
        return _NOTHING
    y = charts.logarithmic(known[0][1], known[-1][1], _tick)
    line = charts.Line("due until done", "a", known, True)
    return charts.chart("Latency by percentile", charts.percentiles(known[-1][0]), y, [line])


def _tick(value: float) -> str:
    """Milliseconds at a power of ten, or as long as it is at a point between."""
    factor, unit = (1e3, "µs") if value < 1 else (1.0, "ms") if value < 1000 else (1e-3, "s")
    return f"{value * factor:.4g} {unit}"


_NOTHING = '<p class="soft">Nothing was completed.</p>'


def _time(outcome: Outcome) -> charts.Axis:
    slots = outcome.timeline.slots
    last = (slots[-1].at if slots else 0.0) + outcome.timeline.slot_seconds
    axis = charts.linear(last, lambda value: f"{value:.3g} s")
    # As far as there is something to see, not as far as the next round number.
    return charts.Axis(0.0, last, [tick for tick in axis.ticks if tick <= last], axis.label)


def _amount(high: float) -> charts.Axis:
    return charts.linear(high, lambda value: f"{value:,.0f}/s" if value == 0 or value >= 1 else f"{value:.2g}/s")


def _stages(outcome: Outcome) -> str:
    rows = []
    for name in STAGES:
        latency: Latency = getattr(outcome.stages, name)
        if latency.count:
            cells = "".join(f'<td class="number">{milliseconds(figure)}</td>' for figure in latency.shown)
            whole = ' class="whole"' if name == "total" else ""
            told = f"<td>{escape(name.replace('_', ' '))}<small>{escape(_MEANING[name])}</small></td>"
            rows.append(f"<tr{whole}>{told}{cells}</tr>")
    titles = "".join(f'<th class="number">{title}</th>' for title in SHOWN)
    return f'<div class="wide"><table><tr><th>stage</th>{titles}</tr>{"".join(rows)}</table></div>'


def _errors(outcome: Outcome) -> str:
    if not outcome.errors:
        return ""
    errors = sorted(outcome.errors.items(), key=lambda one: -one[1].count)
    rows = [(name, f"{trouble.count:,}", trouble.example) for name, trouble in errors]
    return "<h2>Errors</h2>" + _table(("class", "count", "the first of them"), rows)


def _counts(title: str, what: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    rows = [(name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda one: -one[1])]
    return f"<h2>{escape(title)}</h2>" + _table((what, "count"), rows)


def _settings(result: Result) -> list[tuple[str, str]]:
    machine, outcome = result.machine, result.outcome
    settings = [*result.settings.items()]
    if outcome.prepared:
        settings.append(("handshakes before the start", f"{outcome.prepared:,}, for tickets"))
    if result.client_cpu_us is not None:
        settings.append(("load generator's CPU", f"{result.client_cpu_us:,.0f} µs each, on {outcome.threads} threads"))
    if result.gateway is not None:
        settings.append(("gateway's workers", str(result.gateway.workers)))
    settings.append(("machine", f"{machine.cpu}, {machine.cores} cores, Linux {machine.kernel}"))
    settings.append(("mitu", result.version))
    return settings


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th{_side(title)}>{escape(title)}</th>" for title in titles)
    body = []
    for row in rows:
        sides = [_side(title) for title in titles] or [""] * len(row)
        body.append("".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)))
    lines = "".join(f"<tr>{cells}</tr>" for cells in ([head] if head else []) + body)
    return f'<div class="wide"><table>{lines}</table></div>'


def _side(title: str) -> str:
    return ' class="number"' if title == "count" else ""
