"""Answers that no API server gives: malformed, endless, too large, or forgotten in ways that one cannot be made to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mitu.config.discovery import Discover, KubernetesProvider
from mitu.discovery import kubernetes, kubernetes_api
from mitu.discovery.instance import Snapshot
from mitu.discovery.kubernetes import Kubernetes
from mitu.discovery.provider import ProviderError
from support.kubernetes import endpoint, endpoint_slice, port

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SOON = 30


class Server:
    """Answers lists and watches with what stands in `lists` and `watches`, in turn; the last again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lists: list[Answer] = [listed(1, "10.0.0.1")]
        self.watches: list[Answer] = [silent]
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        answers = self.watches if "watch" in request.query else self.lists
        return await (answers.pop(0) if len(answers) > 1 else answers[0])(request)

    def versions(self) -> list[str]:
        """That watches began at."""
        return [asked["resourceVersion"] for asked in self.asked if "watch" in asked]

    async def snapshots(self, count: int) -> list[Snapshot]:
        provider = Kubernetes(KubernetesProvider(kubeconfig=self.folder / "config"))
        discover = Discover(provider="kubernetes", service="shop/api")
        found: list[Snapshot] = []
        async with asyncio.timeout(SOON), aclosing(provider.watch(discover)) as snapshots:
            async for one in snapshots:
                found.append(one)
                if len(found) == count:
                    break
        return found

    async def refuses(self) -> str:
        with pytest.raises(ProviderError) as caught:
            await self.snapshots(100)
        return str(caught.value)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path)
    app = web.Application()
    app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    config = {
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": url}}],
        "contexts": [{"name": "x", "context": {"cluster": "x"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    yield made
    await runner.cleanup()


def stored(version: int, address: str) -> dict[str, Any]:
    one = endpoint_slice("a", [endpoint(address)], [port(80)])
    return {**one, "metadata": {**one["metadata"], "resourceVersion": str(version)}}


def listed(version: int, address: str, **more: object) -> Answer:
    meta = {"resourceVersion": str(version), **more}
    return answered(200, json.dumps({"metadata": meta, "items": [stored(version, address)]}))


def answered(status: int, body: str = "") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body)

    return answer


def event(kind: str, thing: object) -> str:
    return json.dumps({"type": kind, "object": thing}) + "\n"


def gone() -> str:
    return event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})


async def silent(request: web.Request) -> web.StreamResponse:
    """A watch in which nothing happens."""
    response = web.StreamResponse()
    await response.prepare(request)
    await asyncio.sleep(SOON)
    return response


def addresses(snapshots: list[Snapshot]) -> list[list[str]]:
    return [[one.address for one in snapshot.instances] for snapshot in snapshots]


@pytest.mark.parametrize("forgotten", [answered(410, "{}"), answered(200, gone())], ids=["status", "event"])
async def test_what_is_forgotten_is_listed_anew(server: Server, forgotten: Answer) -> None:
    server.lists = [listed(1, "10.0.0.1"), listed(7, "10.0.0.2")]
    server.watches = [forgotten, silent]
    assert addresses(await server.snapshots(2)) == [["10.0.0.1:80"], ["10.0.0.2:80"]]


async def test_a_page_that_is_forgotten_is_listed_anew(server: Server) -> None:
    server.lists = [listed(1, "10.0.0.1", **{"continue": "token"}), answered(410, "{}"), listed(7, "10.0.0.2")]
    assert addresses(await server.snapshots(1)) == [["10.0.0.2:80"]]
    assert [asked.get("continue") for asked in server.asked] == [None, "token", None]


async def test_a_watch_that_ends_goes_on_where_it_was(server: Server) -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "9"}, "endpoints": None, "ports": None})
    server.watches = [
        answered(200, event("MODIFIED", stored(5, "10.0.0.5"))),
        answered(200, bookmark),
        # Half of an event has not been told.
        answered(200, event("MODIFIED", stored(11, "10.0.0.11"))[:-20]),
        answered(200, event("MODIFIED", stored(12, "10.0.0.12"))),
        silent,
    ]
    assert addresses(await server.snapshots(3)) == [["10.0.0.1:80"], ["10.0.0.5:80"], ["10.0.0.12:80"]]
    assert server.versions() == ["1", "5", "9", "9"]
    watch = next(asked for asked in server.asked if "watch" in asked)
    assert watch["labelSelector"] == "kubernetes.io/service-name=api"
    assert watch["allowWatchBookmarks"] == "true"
    assert 20 <= int(watch["timeoutSeconds"]) <= 25


