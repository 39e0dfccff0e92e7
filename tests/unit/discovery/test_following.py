"""Faults of the gateway's own in what keeps track of an upstream: they are told, and it goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from mitu.config.discovery import HealthCheck
from mitu.config.model import Config
from mitu.discovery import service
from mitu.discovery.checker import Checker
from mitu.discovery.checks import Check, Verdict
from mitu.discovery.following import Following, settings_of
from mitu.discovery.instance import Evidence, Health
from mitu.discovery.service import Discovery
from mitu.discovery.store import Store
from mitu.discovery.tracked import Change
from support.net import until


class Faulty(Check):
    """Fails in a way that no check should, and is good from then on."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, address: str) -> Verdict:
        self.runs += 1
        if self.runs == 1:
            raise ZeroDivisionError
        return Verdict(True)


async def test_a_fault_in_a_check_ends_no_checks(caplog: pytest.LogCaptureFixture) -> None:
    said: list[tuple[str, Evidence]] = []
    settings = HealthCheck.model_validate({"kind": "tcp", "interval": "100ms"})
    async with Checker(settings, Faulty(), lambda *word: said.append(word)) as checker:
        checker.set_targets({"a": "10.0.0.1:80"})
        await until(lambda: said)
    assert said == [("a", Evidence(Health.HEALTHY, "check"))]
    assert "the check of 10.0.0.1:80 failed" in caplog.text and "ZeroDivisionError" in caplog.text


def configuration(folder: Path) -> Config:
    upstream = {"name": "app", "endpoints": ["127.0.0.1:9"], "tls": True, "probe_alpn": True}
    return Config.model_validate({"listeners": [], "upstreams": [upstream], "discovery": {"state": str(folder)}})


async def test_a_fault_in_a_probe_ends_no_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    async def ask(self: object, address: str) -> tuple[str, ...]:
        asked.append(address)
        if len(asked) == 1:
            raise ZeroDivisionError
        return ("h2",)

    monkeypatch.setattr("mitu.discovery.probe.Probe.ask", ask)
    config = configuration(tmp_path)
    changes: list[Change] = []
    following = Following(config, config.upstreams[0], (), Store(tmp_path), changes.append, None)
    try:
        await until(lambda: changes)
    finally:
        await following.stop()
    assert [change.what for change in changes] == ["app/127.0.0.1:9 was found to speak h2"]
    assert "app is followed no further for now" in caplog.text


class Broken:
    """A data plane that takes nothing."""

    async def discover(self, document: str) -> None:
        json.loads(document)
        raise RuntimeError("it takes nothing")

    async def endpoints(self) -> str:
        return "{}"


async def test_what_cannot_be_made_live_does_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "_MOST_CHANGES", 3)
    discovery = Discovery(Broken())  # type: ignore[arg-type]
    async with discovery.following(configuration(tmp_path)):
        pass
    try:
        for number in range(10):
            discovery._changed(Change("app", f"change {number}", 0.0))
            await asyncio.sleep(0.02)
        assert len(discovery._changes) == 3
        assert caplog.text.count("could not be made live") == 1, "and not at the rate of changes"
        (app,) = discovery.services()
    finally:
        await discovery.close()
    (still,) = discovery.services()
    assert still["instances"] == app["instances"], "as long as there is somebody to ask"


async def test_a_disk_that_hangs_holds_up_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mitu.discovery.following._DISK", 0.2)
    let_go = threading.Event()

    class Hanging(Store):
        def save(self, *args: object) -> None:
            assert let_go.wait(60)

    services = tmp_path / "services.json"
    services.write_text(json.dumps({"services": {"api": ["10.0.0.1:80"]}}))
    provider = {"name": "list", "file": {"path": str(services)}}
    upstream = {"name": "app", "discover": {"provider": "list", "service": "api"}}
    config = Config.model_validate(
        {"listeners": [], "upstreams": [upstream], "discovery": {"providers": [provider], "state": str(tmp_path)}}
    )
    try:
        for forget in (True, False):
            settings = await asyncio.to_thread(settings_of, config, config.upstreams[0])
            store = Hanging(tmp_path)
            following = Following(config, config.upstreams[0], settings, store, lambda _: None, None)
            await until(lambda: following.tracked.instances)  # noqa: B023 - it is called here
            async with asyncio.timeout(20):
                await following.stop(forget=forget)
        assert caplog.text.count("the disk takes too long") == 2
    finally:
        let_go.set()
