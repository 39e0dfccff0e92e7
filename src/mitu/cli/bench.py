"""`mitu bench`: load on a gateway, or any TLS server, and how it bore it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mitu.cli import bench_options as given
from mitu.cli.output import Exit, console, fail, print_error, print_json

if TYPE_CHECKING:
    from mitu.bench.plan import Work

_DEVICES = "Devices"

app = typer.Typer(
    help="Put load on a gateway, or on any TLS server, and tell how it bore it.\n\n"
    "Without a target, a gateway is made for the run. Exit code 0: done; 1: nothing was completed, or a --fail-if"
    " holds; 2: wrong usage, or it could not be measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def handshake(
    target: given.TargetArgument = None,
    duration: given.Duration = "10s",
    requests: given.Requests = 1_000_000,
    connections: given.Connections = 50,
    rate: given.Rate = None,
    arrivals: given.Arrivals = "fixed",
    no_request: Annotated[
        bool, typer.Option("--no-request", help="Close after the handshake.", rich_help_panel="Load")
    ] = False,
    resume: given.Resume = "0%",
    alpn: given.Alpn = None,
    tls: given.Versions = None,
    group: given.Groups = None,
    suite: given.Suites = None,
    verify: given.Verify = False,
    ca: given.Authority = None,
    server_name: given.ServerName = None,
    rtt: given.RoundTrip = "0ms",
    sources: given.Sources = None,
    timeout: given.Timeout = "10s",
    threads: given.Threads = None,
    seed: given.Seed = None,
    i_own_the_target: given.OwnTarget = False,
    fail_if: given.FailIf = None,
    as_json: given.AsJson = False,
    html: given.Html = None,
) -> None:
    """New connections: connect, TLS handshake, one request, close."""
    from mitu.bench.plan import Work

    common = given.Common.of(locals())

    def work() -> Work:
        told, pace, bounds = _pace(rate, arrivals, connections, duration, requests)
        form = {"handshakes": {"pace": pace, "request": not no_request}}
        return Work("handshake", form, bounds, common.told(**told, request="none" if no_request else "one"))

    _run(target, common, work, fail_if, html, remote=i_own_the_target, as_json=as_json)


@app.command()
def requests(
    target: given.TargetArgument = None,
    duration: given.Duration = "10s",
    requests: given.Requests = 10_000_000,
    connections: given.Connections = 50,
    rate: given.Rate = None,
    arrivals: given.Arrivals = "fixed",
    resume: given.Resume = "0%",
    alpn: given.Alpn = None,
    tls: given.Versions = None,
    group: given.Groups = None,
    suite: given.Suites = None,
    verify: given.Verify = False,
    ca: given.Authority = None,
    server_name: given.ServerName = None,
    rtt: given.RoundTrip = "0ms",
    sources: given.Sources = None,
    timeout: given.Timeout = "10s",
    threads: given.Threads = None,
    seed: given.Seed = None,
    i_own_the_target: given.OwnTarget = False,
    fail_if: given.FailIf = None,
    as_json: given.AsJson = False,
    html: given.Html = None,
) -> None:
    """Requests on connections that stay open, one at a time on each; for MQTT, pings."""
    from mitu.bench.plan import Work

    common = given.Common.of(locals())

    def work() -> Work:
        told, pace, bounds = _pace(rate, arrivals, connections, duration, requests)
        form = {"requests": {"connections": connections, "pace": pace}}
        return Work("requests", form, bounds, common.told(**(told | {"connections": connections})))

    _run(target, common, work, fail_if, html, remote=i_own_the_target, as_json=as_json)


@app.command()
def storm(
    target: given.TargetArgument = None,
    devices: Annotated[int, typer.Option("--devices", "-n", min=1, max=10_000_000, rich_help_panel=_DEVICES)] = 10_000,
    within: Annotated[
        str,
        typer.Option(
            "--within",
            metavar="TIME",
            help="Each picks its moment in this time, at random; 0s: all at once.",
            rich_help_panel=_DEVICES,
        ),
    ] = "10s",
    backoff: Annotated[
        str,
        typer.Option(
            "--backoff",
            metavar="TIME..TIME",
            help="After a failure a device waits a random part of a time that doubles, from the first to the last.",
            rich_help_panel=_DEVICES,
        ),
    ] = "1s..30s",
    attempts: Annotated[
        int, typer.Option("--attempts", min=1, max=1000, help="Then it gives up.", rich_help_panel=_DEVICES)
    ] = 10,
    hold: Annotated[
        bool,
        typer.Option("--hold", help="Devices stay connected until the last is in.", rich_help_panel=_DEVICES),
    ] = False,
    duration: Annotated[
        str,
        typer.Option("--duration", "-d", metavar="TIME", help="No attempt begins later.", rich_help_panel=_DEVICES),
    ] = "2m",
    resume: given.Resume = "0%",
    alpn: given.Alpn = None,
    tls: given.Versions = None,
    group: given.Groups = None,
    suite: given.Suites = None,
    verify: given.Verify = False,
    ca: given.Authority = None,
    server_name: given.ServerName = None,
    rtt: given.RoundTrip = "0ms",
    sources: given.Sources = None,
    timeout: given.Timeout = "10s",
    threads: given.Threads = None,
    seed: given.Seed = None,
    i_own_the_target: given.OwnTarget = False,
    fail_if: given.FailIf = None,
    as_json: given.AsJson = False,
    html: given.Html = None,
) -> None:
    """Devices that all reconnect, and try again until they are in, as after an outage."""
    from mitu.bench import WantedError, units
    from mitu.bench.plan import Bounds, Work

    common = given.Common.of(locals())

    def work() -> Work:
        first, dots, last = backoff.partition("..")
        bounds = Bounds(units.seconds(duration, "--duration"), devices)
        spread = units.seconds(within, "--within")
        if spread >= bounds.seconds:
            raise WantedError(f"--within {within} is not within --duration {duration}; give it a longer one")
        retry = {
            "base": units.seconds(first, "--backoff"),
            "cap": units.seconds(last if dots else first, "--backoff"),
            "attempts": attempts,
        }
        form = {"storm": {"devices": devices, "within": spread, "hold": hold, "retry": retry}}
        told = {"devices": devices, "within": within, "backoff": backoff, "attempts": attempts}
        kept = "held until the last is in" if hold else "closed after one request"
        return Work("storm", form, bounds, common.told(**told, connections=kept))

    _run(target, common, work, fail_if, html, remote=i_own_the_target, as_json=as_json)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A result that --json printed.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another.", show_default=False)],
    as_json: given.AsJson = False,
) -> None:
    """Two results side by side, with their ratios."""
    from mitu.bench import BenchError, compare, result
    from mitu.cli.bench_show import show_comparison

    try:
        sides = result.read(before), result.read(after)
    except BenchError as error:
        fail(error, as_json=as_json)
    if as_json:
        print_json(compare.as_json(*sides))
    else:
        show_comparison(*sides)


def _pace(
    rate: str | None, arrivals: str, connections: int, duration: str, count: int
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The settings as told, the plan's pace, and the bounds."""
    from mitu.bench import WantedError, units
    from mitu.bench.plan import Bounds, closed, open_loop

    if arrivals not in ("fixed", "poisson"):
        raise WantedError(f"--arrivals: '{arrivals}' is neither fixed nor poisson")
    bounds = Bounds(units.seconds(duration, "--duration"), count)
    told: dict[str, Any] = {"duration": duration, "at most": count}
    if rate is None:
        return told | {"connections": connections}, closed(connections), bounds
    first, last = units.span(rate, "--rate")
    return told | {"rate": f"{rate}/s, {arrivals}"}, open_loop(first, last, arrivals), bounds


