"""`mitu bench` against real gateways: what it says is what they counted, and each failure has its name."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bench import BENCH, bench, told, url
from support.certificates import Pair
from support.gateway import Gateway, configuration, health, listener, upstream
from support.net import eventually
from support.process import Program, output, run
from support.servers import Reader, Writer

from .conftest import Serve, Start


@pytest.fixture(scope="module")
def edge_gateway(shared_gateway: Start, edge: Pair) -> Gateway:
    return shared_gateway(configuration([listener(edge, routes=[health()])]))


class Counted:
    """What a gateway counts from here on."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        stage = {"stage": "total"}
        handshakes = self._gateway.metric("mitu_tls_handshake_duration_seconds_count", **stage)
        resumed = self._gateway.metric("mitu_tls_handshake_duration_seconds_count", **stage, resumed="true")
        requests = self._gateway.metric("mitu_http_requests_total")
        return {"handshakes": handshakes, "resumed": resumed, "requests": requests}

    @property
    def found(self) -> dict[str, float]:
        """Once it is the same twice: a response is counted when it has left, which the client may see first."""
        seen: list[dict[str, float]] = [{}]

        def settled() -> bool:
            seen.append({name: value - self._before[name] for name, value in self._now().items()})
            return seen[-1] == seen[-2]

        eventually(settled, interval=0.1)
        return seen[-1]


class TestAgreement:
    """The gateway's own counts, exactly."""

    @pytest.mark.parametrize("alpn", ["h2", "http/1.1", "none"])
    def test_handshakes(self, edge_gateway: Gateway, alpn: str) -> None:
        counted = Counted(edge_gateway)
        outcome = bench("handshake", url(edge_gateway), "-n", 60, "-c", 7, "--alpn", alpn)["outcome"]
        assert (outcome["completed"], outcome["failed"], outcome["resumed"]) == (60, 0, 0)
        assert outcome["connections"] == 60
        assert counted.found == {"handshakes": 60, "resumed": 0, "requests": 60}
        assert outcome["statuses"] == {"200": 60}
        assert sum(outcome["negotiated"].values()) == 60

    @pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
    def test_requests(self, edge_gateway: Gateway, alpn: str) -> None:
        counted = Counted(edge_gateway)
        outcome = bench("requests", url(edge_gateway), "-n", 500, "-c", 5, "--alpn", alpn)["outcome"]
        assert (outcome["completed"], outcome["connections"]) == (500, 5)
        assert counted.found == {"handshakes": 5, "resumed": 0, "requests": 500}

    @pytest.mark.parametrize("version", ["1.2", "1.3"])
    def test_resumed(self, edge_gateway: Gateway, version: str) -> None:
        words = ["-n", 40, "-c", 4, "--resume", "50%", "--tls", version]
        counted = Counted(edge_gateway)
        outcome = bench("handshake", url(edge_gateway), *words)["outcome"]
        assert (outcome["completed"], outcome["resumed"]) == (40, 20), outcome
        assert outcome["prepared"] >= 1
        assert counted.found["handshakes"] == 40 + outcome["prepared"]
        assert counted.found["resumed"] == 20
        assert all(name.startswith(f"TLSv{version.replace('.', '_')} ") for name in outcome["negotiated"])

    @pytest.mark.parametrize("rate", ["200", "0..400"])
    @pytest.mark.parametrize("arrivals", ["fixed", "poisson"])
    def test_open_loop(self, edge_gateway: Gateway, rate: str, arrivals: str) -> None:
        words = ["--rate", rate, "--arrivals", arrivals, "-d", "1s", "--seed", 7]
        counted = Counted(edge_gateway)
        outcome = bench("requests", url(edge_gateway), "-c", 8, *words)["outcome"]
        assert outcome["completed"] == outcome["begun"] == counted.found["requests"]
        if arrivals == "fixed":
            assert 199 <= outcome["begun"] <= 201
        assert outcome["stages"]["late"]["count"] == outcome["begun"]

    def test_a_mix_has_its_shares(self, edge_gateway: Gateway) -> None:
        outcome = bench("handshake", url(edge_gateway), "-n", 100, "--alpn", "h2=7", "--alpn", "http/1.1=3")["outcome"]
        by_alpn: dict[str, int] = {}
        for name, count in outcome["negotiated"].items():
            alpn = name.rpartition(" ")[2]
            by_alpn[alpn] = by_alpn.get(alpn, 0) + count
        assert by_alpn == {"h2": 70, "http/1.1": 30}

    def test_without_a_request(self, edge_gateway: Gateway) -> None:
        counted = Counted(edge_gateway)
        outcome = bench("handshake", url(edge_gateway), "-n", 20, "--no-request")["outcome"]
        assert outcome["completed"] == 20
        assert outcome["stages"]["response"]["count"] == 0
        assert counted.found == {"handshakes": 20, "resumed": 0, "requests": 0}

    def test_groups_and_suites_are_those_named(self, edge_gateway: Gateway) -> None:
        words = ["--group", "secp384r1", "--suite", "TLS_CHACHA20_POLY1305_SHA256", "--tls", "1.3"]
        outcome = bench("handshake", url(edge_gateway), "-n", 5, *words)["outcome"]
        assert outcome["negotiated"] == {"TLSv1_3 TLS13_CHACHA20_POLY1305_SHA256 secp384r1 h2": 5}

    def test_mqtt(self, gateway: Start, edge: Pair, mosquitto: int) -> None:
        relay = {"alpn": "mqtt", "relay": "broker"}
        broker = upstream("broker", f"127.0.0.1:{mosquitto}")
        running = gateway(configuration([listener(edge, protocols=[relay])], broker))
        _, port = running.address()
        words = ["--alpn", "mqtt", "-c", 3]
        connects = bench("handshake", f"mqtts://localhost:{port}", "-n", 9, *words)["outcome"]
        assert (connects["completed"], connects["connections"]) == (9, 9)
        pings = bench("requests", f"mqtts://localhost:{port}", "-n", 90, *words)["outcome"]
        assert (pings["completed"], pings["connections"]) == (90, 3)


