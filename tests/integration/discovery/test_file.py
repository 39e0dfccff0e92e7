"""Instances from files that are written as people, editors and Kubernetes write them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mitu.config.discovery import Discover, FileProvider
from mitu.discovery.file import File, read
from mitu.discovery.instance import Health, Instance, Snapshot
from mitu.discovery.provider import ProviderError

SOON = 20
"""Seconds, on a machine that is busy with other things."""

ONE = "services: {api: ['10.0.0.1:80']}\n"
TWO = "services: {api: ['10.0.0.1:80', '10.0.0.2:80']}\n"


class Watched:
    """A service in a file, watched the way that whoever needs it does: begun anew after each error."""

    def __init__(self, file: File, service: str = "api") -> None:
        self._file, self._discover = file, Discover(provider="file", service=service)
        self._begin()

    def _begin(self) -> None:
        self._snapshots = self._file.watch(self._discover)

    async def next(self, timeout: float = SOON) -> list[str]:  # noqa: ASYNC109 - of the test, not of what it tests
        """The addresses of the next snapshot."""
        return [one.address for one in (await asyncio.wait_for(anext(self._snapshots), timeout)).instances]

    async def after(self, act: Callable[[], object]) -> list[str]:
        waiting = asyncio.create_task(self.next())
        # The kernel tells only of what happens once it was asked.
        await asyncio.sleep(0.5)
        act()
        return await waiting

    async def refused(self, act: Callable[[], object] | None = None) -> str:
        with pytest.raises(ProviderError) as told:
            await (self.next() if act is None else self.after(act))
        self._begin()
        return str(told.value)

    async def aclose(self) -> None:
        await self._snapshots.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "services.yaml"
    path.write_text(ONE)
    return path


@asynccontextmanager
async def watched(path: Path, *services: str) -> AsyncIterator[list[Watched]]:
    file = File(FileProvider(path=path))
    watches = [Watched(file, service) for service in services]
    try:
        yield watches
    finally:
        for watch in watches:
            await watch.aclose()
        await file.close()


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed_over_it(path: Path, text: str) -> None:
    aside = path.with_name(".services.yaml.swp")
    aside.write_text(text)
    aside.replace(path)


def removed_first(path: Path, text: str) -> None:
    path.rename(path.with_name("services.yaml~"))
    path.write_text(text)


@pytest.mark.parametrize("write", [in_place, renamed_over_it, removed_first])
async def test_a_change(path: Path, write: Callable[[Path, str], None]) -> None:
    async with watched(path, "api") as (api,):
        assert await api.next() == ["10.0.0.1:80"]
        assert await api.after(lambda: write(path, TWO)) == ["10.0.0.1:80", "10.0.0.2:80"]
        assert await api.after(lambda: write(path, ONE)) == ["10.0.0.1:80"]


def swap(folder: Path, name: str) -> None:
    aside = folder / "..data_tmp"
    aside.symlink_to(name)
    aside.replace(folder / "..data")


async def test_a_folder_that_is_swapped(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted ConfigMap: services.yaml -> ..data/services.yaml, and ..data is replaced."""
    for name, text in (("..first", ONE), ("..second", TWO)):
        (tmp_path / name).mkdir()
        in_place(tmp_path / name / "services.yaml", text)
    file = tmp_path / "services.yaml"
    file.symlink_to("..data/services.yaml")
    swap(tmp_path, "..first")
    async with watched(file, "api") as (api,):
        assert await api.next() == ["10.0.0.1:80"]
        assert await api.after(lambda: swap(tmp_path, "..second")) == ["10.0.0.1:80", "10.0.0.2:80"]


async def test_half_of_a_file(path: Path) -> None:
    """It is refused, once, and the whole is heard of without a pause."""
    async with watched(path, "api") as (api,):
        assert await api.next() == ["10.0.0.1:80"]
        told = await api.refused(lambda: in_place(path, TWO[:-12]))
        assert told.startswith(f"E003 {path}:1:37: not valid YAML: ")
        assert await api.after(lambda: in_place(path, TWO)) == ["10.0.0.1:80", "10.0.0.2:80"]


async def test_what_is_refused_is_not_refused_again_and_again(path: Path) -> None:
    in_place(path, "services: 1")
    async with watched(path, "api") as (api,):
        assert "services: expected a mapping, found 1" in await api.refused()
        with pytest.raises(TimeoutError):
            await api.next(1)


async def test_one_error_after_another(path: Path) -> None:
    async with watched(path, "api") as (api,):
        await api.next()
        assert "the file is empty" in await api.refused(lambda: in_place(path, ""))
        assert "found 1" in await api.refused(lambda: in_place(path, "services: 1"))
        assert "no such file or directory" in await api.refused(path.unlink)
        # What was known, and held meanwhile, is told again to whoever has begun anew.
        assert await api.after(lambda: in_place(path, ONE)) == ["10.0.0.1:80"]


