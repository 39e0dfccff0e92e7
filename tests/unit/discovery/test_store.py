"""What is kept on disk comes back as it was, or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mitu.discovery.instance import Health, Instance, Snapshot
from mitu.discovery.store import Memory, Store, default_folder

API = {"provider": {"name": "consul"}, "discover": {"service": "api"}}
OTHER = {"provider": {"name": "staging"}, "discover": {"service": "api"}}
SNAPSHOT = Snapshot.of(
    [
        Instance("a", "10.0.0.1:80", 3, ("h2", "http/1.1"), Health.DEGRADED, "slow", "eu-1a", {"k": "v"}),
        Instance("b", "[fd00::1]:80"),
    ]
)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    Store(folder).save("api", API, SNAPSHOT, 12.5)
    kept = Store(folder).load("api", API)
    assert kept is not None and (kept.snapshot, kept.at) == (SNAPSHOT, 12.5)
    (file,) = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert Store(folder).load("api", OTHER) is None
    assert Store(folder).load("web", API) is None


def test_another_source_has_a_file_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("api", API, SNAPSHOT, 1.0)
    store.save("api", OTHER, Snapshot(()), 2.0)
    store.forget("api", OTHER)
    kept = store.load("api", API)
    assert kept is not None and kept.snapshot == SNAPSHOT
    store.forget("api", OTHER)


async def test_what_is_still_to_be_written_is_written_at_the_end(tmp_path: Path) -> None:
    memory = Memory(Store(tmp_path), "api", API)
    for number in range(100):
        memory.save(SNAPSHOT, float(number))
    await memory.close()
    kept = memory.load()
    assert kept is not None and kept.at == 99.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe", json.dumps({"version": 2}).encode()]
)
def test_what_cannot_be_read_is_said_and_left(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.save("api", API, SNAPSHOT, 1.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert store.load("api", API) is None
    assert "'api' cannot be used" in caplog.text or b"2" in content


def test_a_pipe_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.save("api", API, SNAPSHOT, 1.0)
    (file,) = tmp_path.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert store.load("api", API) is None
    assert "it is no regular file" in caplog.text
    store.save("api", API, SNAPSHOT, 2.0)
    kept = store.load("api", API)
    assert kept is not None and kept.at == 2.0, "the next state takes its place"


def test_an_instance_that_is_none_is_said_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.save("api", API, SNAPSHOT, 1.0)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    for field, wrong in (("weight", "heavy"), ("health", 7), ("protocols", "h2"), ("address", None)):
        instances = [one | {field: wrong} for one in kept["instances"]]
        file.write_text(json.dumps(kept | {"instances": instances}))
        assert store.load("api", API) is None, field
        assert field in caplog.text


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    inside = tmp_path / "state"
    Store(inside).save("../../outside", API, SNAPSHOT, 0.0)
    assert list(tmp_path.iterdir()) == [inside]


def test_a_folder_that_cannot_be_written_to_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file")
    store = Store(tmp_path / "state")
    for _ in range(3):
        store.save("api", API, SNAPSHOT, 0.0)
    assert caplog.text.count("is not kept") == 1


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge:/var/lib/other")
    assert default_folder() == Path("/var/lib/edge/discovery")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert default_folder() == Path("/home/me/state/mitu/discovery")
    monkeypatch.delenv("XDG_STATE_HOME")
    root = Path("/var/lib/mitu/discovery")
    assert default_folder() == (root if os.geteuid() == 0 else Path.home() / ".local/state/mitu/discovery")


class Slow(Store):
    """On a disk that hangs until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go = threading.Event()
        self.begun: list[float] = []

    def save(self, upstream: str, source: Mapping[str, Any], snapshot: Snapshot, at: float) -> None:
        self.begun.append(at)
        assert self.go.wait(30)
        super().save(upstream, source, snapshot, at)


async def test_a_disk_that_hangs_takes_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitu.discovery.store._SAVE_EVERY", 0.01)
    store = Slow(tmp_path)
    memory = Memory(store, "api", API)
    try:
        for number in range(20):
            memory.save(SNAPSHOT, float(number))
            await asyncio.sleep(0.02)
        assert store.begun == [0.0]
    finally:
        store.go.set()
    await memory.close()
    assert store.begun == [0.0, 19.0], "the last state is the next"
    kept = memory.load()
    assert kept is not None and kept.at == 19.0


async def test_what_is_being_written_is_forgotten_too(tmp_path: Path) -> None:
    store = Slow(tmp_path)
    memory = Memory(store, "api", API)
    memory.save(SNAPSHOT, 1.0)
    async with asyncio.timeout(30):
        while not store.begun:  # noqa: ASYNC110 - it begins in a thread
            await asyncio.sleep(0.01)
    forgetting = asyncio.create_task(memory.forget())
    await asyncio.sleep(0)
    store.go.set()
    await forgetting
    assert memory.load() is None