def _run(
    target: str | None,
    common: given.Common,
    work: Any,
    fail_if: list[str] | None,
    html: Path | None,
    *,
    remote: bool,
    as_json: bool,
) -> NoReturn:
    from mitu.bench import BenchError, WantedError
    from mitu.bench.conditions import Condition, failures
    from mitu.bench.run import explain, run
    from mitu.bench.target import target as resolve
    from mitu.cli.bench_show import show, watching

    try:
        conditions = [Condition.parse(text) for text in fail_if or []]
        wanted, clients = work(), common.clients()
        to = None if target is None else resolve(target, allow_remote=remote)
        with watching(wanted) as progress:
            result = run(to, clients, wanted, conditions, progress)
    except WantedError as error:
        raise typer.BadParameter(str(error)) from None
    except BenchError as error:
        fail(error, as_json=as_json)
    if html is not None:
        _write(html, result, as_json=as_json)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        show(result)
    errors = console(stderr=True)
    if not result.outcome.completed:
        print_error(explain(result.outcome), errors)
    failed = failures(result)
    for told in failed:
        print_error(told, errors, "failed")
    stopped = conditions and result.outcome.phase != "done" and not failed
    if stopped:
        print_error("stopped before its end: what did not fail has not passed", errors)
    raise typer.Exit(int(Exit.OK if result.ok else Exit.UNKNOWN if stopped else Exit.PROBLEM))


def _write(file: Path, result: Any, *, as_json: bool) -> None:
    from mitu.bench.html import page

    try:
        file.write_text(page(result), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {file}: {(error.strerror or str(error)).lower()}", as_json=as_json)
