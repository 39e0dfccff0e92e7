"""`mitu status`, `reload` and `drain` as an operator uses them: text, JSON, and exit codes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import MITU, Gateway, Settings, configuration, health, listener
from support.process import run

from .conftest import Start

COMMANDS = ("status", "reload", "drain")


@pytest.fixture
def running(gateway: Start, edge: Pair) -> Gateway:
    return gateway(plain(edge), flags=["--no-watch"])


def plain(edge: Pair, **settings: object) -> Settings:
    return configuration([listener(edge, routes=[health()], **settings)])


def spoilt(edge: Pair) -> Settings:
    return configuration([listener(edge, routes=[health(), {"match": {}, "upstream": "[nowhere]"}])])


def words(text: str) -> str:
    """Without the line breaks that a terminal's width makes."""
    return " ".join(text.split())


class TestStatus:
    def test_text(self, running: Gateway) -> None:
        done = running.mitu("status")
        assert (done.returncode, done.stderr) == (0, "")
        status = running.status()
        text = words(done.stdout)
        assert f"mitu {status['version']} serving pid {running.program.pid} 0 connections" in text
        assert f"edge {status['listeners'][0]['address']} h2, http/1.1" in text
        assert f"configuration {status['config']['digest'][:12]} of {running.file}, live since" in text
        assert "reloads: 0 done, 0 refused" in text

    def test_json(self, running: Gateway) -> None:
        done = running.mitu("status", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == running.status()

    def test_a_refused_reload_shows(self, running: Gateway, edge: Pair) -> None:
        """As it is, brackets and all."""
        running.reload(spoilt(edge))
        done = running.mitu("status")
        assert done.returncode == 1
        text = words(done.stdout)
        assert "reloads: 0 done, 1 refused" in text
        assert "the last reload was refused at" in text
        assert "listeners[0].routes[1].upstream" in text
        assert "'[nowhere]'" in text
        done = running.mitu("status", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["reloads"]["report"]["errors"][0]["code"].startswith("E0")

    def test_a_warning_shows(self, running: Gateway, edge: Pair) -> None:
        settings = plain(edge)
        settings["listeners"][0]["tls"]["certificates"][0]["names"] = ["elsewhere.test"]
        assert running.reload(settings)[0] == 0
        done = running.mitu("status")
        assert done.returncode == 0
        assert "warning: W007" in words(done.stdout)
        assert "listeners[0].tls.certificates[0].names" in words(done.stdout)

    def test_by_the_configuration(self, running: Gateway) -> None:
        done = run([*MITU, "status", "--config", running.file])
        assert done.returncode == 0
        assert f"pid {running.program.pid}" in words(done.stdout.decode())

    def test_while_it_drains(self, running: Gateway, authority: Authority) -> None:
        with Http1.open(running.address(), authority.certificate) as client:
            client.send(b"GET /health HTTP/1.1\r\n")
            running.admin("/drain", "POST")
            done = running.mitu("status")
            assert done.returncode == 1
            assert "draining" in done.stdout


class TestReload:
    def test_text(self, running: Gateway, edge: Pair) -> None:
        running.write(plain(edge, timeouts={"idle": "9s"}))
        done = running.mitu("reload")
        digest = running.status()["config"]["digest"][:12]
        assert (done.returncode, done.stdout, done.stderr) == (0, f"reloaded: configuration {digest}\n", "")
        done = running.mitu("reload")
        assert (done.returncode, done.stdout) == (0, f"nothing has changed: configuration {digest}\n")

    def test_json(self, running: Gateway, edge: Pair) -> None:
        running.write(plain(edge, timeouts={"idle": "9s"}))
        done = running.mitu("reload", "--json")
        digest = running.status()["config"]["digest"]
        assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "changed": True, "digest": digest})

    def test_refused(self, running: Gateway, edge: Pair) -> None:
        running.write(spoilt(edge))
        done = running.mitu("reload")
        assert (done.returncode, done.stdout) == (1, "")
        assert "not reloaded, the last good configuration stays: E0" in words(done.stderr)
        assert "listeners[0].routes[1].upstream" in words(done.stderr)
        done = running.mitu("reload", "--json")
        assert done.returncode == 1
        answer = json.loads(done.stdout)
        assert answer["ok"] is False
        assert answer["report"]["errors"][0]["path"] == "listeners[0].routes[1].upstream"


class TestDrain:
    def test_text(self, running: Gateway) -> None:
        done = running.mitu("drain")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("draining: 0 connections have to finish\ndrained in ")
        assert running.program.wait() == 0

    def test_json(self, running: Gateway) -> None:
        done = running.mitu("drain", "--json")
        assert done.returncode == 0
        answer = json.loads(done.stdout)
        assert (answer["ok"], answer["connections"]) == (True, 0)
        assert answer["seconds"] >= 0
        assert running.program.wait() == 0


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """A socket on which somebody listens and is no gateway."""
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        other.close()
        yield path


@pytest.mark.parametrize("command", COMMANDS)
class TestNobodyThere:
    def test_no_socket(self, command: str, tmp_path: Path) -> None:
        nowhere = tmp_path / "Nowhere.sock"
        done = run([*MITU, command, "--socket", nowhere])
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"error: no gateway listens at {nowhere}" in words(done.stderr.decode())
        assert "mitu run FILE" in words(done.stderr.decode())

    def test_no_socket_in_json(self, command: str, tmp_path: Path) -> None:
        done = run([*MITU, command, "--socket", tmp_path / "nowhere.sock", "--json"])
        assert (done.returncode, done.stderr) == (2, b"")
        answer = json.loads(done.stdout)
        assert (answer["ok"], "no gateway listens" in answer["error"]) == (False, True)

    def test_a_socket_left_behind(self, command: str, stuck: Path) -> None:
        done = run([*MITU, command, "--socket", stuck])
        assert done.returncode == 2
        assert f"cannot ask the gateway at {stuck}: connection refused" in words(done.stderr.decode())

    def test_a_configuration_that_is_not_there(self, command: str, tmp_path: Path) -> None:
        done = run([*MITU, command, "--config", tmp_path / "nowhere.yaml"])
        assert done.returncode == 2
        assert b"cannot read the configuration" in done.stderr

    def test_wrong_usage(self, command: str) -> None:
        done = run([*MITU, command, "--sokcet", "x"])
        assert (done.returncode, done.stdout) == (2, b"")
