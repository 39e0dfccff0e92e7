"""Which changes of files are noticed, and which are none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mitu import parse_config
from mitu.watch import Fingerprint, changes, fingerprint, named_files

# Longer than a change may take to be noticed, on a machine that is busy with other things.
SOON = 15


class Noticed:
    """Counts what `changes` tells of `files`."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self.count = 0
        self._event = asyncio.Event()

    async def run(self, known: Fingerprint) -> None:
        async for _ in changes(lambda: self.files, known):
            self.count += 1
            self._event.set()

    async def once_more(self) -> None:
        async with asyncio.timeout(SOON):
            await self._event.wait()
        self._event.clear()


@asynccontextmanager
async def watching(*files: Path, known: Fingerprint | None = None) -> AsyncIterator[Noticed]:
    noticed = Noticed(files)
    task = asyncio.create_task(noticed.run(fingerprint(files) if known is None else known))
    # The kernel tells only of what happens once it was asked.
    await asyncio.sleep(0.5)
    try:
        yield noticed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


def touch(file: Path) -> None:
    """New times and a new mode."""
    file.touch()
    file.chmod(0o600)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "edge.crt"
    path.write_text("one")
    return path


async def test_new_content_in_place(file: Path) -> None:
    async with watching(file) as noticed:
        write(file, "two")
        await noticed.once_more()
        write(file, "three")
        await noticed.once_more()
        assert noticed.count == 2


async def test_a_file_renamed_over_it(file: Path) -> None:
    async with watching(file) as noticed:
        aside = file.with_name("aside")
        write(aside, "two")
        aside.replace(file)
        await noticed.once_more()


async def test_a_file_that_goes_and_comes_back(file: Path) -> None:
    async with watching(file) as noticed:
        remove(file)
        await noticed.once_more()
        write(file, "one")
        await noticed.once_more()


async def test_a_link_to_a_folder_that_is_swapped(tmp_path: Path) -> None:
    """As Kubernetes updates what it mounts: edge.crt -> ..data/edge.crt, and ..data is replaced."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "edge.crt", name)
    data, file = tmp_path / "..data", tmp_path / "edge.crt"
    data.symlink_to("first")
    file.symlink_to("..data/edge.crt")
    async with watching(file) as noticed:
        aside = tmp_path / "..aside"
        aside.symlink_to("second")
        aside.replace(data)
        await noticed.once_more()


async def test_what_leaves_the_content_as_it_was(file: Path) -> None:
    async with watching(file) as noticed:
        touch(file)
        write(file, "one")
        write(file.with_name("unrelated"), "new")
        await asyncio.sleep(1)
        assert noticed.count == 0
        write(file, "two")
        await noticed.once_more()
        assert noticed.count == 1


async def test_files_that_change_together_are_one_change(file: Path) -> None:
    key = file.with_name("edge.key")
    write(key, "one")
    async with watching(file, key) as noticed:
        write(file, "two")
        write(key, "two")
        await noticed.once_more()
        await asyncio.sleep(1)
        assert noticed.count == 1


async def test_what_changed_before_the_watch_began(file: Path) -> None:
    known = fingerprint([file])
    write(file, "two")
    async with watching(file, known=known) as noticed:
        await noticed.once_more()


async def test_files_that_join_the_set(file: Path, tmp_path: Path) -> None:
    """In a folder that was not watched before; one that leaves the set is no change."""
    other = tmp_path / "other"
    other.mkdir()
    joined = other / "joined.crt"
    write(joined, "one")
    async with watching(file) as noticed:
        noticed.files = [file, joined]
        write(file, "two")
        await noticed.once_more()
        noticed.files = [joined]
        write(joined, "two")
        await noticed.once_more()
        assert noticed.count == 2


async def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "edge.crt"
    async with watching(missing) as noticed:
        missing.parent.mkdir()
        write(missing, "one")
        await noticed.once_more()


def test_a_fingerprint_tells_content_apart(file: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    write(same, "one")
    found = fingerprint([file, same, tmp_path / "missing", tmp_path])
    assert found[file] == found[same] is not None
    assert found[tmp_path / "missing"] is None
    assert found[tmp_path] is None
    os.utime(file, (0, 0))
    assert fingerprint([file]) == {file: found[file]}


def test_every_file_that_a_configuration_names(tmp_path: Path) -> None:
    listener = {
        "name": "edge",
        "bind": "127.0.0.1:0",
        "protocols": ["http/1.1", {"alpn": "mqtt", "relay": "broker", "tls": {"client_ca": "devices.crt"}}],
        "tls": {"certificates": [{"certificate": "edge.crt", "key": "edge.key"}], "client_ca": "ca.crt"},
        "routes": [{"respond": {}}],
    }
    broker = {
        "name": "broker",
        "endpoints": ["127.0.0.1:1"],
        "tls": {"ca": "up.crt", "certificate": "me.crt", "key": "me.key"},
    }
    admin = {"socket": "admin.sock", "listen": "127.0.0.1:0", "token": {"file": "token"}}
    config = parse_config({"listeners": [listener], "upstreams": [broker], "admin": admin}, base=tmp_path)
    assert sorted(path.name for path in named_files(config)) == [
        "admin.sock", "ca.crt", "devices.crt", "edge.crt", "edge.key", "me.crt", "me.key", "token", "up.crt",
    ]  # fmt: skip
    assert all(path.parent == tmp_path for path in named_files(config))
