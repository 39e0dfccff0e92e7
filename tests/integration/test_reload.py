"""Reloads: what begins one, that it is whole or nothing, and what is told of one that was refused."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import Gateway, Settings, configuration, listener, parse, to_app, upstream
from support.net import eventually, free_port
from support.servers import Server

from .conftest import EDGE_NAMES, Start


def says(text: str) -> Settings:
    """A route that answers everything with `text`."""
    return {"match": {"path_prefix": "/"}, "respond": {"status": 200, "body": text}}


def heard(gateway: Gateway, authority: Authority, name: str = "edge") -> str:
    with Http1.open(gateway.address(name), authority.certificate) as client:
        return client.request("/").body.decode()


def says_now(gateway: Gateway, authority: Authority, text: str) -> bool:
    return heard(gateway, authority) == text


@pytest.fixture
def running(gateway: Start, edge: Pair) -> Gateway:
    """Says `one`; nothing but the test reloads it."""
    return gateway(configuration([listener(edge, routes=[says("one")])]), flags=["--no-watch"])


def by_signal(gateway: Gateway) -> None:
    gateway.program.signal(signal.SIGHUP)


def by_command(gateway: Gateway) -> None:
    assert gateway.reload()[0] == 0


def by_request(gateway: Gateway) -> None:
    status, body = gateway.admin("/reload", "POST")
    assert (status, json.loads(body)["changed"]) == (200, True)


@pytest.mark.parametrize("begin", [by_signal, by_command, by_request])
def test_a_reload_is_asked_for(
    running: Gateway, authority: Authority, edge: Pair, begin: Callable[[Gateway], None]
) -> None:
    assert heard(running, authority) == "one"
    before = running.status()["config"]
    running.write(configuration([listener(edge, routes=[says("two")])]))
    begin(running)
    assert eventually(lambda: heard(running, authority) == "two")
    status = running.status()
    assert status["config"]["digest"] != before["digest"]
    assert status["config"]["loaded_at"] > before["loaded_at"]
    assert (status["reloads"]["succeeded"], status["reloads"]["failed"]) == (1, 0)


def test_a_changed_file_is_reloaded(gateway: Start, authority: Authority, edge: Pair) -> None:
    watched = gateway(configuration([listener(edge, routes=[says("one")])]))
    for text in ("two", "three"):
        watched.write(configuration([listener(edge, routes=[says(text)])]))
        eventually(partial(says_now, watched, authority, text))
    # In place, as an editor without a rename of its own would.
    written = watched.file.read_text().replace('"three"', '"four"')
    watched.file.write_text(written)
    assert eventually(lambda: heard(watched, authority) == "four")
    assert watched.status()["reloads"]["failed"] == 0


def test_a_file_that_is_touched_is_not_reloaded(gateway: Start, authority: Authority, edge: Pair) -> None:
    watched = gateway(configuration([listener(edge, routes=[says("one")])]))
    watched.file.touch()
    (watched.folder / "unrelated.txt").write_text("new")
    # A change that counts, and comes after: the others have been looked at when it is live.
    watched.write(configuration([listener(edge, routes=[says("two")])]))
    assert eventually(lambda: heard(watched, authority) == "two")
    assert watched.status()["reloads"]["succeeded"] == 1


def test_nothing_changed_is_said(running: Gateway) -> None:
    code, text = running.reload()
    assert (code, "nothing has changed" in text) == (0, True), text
    assert running.status()["reloads"]["succeeded"] == 1


def missing_certificate(settings: Settings) -> str:
    settings["listeners"][0]["tls"]["certificates"][0]["certificate"] = "/nowhere/edge.crt"
    return "/nowhere/edge.crt"


def unknown_field(settings: Settings) -> str:
    settings["listeners"][0]["prots"] = []
    return "prots"


def unknown_upstream(settings: Settings) -> str:
    settings["listeners"][0]["routes"] = [to_app()]
    return "app"


def refused_by_the_data_plane(settings: Settings) -> str:
    settings["listeners"][0]["routes"][0]["match"] = {"path_regex": "/a{2000}{2000}"}
    return "listener 'edge'"


def no_such_handler(settings: Settings) -> str:
    settings["listeners"][0]["protocols"].append({"alpn": "private/1", "handler": "no_such_module:serve"})
    return "no_such_module"


def more_workers(settings: Settings) -> str:
    settings["runtime"]["workers"] = 2
    return "cannot change from 1 to 2 workers without a restart"


def another_scheduler(settings: Settings) -> str:
    settings["runtime"]["scheduler"] = "work_stealing"
    return "cannot change the scheduler without a restart"


def another_admin_socket(settings: Settings) -> str:
    settings["admin"] = {"socket": "elsewhere.sock"}
    return "cannot change admin.socket without a restart"


def log_in_a_missing_folder(settings: Settings) -> str:
    settings["logging"] = {"access": {"path": "no/such/folder/access.log"}}
    return "no/such/folder"


def log_that_is_a_folder(settings: Settings) -> str:
    settings["logging"] = {"access": {"path": "/tmp"}}  # noqa: S108 - a folder that is there
    return "access log: cannot open /tmp"


def token_without_a_file(settings: Settings) -> str:
    settings["admin"] = {"socket": "admin.sock", "token": {"file": "no-such-token"}}
    return "cannot read admin.token"


@pytest.mark.parametrize(
    "spoil",
    [
        missing_certificate,
        unknown_field,
        unknown_upstream,
        refused_by_the_data_plane,
        no_such_handler,
        more_workers,
        another_scheduler,
        another_admin_socket,
        log_in_a_missing_folder,
        log_that_is_a_folder,
        token_without_a_file,
    ],
)
def test_what_is_wrong_changes_nothing(
    running: Gateway, authority: Authority, edge: Pair, spoil: Callable[[Settings], str]
) -> None:
    good = running.status()["config"]
    # Everything else in it is good, and none of it must become live.
    settings = configuration([listener(edge, routes=[says("two")]), listener(edge, name="second", routes=[says("2")])])
    wanted = spoil(settings)
    code, text = running.reload(settings)
    assert code == 1, text
    assert wanted in text
    assert heard(running, authority) == "one"
    status = running.status()
    assert status["config"] == good
    assert list(running.addresses()) == ["edge"]
    assert wanted in status["reloads"]["last_error"]
    assert (status["reloads"]["succeeded"], status["reloads"]["failed"]) == (0, 1)
    shown = running.mitu("status")
    assert shown.returncode == 1
    assert wanted in shown.stdout.replace("\n", "")
    assert running.metric("mitu_config_reloads_total", result="failure") == 1
    assert running.metric("mitu_config_last_reload_successful") == 0
    assert wanted in running.program.log
    # A good one heals it.
    assert running.reload(configuration([listener(edge, routes=[says("two")])]))[0] == 0
    assert heard(running, authority) == "two"
    assert running.status()["reloads"]["last_error"] is None
    assert running.metric("mitu_config_last_reload_successful") == 1


@pytest.mark.parametrize("text", ["listeners: [", "", "listeners: []", "\0", "- a list"])
def test_a_file_that_cannot_be_read_changes_nothing(running: Gateway, authority: Authority, text: str) -> None:
    running.file.write_text(text)
    code, told = running.reload()
    assert code == 1, told
    assert heard(running, authority) == "one"
    assert running.status()["reloads"]["report"]["errors"]


def test_a_file_that_is_gone_changes_nothing(running: Gateway, authority: Authority) -> None:
    running.file.unlink()
    code, told = running.reload()
    assert (code, "cannot read the configuration" in told) == (1, True), told
    assert heard(running, authority) == "one"


def test_a_port_that_is_taken_changes_nothing(running: Gateway, authority: Authority, edge: Pair) -> None:
    with socket.socket() as other:
        # Even a program that shares its port does not share it with the gateway.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        settings = configuration(
            [listener(edge, routes=[says("two")]), listener(edge, name="second", bind=taken, routes=[says("2")])]
        )
        code, told = running.reload(settings)
        assert code == 1
        assert f"listener 'second': cannot bind {taken}: Address already in use" in told
        assert heard(running, authority) == "one"
        assert list(running.addresses()) == ["edge"]
    code, told = running.reload()
    assert code == 0, told
    assert (heard(running, authority), heard(running, authority, "second")) == ("two", "2")


def test_it_heals_when_a_missing_file_appears(
    gateway: Start, authority: Authority, edge: Pair, tmp_path: Path
) -> None:
    """The files of a refused configuration are watched as well as those of the live one."""
    watched = gateway(configuration([listener(edge, routes=[says("one")])]))
    coming = Pair(tmp_path / "coming.crt", tmp_path / "coming.key")
    watched.write(configuration([listener(coming, routes=[says("two")])]))
    eventually(lambda: watched.status()["reloads"]["last_error"])
    issued = authority.issue("coming", EDGE_NAMES)
    shutil.copyfile(issued.key, coming.key)
    shutil.copyfile(issued.certificate, coming.certificate)
    assert eventually(lambda: heard(watched, authority) == "two")
    assert eventually(lambda: watched.status()["reloads"]["last_error"] is None)


def test_many_signals_at_once(running: Gateway, authority: Authority, edge: Pair) -> None:
    for number in range(30):
        running.write(configuration([listener(edge, routes=[says(f"number {number}")])]))
        running.program.signal(signal.SIGHUP)
    assert eventually(lambda: heard(running, authority) == "number 29")
    assert running.status()["reloads"]["failed"] == 0


def test_settings_of_the_process_are_reloaded(running: Gateway, edge: Pair) -> None:
    settings = configuration([listener(edge, routes=[says("one")])], logging={"level": "warning"})
    code, text = running.reload(settings)
    assert (code, text.startswith("reloaded")) == (0, True), text
    # Quiet from now on, so that only refusals are told.
    before = running.program.log
    assert running.reload()[0] == 0
    assert running.program.log == before
    running.file.write_text("")
    running.reload()
    assert "not reloaded" in running.program.log.removeprefix(before)


def test_an_access_log_is_turned_on_and_off(running: Gateway, authority: Authority, edge: Pair) -> None:
    routes = [says("one")]
    log = running.folder / "access.log"
    heard(running, authority)
    logged = configuration([listener(edge, routes=routes)], logging={"access": {"path": "access.log"}})
    running.apply(logged)
    heard(running, authority)
    eventually(lambda: log.read_text().count("\n") == 1)
    running.apply(configuration([listener(edge, routes=routes)]))
    heard(running, authority)
    assert log.read_text().count("\n") == 1


def test_metrics_go_on_counting(running: Gateway, authority: Authority, edge: Pair) -> None:
    """Counters never go back, and a listener that stays keeps its own."""
    for _ in range(3):
        heard(running, authority)
    before = parse(running.metrics())
    running.apply(configuration([listener(edge, routes=[says("two")])]))
    heard(running, authority)
    after = parse(running.metrics())
    for name, samples in before.items():
        for labels, value in samples:
            if name.endswith(("_total", "_count")):
                now = [found for known, found in after[name] if known == labels]
                assert now and now[0] >= value, (name, labels)
    assert running.metric("mitu_connections_accepted_total", listener="edge") == 4


def test_an_upstream_that_moved(running: Gateway, authority: Authority, edge: Pair, app: Server) -> None:
    dead = f"127.0.0.1:{free_port()}"
    routed = [listener(edge, routes=[to_app()])]
    running.apply(configuration(routed, upstream("app", dead)))
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/").status == 502
    running.apply(configuration(routed, upstream("app", app.endpoint)))
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/").status == 200
