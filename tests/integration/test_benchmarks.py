"""The benchmarks run, compare like with like, and refuse to measure what would mislead. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ("mitu", "nginx", "haproxy", "envoy", "caddy", "go")


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmarks' package, which lies beside the tests and is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness.server")


@pytest.fixture
def available(harness: ModuleType) -> list[str]:
    """The servers that can be measured here: two are enough to compare."""
    if not importlib.import_module("benchmarks.harness.paths").load_generator().is_file():
        pytest.skip("mitu-load is missing: python -m benchmarks.peers install")
    peers = importlib.import_module("benchmarks.peers").PEERS
    found = [name for name in PEERS if peers[name].find() is not None]
    if len(found) < 2:
        pytest.skip("no server to compare with: python -m benchmarks.peers install")
    return found[:2]


def measure(name: str, servers: list[str], *arguments: str, least: float = 0.0) -> dict[str, Any]:
    """The document that a quick run prints. `least`: what no figure is below."""
    only = ["--only", ",".join(servers), "--rounds", "1", "--seconds", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", *only, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["benchmark"] == name
    assert document["quick"]
    assert {"cpu", "cores", "kernel"} <= document["machine"].keys()
    for sheet in document["sheets"]:
        assert sheet["figure"] in sheet["columns"]
        for server, row in sheet["rows"].items():
            assert row.keys() <= sheet["columns"].keys(), server
            assert all(len(series["rounds"]) >= 1 and series["median"] >= least for series in row.values()), server
        if "mitu" in sheet["rows"]:
            assert "mitu" not in sheet["ratios"]["to"]
    return document


def sheets(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {sheet["name"]: sheet for sheet in document["sheets"]}


def test_handshakes(available: list[str]) -> None:
    document = measure("handshake", available)
    found = sheets(document)
    assert {"p256", "p256-resumed"} <= found.keys()
    assert {"plain TCP exchange", "floor: with the key operations", *available} <= found["p256"]["rows"].keys()
    for server in available:
        assert found["p256"]["rows"][server]["resumed"]["median"] == 0
        assert found["p256-resumed"]["rows"][server]["resumed"]["median"] > 0.5
        assert found["p256"]["rows"][server]["cpu_us"]["median"] > 10
    goals = {goal["to"]: goal for goal in found["p256"]["goals"]}
    assert goals.keys() == {"floor: with the key operations", "go", "nginx", "envoy"}
    for to, goal in goals.items():
        assert goal["value"] == found["p256"]["ratios"]["to"].get(to)
        assert goal["met"] == (None if goal["value"] is None else goal["value"] <= goal["goal"])


def test_post_quantum_handshakes_leave_out_who_cannot(available: list[str]) -> None:
    servers = [*available, *({"go"} & {*PEERS} - {*available})]
    document = measure("handshake", servers, "--case", "p256-pq")
    rows = sheets(document)["p256-pq"]["rows"]
    peers = importlib.import_module("benchmarks.peers").PEERS
    for name in servers:
        if peers[name].find() is None:
            continue
        lack = peers[name].lacks_hybrid()
        assert (name in rows) == (lack is None)
        assert lack is None or any(name in note and lack in note for note in document["notes"])
    assert "mitu" in rows and "floor: with the key operations" in rows


@pytest.mark.parametrize("program", ["wrk", "h2load"])
def test_requests(available: list[str], program: str) -> None:
    paths = importlib.import_module("benchmarks.harness.paths")
    if paths.find_program(program) is None:
        pytest.skip(f"{program} is missing: python -m benchmarks.peers install")
    case = {"wrk": "proxied-h1", "h2load": "proxied-h2"}[program]
    found = sheets(measure("requests", available, "--case", case))
    assert found.keys() == {case}
    for server in available:
        assert found[case]["rows"][server]["per_second"]["median"] > 10


@pytest.mark.needs("oha")
def test_h3(available: list[str]) -> None:
    found = sheets(measure("h3", ["mitu"]))
    rows = {name: found[name]["rows"].keys() for name in ("health", "proxied", "connections")}
    assert rows["health"] == {"floor: quinn and h3", "mitu"}
    assert rows["proxied"] == {"mitu over HTTP/2", "mitu"}
    assert rows["connections"] == {"mitu over TLS", "mitu"}
    assert [goal["value"] for goal in found["proxied"]["goals"]] == [
        found["proxied"]["rows"]["mitu"]["cpu_us"]["median"]
        / found["proxied"]["rows"]["mitu over HTTP/2"]["cpu_us"]["median"]
    ]


def test_generators(available: list[str]) -> None:
    found = sheets(measure("generators", ["mitu"]))["connections"]["rows"]
    assert found["mitu"]["client_us"]["median"] > 0
    assert found.keys() <= {"mitu", "wrk", "h2load"}


def test_storm(available: list[str]) -> None:
    found = sheets(measure("storm", available))
    for name in ("storm-1", "storm-2"):
        for server in available:
            row = {column: series["median"] for column, series in found[name]["rows"][server].items()}
            assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]


def test_the_gate_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, a fleet that is too large never comes back; behind the gate it does, and nobody else notices."""
    model = importlib.import_module("benchmarks.gate_model")
    devices = 30_000
    # A worker that is ten times as slow, instead of ten times as many devices.
    monkeypatch.setattr(model, "COST", 10 * model.__dict__["COST"])
    monkeypatch.setattr(model, "RESET_COST", 10 * model.__dict__["RESET_COST"])
    order, gate = (model.simulate(queue, devices, 1.0, 0.0) for queue in (model.InOrder(), model.Gate()))
    assert len(order.connected) < devices and order.wasted > 100
    assert len(gate.connected) == devices and gate.wasted == 0
    assert sorted(gate.others)[len(gate.others) // 2] < 0.1


def test_contention(available: list[str]) -> None:
    go = importlib.import_module("benchmarks.peers").PEERS["go"].find() is not None
    servers = ["mitu", "go"] if go else available
    found = sheets(measure("contention", servers))
    assert found.keys() == {"rate-1000", "rate-5000", "clients"} | ({"saturated"} if go else set())
    for name, sheet in found.items():
        for server in servers:
            row = {column: series["median"] for column, series in sheet["rows"][server].items()}
            assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["p999_ms"], (name, server)
            assert 0 <= row["blocked"] < 100 and 0 <= row["failed"] < 100 and row["per_second"] > 10
    assert {goal["column"] for goal in found["clients"]["goals"]} == {"p99_ms", "blocked"}


BURN = "while True: sum(range(1000))"


@pytest.mark.parametrize("threads", [1, 2])
def test_waiting_for_a_lock_is_seen(harness: ModuleType, threads: int) -> None:
    """Two threads of Python wait for each other's lock all the time, one alone never."""
    locks = importlib.import_module("benchmarks.harness.locks")
    code = f"import threading\nfor _ in range({threads - 1}): threading.Thread(target=lambda: exec({BURN!r})).start()"
    with subprocess.Popen([sys.executable, "-c", f"{code}\nprint('started', flush=True)\n{BURN}"], stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        server = harness.Server("burning", child.pid, {}, ROOT)
        _, waited = locks.waited(server, lambda: threading.Event().wait(1))
        child.kill()
    assert waited > 0 if threads == 2 else waited == 0


def test_idle_memory(available: list[str]) -> None:
    # The kernel's part is that of the whole machine, where others give memory back meanwhile.
    found = sheets(measure("idle_memory", available, "--connections", "100", least=-100.0))
    assert {"http/1.1", "h2"} <= found.keys()
    for name in ("http/1.1", "h2"):
        for server in available:
            assert found[name]["rows"][server]["user_kib"]["median"] > 0


def test_alpn(available: list[str]) -> None:
    document = measure("alpn", available)
    for sheet in document["sheets"]:
        assert {"mitu", "mitu, new list"} <= sheet["rows"].keys()
        assert sheet["rows"]["mitu"].keys() == {"p1", "p8", "p64"}


def test_tickets() -> None:
    rows = sheets(measure("tickets", ["mitu"]))["tickets"]["rows"]
    fleet, strangers = (
        {column: series["median"] for column, series in rows[name].items()} for name in ("mitu", "mitu, no secret")
    )
    assert fleet["failed"] == 0
    assert fleet["resumed_12"] > 10 and fleet["resumed_13"] > 10
    assert (fleet["reloads"], fleet["restarts"]) == (20, 2)
    assert fleet["rotations"] >= 5
    assert strangers["failed"] > 0


def test_every_missing_server_is_named_with_a_way_to_get_it(available: list[str]) -> None:
    code = (
        "import dataclasses, sys; from benchmarks import peers; "
        "peers.PEERS['nginx'] = dataclasses.replace(peers.PEERS['nginx'], find=lambda: None); "
        "from benchmarks.alpn import BENCHMARK; sys.argv[1:] = ['--quick', '--json', '--only', 'nginx']; "
        "sys.exit(BENCHMARK.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # The Go peer may be missing as well, for it has to be built.
    missing = json.loads(done.stdout)["missing"]
    assert missing.pop("nginx") == "install the Debian package nginx-light"
    assert missing.keys() <= {"go"}


def test_one_run_is_written_in_both_forms(available: list[str], tmp_path: Path) -> None:
    document, page = tmp_path / "run.json", tmp_path / "run.md"
    command = [sys.executable, "-m", "benchmarks.alpn", "--quick", "--rounds", "1", "--only", "mitu"]
    done = subprocess.run(
        [*command, "--json", str(document), "--markdown", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for sheet in json.loads(document.read_text())["sheets"]:
        assert sheet["title"] in page.read_text()
        assert sheet["title"] in done.stdout
    refused = subprocess.run([*command, "--json", "--markdown"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "cannot both be printed" in refused.stderr


@pytest.fixture
def shared_port() -> Iterator[int]:
    """A port that somebody serves already, in the way that lets others share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_served_already_is_refused(harness: ModuleType, shared_port: int, tmp_path: Path) -> None:
    with (
        pytest.raises(harness.ServerError, match=f"another server listens on port {shared_port}"),
        harness.running("late", ["sleep", "10"], {"https": shared_port}, tmp_path, cores=None),
    ):
        pytest.fail("a second server was let on a served port")


def test_a_server_that_dies_says_why(harness: ModuleType, tmp_path: Path) -> None:
    (port,) = harness.free_ports(1)
    with (
        pytest.raises(harness.ServerError, match=r"(?s)ended at once with 3.*no such option"),
        harness.running("broken", ["sh", "-c", "echo no such option; exit 3"], {"x": port}, tmp_path, cores=None),
    ):
        pytest.fail("a server that ended counts as running")


def test_cpu_is_counted_in_every_process_below(harness: ModuleType) -> None:
    process = importlib.import_module("benchmarks.harness.process")
    with subprocess.Popen(["sh", "-c", "(while :; do :; done) & echo started; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        family = process.family(shell.pid)
        before = process.cpu(shell.pid)
        threading.Event().wait(0.3)
        spent = process.cpu(shell.pid).since(before)
        for pid in reversed(family):
            subprocess.run(["kill", str(pid)], check=False)
    assert len(family) == 2
    assert spent > 1_000_000


def test_a_thread_that_ended_spoils_the_count(harness: ModuleType) -> None:
    cpu = importlib.import_module("benchmarks.harness.process").Cpu
    assert cpu({(1, 1): 30, (1, 2): 7}).since(cpu({(1, 1): 10})) == 27
    with pytest.raises(RuntimeError, match="1 thread"):
        cpu({(1, 1): 30}).since(cpu({(1, 1): 10, (1, 2): 5}))


def test_a_goal_that_was_not_measured_is_not_met(harness: ModuleType) -> None:
    results = importlib.import_module("benchmarks.harness.results")
    goals = [results.Goal("cpu", 0.5, "nginx"), results.Goal("cpu", 0.5, "go"), results.Goal("blocked", 1)]
    goals.append(results.Goal("cpu", 9, at_least=True))
    sheet = results.Sheet("s", "S", "cpu", {"cpu": "CPU", "blocked": "blocked %"}, goals=goals)
    sheet.add("mitu", cpu=10.0, blocked=1.5)
    sheet.add("nginx", cpu=20.0)
    assert [(goal["value"], goal["met"]) for goal in sheet.document()["goals"]] == [
        (0.5, True),
        (None, None),
        (1.5, False),
        (10.0, True),
    ]
    assert "| CPU, mitu ÷ nginx ≤ 0.50 | 0.50 | yes |" in sheet.markdown()
    assert "| CPU, mitu ÷ go ≤ 0.50 |  | not measured |" in sheet.markdown()
    assert "| blocked % ≤ 1 | 1.50 | no |" in sheet.markdown()
    assert "| CPU ≥ 9 | 10.00 | yes |" in sheet.markdown()


def test_ratios_are_of_medians(harness: ModuleType) -> None:
    sheet = importlib.import_module("benchmarks.harness.results").Sheet("s", "S", "cpu", {"cpu": "CPU"})
    for own, other in ((10, 40), (30, 20), (20, 80)):
        sheet.add("mitu", cpu=own)
        sheet.add("nginx", cpu=other)
    assert sheet.ratios() == {"nginx": 0.5}
    assert "| mitu | 20.0 | ±50% |  |" in sheet.markdown()