async def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    """Nor its folder, which nobody tells of: it is looked for."""
    path = tmp_path / "mounted" / "services.yaml"

    def mount() -> None:
        path.parent.mkdir()
        in_place(path, ONE)

    async with watched(path, "api") as (api,):
        assert f"{path}: cannot read it: no such file or directory" in await api.refused()
        assert await api.after(mount) == ["10.0.0.1:80"]


async def test_services_hear_of_their_own_changes_alone(path: Path) -> None:
    async with watched(path, "api", "pay") as (api, pay):
        assert await api.next() == ["10.0.0.1:80"]
        # Not listed: known to have no instances.
        assert await pay.next() == []
        waiting = asyncio.create_task(api.next())
        both = f"{ONE[:-2]}, pay: ['10.0.1.1:80']}}\n"
        assert await pay.after(lambda: in_place(path, both)) == ["10.0.1.1:80"]
        await asyncio.sleep(1)
        assert not waiting.done()
        # A mistake in one concerns all.
        told = await pay.refused(lambda: in_place(path, f"{ONE[:-2]}, pay: [1]}}\n"))
        assert "services.pay[0]" in told
        with pytest.raises(ProviderError) as also:
            await waiting
        assert str(also.value) == told


async def test_all_that_an_instance_says(tmp_path: Path) -> None:
    listed = [
        "10.0.0.1:80",
        {
            "address": "[2001:db8::2]:80",
            "id": "a",
            "weight": 2,
            "status": "warning",
            "reason": "disk",
            "zone": "eu-1a",
            "protocols": ["h2"],
            "metadata": {"alpn.supported": "http/1.1", "rack": "7"},
        },
        {"address": "api-3.test:80", "status": "unavailable", "metadata": {"alpn_supported": "h2,http/1.1"}},
    ]
    path = tmp_path / "services.json"
    path.write_text(json.dumps({"services": {"api": listed}}))
    provider = File(FileProvider(path=path))
    async with aclosing(provider.watch(Discover(provider="file", service="api"))) as snapshots:
        found = await anext(snapshots)
    await provider.close()
    assert found == Snapshot.of(
        [
            Instance("10.0.0.1:80", "10.0.0.1:80"),
            Instance(
                "a",
                "[2001:db8::2]:80",
                weight=2,
                protocols=("h2",),
                health=Health.DEGRADED,
                reason="disk",
                zone="eu-1a",
                metadata={"alpn.supported": "http/1.1", "rack": "7"},
            ),
            Instance(
                "api-3.test:80",
                "api-3.test:80",
                protocols=("h2", "http/1.1"),
                health=Health.UNAVAILABLE,
                metadata={"alpn_supported": "h2,http/1.1"},
            ),
        ]
    )


ENTRY = "services:\n  api:\n  - 10.0.0.1:80\n  - {address: '10.0.0.2:80', "
ERRORS = [
    (
        ENTRY + "status: warnin}",
        "4:38: services.api[1].status: 'warnin' is not one of the choices (did you mean 'warning'?",
    ),
    (ENTRY + "status: up}", "(allowed: healthy, degraded, unavailable, passing, warning, critical)"),
    (ENTRY + "wieght: 2}", "4:30: services.api[1].wieght: unknown field 'wieght' (did you mean 'weight'?; allowed: a"),
    (ENTRY + "weight: 2000}", "4:38: services.api[1].weight: 2000 is out of range (allowed: 0 to 1000)"),
    (ENTRY + "metadata: {rack: 7}}", "services.api[1].metadata.rack: expected text, found 7 (put it in quotes)"),
    (ENTRY + "metadata: {token: 12345}}", "services.api[1].metadata.token: expected text, found a secret"),
    (ENTRY + "id: '10.0.0.1:80'}", "services.api: '10.0.0.1:80' is listed twice (remove one, or give each an 'id')"),
    ("services:\n  api: [10.0.0.1]", "2:9: services.api[0]: '10.0.0.1' is not an endpoint's address"),
    ("services:\n  api:\n", "2:3: services.api: expected a value, found nothing"),
    ("service: {}", "1:1: service: unknown field 'service' (did you mean 'services'?; allowed: services)"),
    ("- 10.0.0.1:80", "1:1: the file must hold a mapping (start with 'services:')"),
]


@pytest.mark.parametrize(("text", "why"), ERRORS)
def test_an_error_says_where_and_what(path: Path, text: str, why: str) -> None:
    path.write_text(text)
    with pytest.raises(ProviderError) as told:
        read(path)
    print(told.value)
    assert f" {path}:" in str(told.value)
    assert why in str(told.value)
    assert "12345" not in str(told.value)
    assert "more" not in str(told.value)


def test_all_errors_are_counted(path: Path) -> None:
    path.write_text(ENTRY + "weight: -1, status: 7, zone: 7}")
    with pytest.raises(ProviderError, match=r"services\.api\[1\]\.weight: -1 is out of range .*, and 2 more$"):
        read(path)
