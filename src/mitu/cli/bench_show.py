"""What people see of a run of `mitu bench`: how it stands, what it came to, and two of them compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from mitu.bench.result import NOUNS, SHOWN, STAGES
from mitu.bench.units import milliseconds
from mitu.cli.output import console

if TYPE_CHECKING:
    from mitu.bench.plan import Work
    from mitu.bench.result import Latency, Outcome, Result


@contextmanager
def watching(work: Work) -> Iterator[Callable[[Outcome], None]]:
    """Shows on a terminal how the run stands, and nothing elsewhere."""
    told = console(stderr=True)
    if not told.is_terminal:
        yield lambda _: None
        return
    with Live(console=told, transient=True, auto_refresh=False) as live:
        yield lambda outcome: live.update(_standing(work, outcome), refresh=True)


def _standing(work: Work, outcome: Outcome) -> Text:
    if outcome.phase == "preparing":
        return Text(f"preparing: {outcome.prepared:,} handshakes for tickets", style="dim")
    noun = NOUNS[work.command]
    text = Text.assemble(
        (f"{outcome.seconds:5.1f} s  ", "dim"),
        (f"{outcome.completed:,}", "bold"),
        f" of {work.bounds.count:,} {noun}" if work.command == "storm" else f" {noun}",
        f"  {_now(outcome):,.0f}/s",
        f"  {outcome.unfinished:,} under way",
    )
    if outcome.completed:
        total = outcome.stages.total
        text.append(f"  P50 {milliseconds(total.p50)}  P99 {milliseconds(total.p99)}")
    troubles = sum(one.count for one in outcome.errors.values())
    if troubles:
        text.append(f"  {troubles:,} errors", style="red")
    return text.append("  Ctrl-C ends it", style="dim")


def _now(outcome: Outcome) -> float:
    """Completed per second, lately: over the last whole slots of a second or so."""
    slots = outcome.timeline.slots[:-1]
    lately = slots[-max(1, round(1 / outcome.timeline.slot_seconds)) :]
    return sum(slot.completed for slot in lately) / (len(lately) * outcome.timeline.slot_seconds) if lately else 0.0


def show(result: Result) -> None:
    out = console()
    outcome = result.outcome
    noun = NOUNS[result.command]
    where = f"{result.to.url}, made for this run" if result.to.own else f"{result.to.url} at {result.to.address}"
    out.print(Text.assemble((f"mitu bench {result.command}", "bold"), f"  {where}"))
    out.print(Text(_settings(result), style="dim"))
    out.print()

    stopped = "" if outcome.phase == "done" else ", stopped"
    facts = [
        (
            "completed",
            f"{outcome.completed:,} {noun} in {outcome.seconds:,.2f} s{stopped}: {outcome.per_second:,.0f}/s",
        ),
        ("failed", f"{outcome.failed:,}" + (f"; unfinished: {outcome.unfinished:,}" if outcome.unfinished else "")),
    ]
    if result.command == "storm":
        since = outcome.stages.since_start
        if since.count:
            parts = f"half {_seconds(since.p50)}, 99% {_seconds(since.p99)}, the last {_seconds(since.max)}"
            facts.append(("in", f"{parts} after the start"))
        facts.append(("retries", f"{outcome.retries:,}"))
        if outcome.held:
            facts.append(("held", f"{outcome.held:,}; the server closed {outcome.dropped:,} of them"))
    resumed = f"{outcome.resumed:,} resumed" if outcome.stages.handshake.count else "without TLS"
    prepared = f"; {outcome.prepared:,} more before the start, for tickets" if outcome.prepared else ""
    facts.append(("connections", f"{outcome.connections:,}, {resumed}{prepared}"))
    facts.append(("CPU", _cpu(result)))
    for name, told in facts:
        out.print(Text.assemble((f"{name:<13}", "dim"), told))
    out.print()

    out.print(_stages(outcome))
    for title, counts in (("negotiated", outcome.negotiated), ("status", outcome.statuses)):
        for name, count in sorted(counts.items(), key=lambda one: -one[1]):
            out.print(Text.assemble((f"{title:<13}", "dim"), f"{count:,}  {name}"))
            title = ""
    for name, trouble in sorted(outcome.errors.items(), key=lambda one: -one[1].count):
        out.print(Text.assemble((f"{'error':<13}", "red"), f"{trouble.count:,}  {name}: {trouble.example}"))
    if outcome.is_late:
        out.print(Text(_late(outcome), style="yellow"))


def _settings(result: Result) -> str:
    from mitu.bench.plan import DEFAULTS

    told = result.settings.items() - DEFAULTS.items()
    return ", ".join(f"{name} {value}" for name, value in result.settings.items() if (name, value) in told)


def _stages(outcome: Outcome) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, title in enumerate(("stage", *SHOWN)):
        table.add_column(title, justify="right" if at else "left")
    for name in STAGES:
        latency: Latency = getattr(outcome.stages, name)
        if latency.count:
            style = "bold" if name == "total" else ""
            table.add_row(name.replace("_", " "), *(milliseconds(figure) for figure in latency.shown), style=style)
    return table


def _cpu(result: Result) -> str:
    client = "not known" if result.client_cpu_us is None else f"{result.client_cpu_us:,.0f} µs each"
    told = f"load generator {client}, on {result.outcome.threads} threads"
    if result.gateway is not None and result.gateway_cpu_us is not None:
        told += f"; gateway {result.gateway_cpu_us:,.0f} µs each, with {result.gateway.workers} workers"
    return told


def _seconds(value: float) -> str:
    return f"{value / 1e3:.2f} s"


def _late(outcome: Outcome) -> str:
    return (
        f"the load generator was late itself, {milliseconds(outcome.stages.late.p99)} at P99, which is in the total:"
        " it has too little CPU for this load, or shares it with the server"
    )


def show_comparison(before: Result, after: Result) -> None:
    from mitu.bench.compare import differences, rows

    out = console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("metric", "A", "B", "B/A"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for row in rows(before, after):
        table.add_row(*row.cells())
    out.print(table)
    told = differences(before, after)
    if told:
        out.print(Text("\nnot the same in both:", style="yellow"))
        for one in told:
            out.print(Text(f"  {one}"))
