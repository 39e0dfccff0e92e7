"""SIGTERM under load: every request that was accepted is answered, and every client is told of the end."""

from __future__ import annotations

import re
import signal
import time

import pytest

from support.certificates import Authority, Pair
from support.gateway import configuration, health, listener, to_app, upstream
from support.h2_tap import H2Tap
from support.load import H2load, Wrk
from support.servers import Loop, Server
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
    loop: Loop,
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
    tap = H2Tap(loop, edge, running.address(), authority.certificate)
    h2load = H2load(tap.address, "/app", connections=4, rate=50)
    h2load.finish()
    time.sleep(2)
    running.program.signal(signal.SIGTERM)
    assert running.program.wait(40) == 0, running.program.log
    steady.wait()
    counted, others = wrk.stop(), h2load.stop()
    opened = sum(len(connection.opened) for connection in tap.connections)
    answered = sum(len(connection.answered) for connection in tap.connections)
    with capsys.disabled():
        print(
            f"\nSIGTERM with {workers} workers, {scheduler}: {steady.count.answered:,} requests by the rules,"
            f" {len(steady.count.failures)} failed; wrk {counted.answered:,}, then {counted.failures};"
            f" h2load sent {opened:,} and got {answered:,} answers, and says {others.answered:,} {others.failures}"
        )
    assert steady.count.failures == []
    assert steady.count.answered > 100
    assert steady.told["h1"] > 0
    assert steady.told["h2"] > 0
    # h2load calls a request errored, too, that it had prepared as GOAWAY came, and did not send then: it must not.
    assert [connection.opened - connection.answered for connection in tap.connections] == [set()] * 4
    assert all(connection.told for connection in tap.connections)
    assert others.answered == answered > 100
    # wrk does not heed the announcement and connects again; nothing that it sent was lost all the same.
    assert counted.answered > 0
    for failure in counted.failures:
        assert re.fullmatch(r"Socket errors: connect \d+, read 0, write 0, timeout 0", failure), failure
