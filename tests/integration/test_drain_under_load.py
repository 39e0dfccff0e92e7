"""SIGTERM under load: every request that was accepted is answered, and every client is told of the end."""

from __future__ import annotations

import re
import signal
import time

import pytest

from support.certificates import Authority, Pair
from support.gateway import configuration, health, listener, to_app, upstream
from support.load import H2load, Wrk
from support.servers import Server
from support.steady import Steady

from .conftest import Start

pytestmark = [pytest.mark.needs("wrk"), pytest.mark.needs("h2load")]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("scheduler", ["per_core", "work_stealing"])
def test_no_request_fails(
    gateway: Start,
    authority: Authority,
    edge: Pair,
    app: Server,
    workers: int,
    scheduler: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = configuration(
        [listener(edge, routes=[health(), to_app()])],
        upstream("app", app.endpoint),
        runtime={"workers": workers, "scheduler": scheduler},
    )
    running = gateway(settings)
    steady = Steady(running.address(), authority.certificate, ["/health", "/app", "/health"])
    wrk = Wrk(running.address(), "/health", connections=8)
    h2load = H2load(running.address(), "/app", connections=4, rate=50)
    time.sleep(2)
    running.program.signal(signal.SIGTERM)
    assert running.program.wait(40) == 0, running.program.log
    steady.wait()
    counted, others = wrk.stop(), h2load.stop()
    with capsys.disabled():
        print(
            f"\nSIGTERM with {workers} workers, {scheduler}: {steady.count.answered:,} requests by the rules,"
            f" {len(steady.count.failures)} failed; wrk {counted.answered:,}, then {counted.failures};"
            f" h2load {others.answered:,} {others.failures}"
        )
    assert steady.count.failures == []
    assert steady.count.answered > 100
    assert steady.told["h1"] > 0
    assert steady.told["h2"] > 0
    # wrk does not heed the announcement and connects again; nothing that it sent was lost all the same.
    assert counted.answered > 0
    for failure in counted.failures:
        assert re.fullmatch(r"Socket errors: connect \d+, read 0, write 0, timeout 0", failure), failure