class TestStorm:
    def test_every_device_gets_in(self, edge_gateway: Gateway) -> None:
        counted = Counted(edge_gateway)
        document = bench("storm", url(edge_gateway), "--devices", 150, "--within", "500ms", "--resume", "100%")
        outcome = document["outcome"]
        assert (outcome["completed"], outcome["failed"], outcome["retries"]) == (150, 0, 0)
        assert outcome["resumed"] == 150
        assert counted.found["requests"] == 150 + outcome["prepared"]
        assert outcome["stages"]["since_start"]["count"] == 150
        assert document["settings"]["source addresses"] == "127.16.0.0/12"

    def test_devices_come_from_addresses_of_their_own_and_stay(self, gateway: Start, edge: Pair) -> None:
        running = gateway(configuration([listener(edge, routes=[health()])]))
        words = ["--devices", "30", "--within", "2s", "--hold", "--rtt", "100ms"]
        with Program([*BENCH, "storm", url(running), *words, "--json"], running.folder / "storm.log") as program:
            peers: set[str] = set()
            while program.alive():
                peers |= {one["client"].rpartition(":")[0] for one in running.json("/connections")}
            assert program.wait() == 0
        outcome = json.loads(program.log)["outcome"]
        assert (outcome["completed"], outcome["held"], outcome["dropped"]) == (30, 30, 0)
        assert len(peers) > 10
        assert all(peer.startswith("127.16.") for peer in peers)

    def test_a_device_tries_again_until_the_server_is_there(self, gateway: Start, edge: Pair, tmp_path: Path) -> None:
        """All at once at a port where the server refuses the first; those come back."""
        settings = configuration([listener(edge, routes=[health()], limits={"connections": 5})])
        running = gateway(settings)
        words = ["--devices", 40, "--within", "0s", "--backoff", "50ms..200ms", "--attempts", 200, "--rtt", "30ms"]
        outcome = bench("storm", url(running), *words)["outcome"]
        assert (outcome["completed"], outcome["failed"]) == (40, 0)
        assert outcome["retries"] == sum(one["count"] for one in outcome["errors"].values()) > 0

    def test_it_gives_up(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            writer.close()

        words = ["--devices", 5, "--within", "100ms", "--backoff", "10ms", "--attempts", 3]
        outcome = bench("storm", f"localhost:{serve(close).port}", *words, code=1)["outcome"]
        assert (outcome["failed"], outcome["retries"]) == (5, 10)
        assert sum(one["count"] for one in outcome["errors"].values()) == 15


class TestJudgement:
    def test_conditions(self, edge_gateway: Gateway) -> None:
        words = ["requests", url(edge_gateway), "-n", 50, "-c", 2, "--fail-if", "failed>0", "--fail-if"]
        assert [one["failed"] for one in bench(*words, "p99>10m")["checks"]] == [False, False]
        document = bench(*words, "p50>=0ms", code=1)
        assert [one["failed"] for one in document["checks"]] == [False, True]
        assert document["ok"] is False
        assert "failed: p50>=0ms: it is " in document["said"]

    def test_what_was_not_measured_has_failed(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            writer.close()

        words = ["handshake", f"localhost:{serve(close).port}", "-n", 3, "--fail-if", "p99>10m"]
        assert bench(*words, code=1)["checks"] == [{"condition": "p99>10m", "value": None, "failed": True}]

    def test_compare(self, edge_gateway: Gateway, tmp_path: Path) -> None:
        for name, count in (("a", "100"), ("b", "200")):
            document = bench("requests", url(edge_gateway), "-n", count, "-c", 2)
            del document["said"]
            (tmp_path / name).write_text(json.dumps(document))
        done = run([*BENCH, "compare", tmp_path / "a", tmp_path / "b", "--json"])
        compared = json.loads(done.stdout)
        rows = {row["metric"]: row for row in compared["metrics"]}
        assert rows["completed"] == {"metric": "completed", "before": 100, "after": 200, "ratio": 2.0}
        assert compared["differences"] == ["at most: 100, 200"]
        text = run([*BENCH, "compare", tmp_path / "a", tmp_path / "b"]).stdout.decode()
        assert re.search(r"completed +100 +200 +2\.00", text)
        assert "not the same in both:\n  at most: 100, 200" in text

    def test_compare_refuses_what_is_no_result(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text('{"format": "other"}')
        assert "is not a result of this version" in told("compare", tmp_path / "a", tmp_path / "a", code=2)
        assert "no such file" in told("compare", tmp_path / "b", tmp_path / "a", code=2)


class TestReport:
    def test_html_stands_alone(self, serve: Serve, edge_gateway: Gateway, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        words = ["-n", 50, "--html", file, "--server-name", "localhost", "--fail-if", "failed>0"]
        bench("handshake", url(edge_gateway, "/health?<script>".replace("<script>", "%3Cscript%3E")), *words)
        text = file.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
        for outside in (
            'http-equiv="Refresh',
            "<script",
            "<link",
            "<img",
            "<iframe",
            "url(",
            "@import",
            "src=",
            "href=",
        ):
            assert outside not in text, outside
        assert "default-src 'none'" in text
        assert text.count("<svg") == 3
        assert "prefers-color-scheme: dark" in text
        assert "passed: not failed&gt;0" in text

    def test_what_the_server_says_is_escaped(self, serve: Serve, tmp_path: Path) -> None:
        async def answer(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 <b>500</b> no\r\n\r\n")
            writer.close()

        file = tmp_path / "report.html"
        bench("handshake", f"http://localhost:{serve(answer).port}", "-n", 2, "--html", file, code=1)
        assert "<b>500" not in file.read_text(encoding="utf-8")

    def test_a_file_that_cannot_be_written(self, edge_gateway: Gateway, tmp_path: Path) -> None:
        text = told("handshake", url(edge_gateway), "-n", 1, "--html", tmp_path / "no" / "report.html", code=2)
        assert "cannot write" in text and "no such file or directory" in text

    def test_text(self, edge_gateway: Gateway) -> None:
        done = run([*BENCH, "handshake", url(edge_gateway), "-n", 20])
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode()
        assert "20 connections in" in text
        assert re.search(r"^total( +[\d.,]+ (µs|ms|s)){6}$", text, re.M)
        assert "\x1b[" not in text


class TestOwnGateway:
    def test_it_needs_nothing(self) -> None:
        document = bench("handshake", "-n", 40, "--verify")
        assert document["to"]["own"] is True
        assert document["outcome"]["completed"] == document["gateway"]["requests"] == 40
        assert document["gateway"]["cpu_seconds"] > 0

    def test_a_storm_on_it(self) -> None:
        document = bench("storm", "--devices", 100, "--within", "300ms")
        assert document["outcome"]["completed"] == document["gateway"]["requests"] == 100


@pytest.fixture
def running_bench() -> Iterator[subprocess.Popen[bytes]]:
    """A long run on a gateway of its own, once it has begun."""
    command = [*map(str, BENCH), "handshake", "-d", "1h", "--json", "--rate", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_tells_what_was_done(running_bench: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not (threads := _threads(running_bench.pid)) or "load-0" not in threads:
        assert time.monotonic() < deadline and running_bench.poll() is None
        time.sleep(0.05)
    # Some of them have been made by then.
    time.sleep(2)
    (gateway,) = children(running_bench.pid)
    running_bench.send_signal(signal.SIGINT)
    out, errors = running_bench.communicate(timeout=60)
    document = json.loads(out)
    assert (running_bench.returncode, errors) == (0, b"")
    assert document["outcome"]["phase"] == "stopped"
    assert document["outcome"]["completed"] > 0
    assert document["gateway"]["requests"] >= document["outcome"]["completed"]
    assert not Path(f"/proc/{gateway}").exists()


def _threads(pid: int) -> set[str]:
    return {task.read_text().strip() for task in Path(f"/proc/{pid}/task").glob("*/comm")}


def test_a_gateway_does_not_outlive_a_run_that_is_killed(running_bench: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not (found := children(running_bench.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running_bench.kill()
    running_bench.wait()
    while Path(f"/proc/{found[0]}/cmdline").exists() and Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the gateway goes on"
        time.sleep(0.05)


def test_round_trips_are_emulated(edge_gateway: Gateway) -> None:
    """Connect, TLS 1.3 handshake and response: one each; each measured where it was waited for."""
    stages = bench("handshake", url(edge_gateway), "-n", 5, "-c", 5, "--rtt", "60ms", "--tls", "1.3")["outcome"][
        "stages"
    ]
    for name in ("connect", "handshake", "response"):
        assert stages[name]["min"] >= 60
    assert stages["total"]["min"] >= 180


@pytest.mark.parametrize("program", ["wrk", "h2load"])
def test_other_load_generators_are_counted_alike(edge_gateway: Gateway, program: str) -> None:
    """The gateway counts what they say they made, as it counts ours: so their figures and ours are of the same thing.

    wrk drops what is under way on its connections when its time is up.
    """
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing: python -m benchmarks.peers install")
    alpn, connections = {"wrk": ("http/1.1", 4), "h2load": ("h2", 2)}[program]
    ours = Counted(edge_gateway)
    outcome = bench("requests", url(edge_gateway), "-n", 400, "-c", connections, "--alpn", alpn)["outcome"]
    assert outcome["completed"] == ours.found["requests"] == 400
    words = ["-t1", "-c4", "-d1s"] if program == "wrk" else ["-n400", "-c2", "-m1"]
    theirs = Counted(edge_gateway)
    said = output([program, *words, url(edge_gateway)])
    found = re.search(r"(\d+) requests in" if program == "wrk" else r"(\d+) succeeded", said)
    assert found is not None, said
    assert 0 <= theirs.found["requests"] - int(found[1]) <= (4 if program == "wrk" else 0)


def test_without_colours_where_none_are_wanted() -> None:
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "", "PATH": "/usr/bin"}
    command = [sys.executable, "-m", "mitu.cli", "bench", "handshake", "192.0.2.1:1"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert b"\x1b[" not in done.stderr


def test_ipv6(gateway: Start, edge: Pair) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    running = gateway(configuration([listener(edge, bind="[::1]:0", routes=[health()])]))
    _, port = running.address()
    assert bench("handshake", f"https://[::1]:{port}/health", "-n", 3)["outcome"]["completed"] == 3