async def test_a_watch_that_always_ends_at_once_is_not_asked_for_at_once(server: Server) -> None:
    server.watches = [answered(200)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await server.snapshots(2)
    assert 2 <= len(server.versions()) < 20


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answered(200, "<html>"), "list is malformed: invalid json"),
        (answered(200, "[" * 100_000), "list is malformed: invalid json"),
        (answered(200, "{}"), "list is malformed: metadata: field required"),
        (answered(200, '{"metadata": {"resourceVersion": "1"}, "items": [{}]}'), "items.0.metadata: field required"),
        (answered(500, '{"message": "etcdserver:\\nleader changed"}'), "answers 500: etcdserver: leader changed"),
        (answered(502, "<html>"), "answers 502: no reason given"),
        (answered(502, "x" * (1 << 20)), "answers 502: no reason given"),
        (answered(302), "answers 302"),
        (answered(401), "does not accept the credentials"),
        (answered(404), "as Kubernetes has them from 1.21 on"),
        (answered(410), "they are forgotten faster than they are read"),
        (listed(1, "10.0.0.1", **{"continue": "again"}), "there are more than"),
        (answered(200, " " * (1 << 20)), "more than 512 KiB"),
    ],
)
async def test_lists_that_are_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(kubernetes, "LARGEST_PAGE", 512 << 10)
    server.lists = [answer]
    assert words in await server.refuses()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answered(200, "junk\n"), "event is malformed: invalid json"),
        (answered(200, "[" * 100_000 + "\n"), "event is malformed: invalid json"),
        (answered(200, "\n"), "event is malformed"),
        (answered(200, event("ADDED", {})), "event is malformed: metadata: field required"),
        (
            answered(200, event("ADDED", {"metadata": {"resourceVersion": 7}})),
            "metadata.resourceVersion: input should",
        ),
        (answered(200, event("ERROR", {"code": 500, "message": "watch\nbroke"})), "shop/api: 500: watch broke"),
        (answered(200, event("ERROR", {"code": "x"})), "error is malformed: code"),
        (answered(200, "x" * (2 << 20)), "an event of more than 1 MiB"),
        (answered(429, '{"message": "too many"}'), "answers 429: too many"),
    ],
)
async def test_watches_that_are_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(kubernetes_api, "LONGEST_LINE", 1 << 20)
    server.watches = [answer]
    assert words in await server.refuses()


async def test_a_watch_that_is_kept_waiting_is_not_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts from when it has begun, or an API server under load would be asked for lists as well."""
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 1.5)
    monkeypatch.setattr(kubernetes, "GRACE", 1.8)

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2.4)
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(1.5)
        await response.write(event("MODIFIED", stored(5, "10.0.0.5")).encode())
        return response

    server.watches = [slow]
    assert addresses(await server.snapshots(2)) == [["10.0.0.1:80"], ["10.0.0.5:80"]]


async def test_a_server_that_says_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(kubernetes, "GRACE", 0.5)
    assert "did not answer in time" in await server.refuses()
    server.lists = [silent]
    monkeypatch.setattr(kubernetes, "LIST_SECONDS", 0.5)
    assert "cannot list the EndpointSlices of shop/api" in await server.refuses()


@pytest.mark.parametrize("service", ["a/b/c", "/api", "shop/", "Shop/api", "shop/api?x", "shop/..", "a,b", "x" * 64])
async def test_services_that_are_none(server: Server, service: str) -> None:
    provider = Kubernetes(KubernetesProvider(kubeconfig=server.folder / "config"))
    with pytest.raises(ProviderError, match="is no service of Kubernetes; write namespace/name"):
        await anext(provider.watch(Discover(provider="kubernetes", service=service)))
    assert server.asked == []
