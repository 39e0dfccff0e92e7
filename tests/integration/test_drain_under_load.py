"""SIGTERM under load: every request that was accepted is answered, and every client is told of the end."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from support.certificates import Authority, Pair
from support.client import Address
from support.gateway import configuration, health, listener, to_app, upstream
from support.h2_tap import H2Tap
from support.load import H2load, Wrk
from support.net import eventually
from support.process import Program, output
from support.servers import Loop, Server
from support.steady import Steady
from support.steady_h3 import SteadyH3

from .conftest import Start

pytestmark = [pytest.mark.needs(program) for program in ("wrk", "h2load", "mosquitto", "mosquitto_pub")]


class Telemetry:
    """mosquitto_pub, which sends lines as it is given them, to mosquitto_sub at the broker itself."""

    def __init__(self, gateway: Address, ca: Path, broker: int, folder: Path) -> None:
        topic = f"telemetry/{broker}/{gateway[1]}"
        at_broker = ("-h", "127.0.0.1", "-p", broker, "-t", topic, "-q", "1")
        self._subscriber = Program(["mosquitto_sub", *at_broker], folder / "telemetry.log")
        # Once one of these is there, so is the subscriber.
        eventually(lambda: output(["mosquitto_pub", *at_broker, "-m", "ready"]) or self._subscriber.log)
        through = ("-h", "localhost", "-p", str(gateway[1]), "--cafile", str(ca), "--tls-alpn", "mqtt")
        words = ["mosquitto_pub", *through, "-t", topic, "-q", "1", "-l"]
        self._publisher = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.kill()
        self._publisher.communicate()
        self._subscriber.stop()

    def _send(self) -> None:
        assert self._publisher.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            while not self._stop.wait(0.01):
                self._publisher.stdin.write(f"message {self.sent}\n")
                self._publisher.stdin.flush()
                self.sent += 1

    def stop(self) -> None:
        """The device goes away in good order; all that it sent has arrived, in order and once."""
        self._stop.set()
        self._thread.join()
        _, errors = self._publisher.communicate(timeout=30)
        assert self._publisher.returncode == 0, errors
        wanted = [f"message {number}" for number in range(self.sent)]

        def received() -> list[str]:
            return [line for line in self._subscriber.log.splitlines() if line != "ready"]

        eventually(lambda: len(received()) >= self.sent)
        assert received() == wanted


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("scheduler", ["per_core", "work_stealing"])
def test_no_request_fails(
    gateway: Start,
    authority: Authority,
    edge: Pair,
    app: Server,
    loop: Loop,
    clients: Loop,
    mosquitto: int,
    tmp_path: Path,
    workers: int,
    scheduler: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    protocols = ["h3", "h2", "http/1.1", {"alpn": "mqtt", "relay": "broker"}]
    settings = configuration(
        [listener(edge, protocols=protocols, routes=[health(), to_app()])],
        upstream("app", app.endpoint),
        upstream("broker", f"127.0.0.1:{mosquitto}"),
        runtime={"workers": workers, "scheduler": scheduler},
    )
    # Longer than it takes: relays are not to have left when the devices do.
    running = gateway(settings, flags=["--drain-timeout", "7200"])
    paths = ["/health", "/app", "/health"]
    steady = Steady(running.address(), authority.certificate, paths)
    quic = SteadyH3(clients, running.address(), authority.certificate, paths)
    wrk = Wrk(running.address(), "/health", connections=8)
    tap = H2Tap(loop, edge, running.address(), authority.certificate)
    h2load = H2load(tap.address, "/app", connections=4, rate=50)
    h2load.finish()
    with Telemetry(running.address(), authority.certificate, mosquitto, tmp_path) as telemetry:
        time.sleep(2)
        running.program.signal(signal.SIGTERM)
        before = telemetry.sent
        time.sleep(1)
        telemetry.stop()
    assert running.program.wait(40) == 0, running.program.log
    steady.wait()
    quic.wait()
    counted, others = wrk.stop(), h2load.stop()
    opened = sum(len(connection.opened) for connection in tap.connections)
    answered = sum(len(connection.answered) for connection in tap.connections)
    with capsys.disabled():
        print(
            f"\nSIGTERM with {workers} workers, {scheduler}: {steady.count.answered:,} requests by the rules,"
            f" {len(steady.count.failures)} failed; {quic.count.answered:,} over h3 on {quic.connections} connections,"
            f" {len(quic.count.failures)} failed; {telemetry.sent:,} MQTT messages, all there;"
            f" wrk {counted.answered:,}, then {counted.failures};"
            f" h2load sent {opened:,} and got {answered:,} answers, and says {others.answered:,} {others.failures}"
        )
    assert steady.count.failures == []
    assert steady.count.answered > 100
    assert steady.told["h1"] > 0
    assert steady.told["h2"] > 0
    assert quic.count.failures == []
    assert quic.count.answered > 20
    assert quic.told > 0
    assert telemetry.sent > before > 0
    # h2load calls a request errored, too, that it had prepared as GOAWAY came, and did not send then: it must not.
    assert [connection.opened - connection.answered for connection in tap.connections] == [set()] * 4
    assert all(connection.told for connection in tap.connections)
    assert others.answered == answered > 100
    # wrk does not heed the announcement and connects again; nothing that it sent was lost all the same.
    assert counted.answered > 0
    for failure in counted.failures:
        assert re.fullmatch(r"Socket errors: connect \d+, read 0, write 0, timeout 0", failure), failure
