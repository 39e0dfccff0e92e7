"""What goes wrong with a run of `mitu bench`: each failure has its name, and says what to do next."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.bench import BENCH, bench, told, url
from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener
from support.net import free_port
from support.process import run
from support.servers import Reader, Writer

from .conftest import Serve, Start


@pytest.fixture(scope="module")
def edge_gateway(shared_gateway: Start, edge: Pair) -> Gateway:
    return shared_gateway(configuration([listener(edge, routes=[health()])]))


class TestBounds:
    """What comes before the start is bounded as what comes after it."""

    def test_no_more_tickets_than_handshakes(self, edge_gateway: Gateway) -> None:
        words = ["--rate", 100_000, "--resume", "100%", "-n", 10]
        outcome = bench("handshake", url(edge_gateway), *words)["outcome"]
        assert outcome["completed"] == 10 and 1 <= outcome["prepared"] <= 20

    def test_no_more_connections_than_files(self, edge_gateway: Gateway) -> None:
        text = told("requests", url(edge_gateway), "-c", 2_000_000, code=2)
        assert "that many connections at once need more open files" in text

    def test_a_server_that_takes_its_time(self, serve: Serve) -> None:
        """Preparing ends when the run would; 400 connections, 16 at once on each thread, need half a minute."""

        async def silent(reader: Reader, writer: Writer) -> None:
            await reader.read()

        begun = time.monotonic()
        words = ["-c", 400, "-t", 2, "-d", "1s", "--timeout", "3s"]
        outcome = bench("requests", f"https://localhost:{serve(silent).port}", *words, code=1)["outcome"]
        assert outcome["completed"] == 0
        assert time.monotonic() - begun < 25


class TestOwnGateway:
    def test_nothing_is_left_of_one_whose_run_is_refused(self, tmp_path: Path) -> None:
        done = run(["env", f"TMPDIR={tmp_path}", *BENCH, "handshake", "--group", "nope"])
        assert done.returncode == 2 and b"'nope' is not a known group" in done.stderr
        assert not list(tmp_path.glob("mitu-bench-*"))


class TestFailures:
    def test_nobody_listens(self) -> None:
        port = free_port()
        text = told("handshake", f"localhost:{port}", code=2)
        assert f"cannot connect to 127.0.0.1:{port}: connection refused" in text
        assert "leave TARGET out" in text

    def test_a_wrong_authority(self, edge_gateway: Gateway, tmp_path: Path) -> None:
        stranger = Authority(tmp_path, "A stranger")
        document = bench("handshake", url(edge_gateway), "-n", 5, "--ca", stranger.certificate, code=1)
        assert document["outcome"]["errors"].keys() == {"handshake_certificate"}
        assert "nothing was completed: " in document["said"] and "--ca FILE" in document["said"]

    def test_the_right_authority(self, edge_gateway: Gateway, authority: Authority) -> None:
        words = [url(edge_gateway), "-n", 5, "--ca", authority.certificate]
        assert bench("handshake", *words)["outcome"]["completed"] == 5
        wrong = bench("handshake", *words, "--server-name", "elsewhere.test", code=1)["outcome"]
        assert wrong["errors"].keys() == {"handshake_certificate"}

    def test_no_protocol_in_common(self, edge_gateway: Gateway) -> None:
        document = bench("handshake", url(edge_gateway), "-n", 5, "--alpn", "spdy/3.1", code=1)
        assert document["outcome"]["errors"].keys() == {"handshake_alpn"}
        assert "--alpn h2,http/1.1" in document["said"]

    def test_no_such_path(self, edge_gateway: Gateway) -> None:
        outcome = bench("requests", url(edge_gateway, "/nowhere"), "-n", 5, "-c", 1, code=1)["outcome"]
        assert outcome["statuses"] == {"404": 5}
        assert outcome["errors"]["response_status"]["count"] == 5
        assert outcome["connections"] == 1

    def test_a_server_that_closes(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            await reader.read(100)
            writer.close()

        port = serve(close).port
        encrypted = bench("handshake", f"https://localhost:{port}", "-n", 3, code=1)["outcome"]
        assert encrypted["errors"].keys() <= {"handshake_closed", "handshake_reset"}
        plain = bench("handshake", f"http://localhost:{port}", "-n", 3, code=1)["outcome"]
        assert plain["errors"].keys() <= {"response_closed", "response_reset"}

    def test_a_server_that_keeps_silent(self, serve: Serve) -> None:
        async def keep_silent(reader: Reader, writer: Writer) -> None:
            await reader.read()

        words = [f"localhost:{serve(keep_silent).port}", "-n", 3, "--timeout", "100ms"]
        assert bench("handshake", *words, code=1)["outcome"]["errors"].keys() == {"handshake_timeout"}

    def test_a_hopeless_run_ends_early(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            writer.close()

        begun = time.monotonic()
        outcome = bench("handshake", f"localhost:{serve(close).port}", "-d", "1h", code=1)["outcome"]
        assert outcome["phase"] == "stopped"
        assert time.monotonic() - begun < 90

    def test_another_machine_needs_the_flag(self) -> None:
        """TEST-NET-1 (RFC 5737): refused before anything is sent."""
        text = told("storm", "192.0.2.1:443", code=2)
        assert "192.0.2.1 is not this machine" in text
        assert "--i-own-the-target" in text

    def test_more_connections_than_files(self) -> None:
        text = told("storm", "--devices", 10_000_000, "--hold", code=2)
        assert "10,000,000 connections at once need as many open files" in text
        assert "ulimit -n" in text

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["handshake", "--fail-if", "p98>5ms"], "no metric 'p98'; did you mean 'p9"),
            (["handshake", "--fail-if", "handshake.p99>5"], "'handshake.p99' is a time; write handshake.p99>5ms"),
            (["handshake", "--fail-if", "rate<5ms"], "'ms' is not a unit of 'rate'; write rate<5/s"),
            (["handshake", "--fail-if", "p99"], "'p99' is not a condition"),
            (["handshake", "--rate", "fast"], "'fast' is not a rate; write 500, or 100..2000"),
            (["handshake", "--duration", "10"], "'10' is not a duration; write 10s or 10ms"),
            (["handshake", "--resume", "130%"], "'130%' is not a share"),
            (["handshake", "--alpn", "h2=many"], "'many' is not a weight"),
            (["handshake", "--arrivals", "often"], "'often' is neither fixed nor poisson"),
            (["storm", "--within", "3m"], "--within 3m is not within --duration 2m"),
            (["handshake", "ftp://localhost"], "ftp:// is not known here"),
            (["handshake", "localhost:1:2"], "is not a target"),
            (["handshake", "https://[::1"], "is not a target"),
            (["handsake"], "No such command 'handsake'"),
        ],
    )
    def test_wrong_usage(self, words: list[str], said: str) -> None:
        assert said in told(*words, code=2)

    def test_what_the_data_plane_does_not_know(self, edge_gateway: Gateway) -> None:
        text = told("handshake", url(edge_gateway), "--group", "X25518", code=2)
        assert "'X25518' is not a known group; known:" in text and "X25519" in text
