"""A run from its plan to its result, with a word on how it stands in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from mitu import _native
from mitu.bench import BenchError, WantedError, gateway, plan, result
from mitu.bench.conditions import Condition
from mitu.bench.result import Outcome, Result
from mitu.bench.target import Target, check_listening
from mitu.open_files import raise_limit

_TICK = 0.1
_HOPELESS_SECONDS = 1.0
_HOPELESS_FAILURES = 20


def run(
    to: Target | None,
    clients: plan.Clients,
    work: plan.Work,
    conditions: Sequence[Condition] = (),
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Result:
    """Put the load on `to`, or (None) on a gateway made for it. `progress` is told ten times a second.

    KeyboardInterrupt ends the run early, and it is then told as far as it came. BenchError when it cannot begin.
    """
    files = raise_limit()
    plan.check_files(work, files)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    own = gateway.serving() if to is None else nullcontext(None)
    with own as serving:
        if serving is not None:
            to = serving.target
            if clients.verify and clients.authority is None:
                clients = replace(clients, authority=serving.authority)
        assert to is not None
        check_listening(to)
        if work.command == "storm" and clients.sources is None:
            clients = replace(clients, sources=plan.default_sources(to))
        outcome = _bench(plan.as_json(to, clients, work, files), hopeless=work.command != "storm", progress=progress)
    checks = tuple(condition.check(outcome) for condition in conditions)
    ended = outcome.phase == "done" or not conditions
    return Result(
        version=version("mitu"),
        command=work.command,  # type: ignore[arg-type]
        started_at=started_at,
        to=result.To(url=to.url, address=to.address, own=to.own),
        settings={**work.told, "source addresses": clients.sources or "one"},
        machine=result.machine(),
        outcome=outcome,
        gateway=None if serving is None else serving.counted,
        checks=checks,
        ok=bool(outcome.completed) and ended and not any(check.failed for check in checks),
    )


def _bench(text: str, *, hopeless: bool, progress: Callable[[Outcome], None]) -> Outcome:
    try:
        bench = _native.start_bench(text)
        try:
            while not bench.wait(_TICK):
                outcome = Outcome.model_validate_json(bench.report())
                progress(outcome)
                if hopeless and _is_hopeless(outcome):
                    bench.stop()
        except KeyboardInterrupt:
            bench.stop()
        while not bench.wait(1.0):
            pass
        return Outcome.model_validate_json(bench.report())
    except _native.NativeError as error:
        raise WantedError(str(error)) from None


def _is_hopeless(outcome: Outcome) -> bool:
    """Whether nothing has gone well, for so long that nothing will."""
    failed = outcome.failed >= _HOPELESS_FAILURES and outcome.seconds >= _HOPELESS_SECONDS
    return failed and not outcome.completed


def explain(outcome: Outcome) -> BenchError:
    """Why nothing was completed, and what to do about it."""
    if not outcome.errors:
        return BenchError(
            "nothing was completed: the run ended before the first answer\n  = give it a longer --duration"
        )
    name, worst = max(outcome.errors.items(), key=lambda one: one[1].count)
    step = _STEPS.get(name)
    return BenchError(f"nothing was completed: {worst.example} ({name})" + (f"\n  = {step}" if step else ""))


_STEPS = {
    "handshake_certificate": "give the authority with --ca FILE, the name with --server-name, or leave out --verify",
    "handshake_alpn": "offer a protocol that the server speaks: --alpn h2,http/1.1, or --alpn none",
    "handshake_tls": "does the server speak TLS there? For plain HTTP write http:// in front",
    "handshake_closed": "does the server speak TLS there? For plain HTTP write http:// in front",
    "response_closed": "does the server speak plain HTTP there? For TLS write https:// in front",
    "response_status": "give a path that the server answers: https://host:port/path",
    "client_files": "allow this process more open files: ulimit -n",
    "client_ports": "spread the connections over source addresses: --sources 127.16.0.0/12",
    "not_begun": "allow this process more open files: ulimit -n",
}
