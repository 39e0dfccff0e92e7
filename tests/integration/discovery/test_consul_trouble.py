"""A Consul that refuses, hides, hangs or dies; and answers that no Consul should give."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from mitu.discovery.consul_query import LARGEST_ANSWER
from mitu.discovery.instance import Health, Instance
from mitu.discovery.provider import ProviderError
from support.certificates import Authority
from support.consul import Consul

from .consul_watch import provider, refused, watched

READ = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Consul]:
    """A Consul with tokens, and HTTPS."""
    pair = authority.issue("consul", ("consul.test",))
    with Consul(tmp_path_factory.mktemp("guarded"), acl=True, tls=pair) as server:
        server.register("web", "web-1", 8080)
        yield server


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[Consul]:
    """One for a test that does it harm."""
    with Consul(tmp_path) as server:
        yield server


async def test_a_token_that_may_read_finds_it(guarded: Consul, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{guarded.token(READ)}\n")
    for token in (guarded.management, {"file": str(file)}):
        async with watched(provider(guarded.url, token=token), "web") as watch:
            assert await watch.next() == {"web-1": Instance("web-1", "127.0.0.1:8080")}
        async with watched(provider(guarded.url, token=token), "nobody") as watch:
            assert await watch.next() == {}


@pytest.mark.parametrize("rules", [None, 'service "web" { policy = "read" }', 'node_prefix "" { policy = "read" }'])
async def test_what_is_hidden_is_not_gone(guarded: Consul, rules: str | None) -> None:
    token = guarded.token(rules) if rules else None
    assert guarded.url in (told := await refused(provider(guarded.url, token=token)))
    assert "service:read and node:read" in told


async def test_what_is_hidden_in_part_is_told(guarded: Consul, caplog: pytest.LogCaptureFixture) -> None:
    for node in ("seen", "unseen"):
        placed = {"Service": "parted", "ID": node, "Port": 80}
        guarded.put("/v1/catalog/register", {"Node": node, "Address": "10.0.0.1", "Service": placed})
    token = guarded.token('service "parted" { policy = "read" } node "seen" { policy = "read" }')
    with caplog.at_level(logging.WARNING, "mitu"):
        async with watched(provider(guarded.url, token=token), "parted") as watch:
            assert set(await watch.next()) == {"seen"}
    assert "consul: service 'parted': its ACLs hide some instances from the token" in caplog.messages


async def test_an_unknown_token_is_refused(guarded: Consul) -> None:
    told = await refused(provider(guarded.url, token="6e0b8b3a-aaaa-bbbb-cccc-123456789abc"))  # noqa: S106 - of nobody
    assert "status 403: ACL not found; give it a 'token' that has service:read and node:read" in told
    assert "6e0b8b3a" not in told


async def test_a_token_that_may_read_no_more_does_not_empty_the_service(guarded: Consul) -> None:
    policy = guarded.put("/v1/acl/policy", {"Name": "fading", "Rules": READ})
    token = guarded.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
    async with watched(provider(guarded.url, token=token, wait="2s"), "web") as watch:
        assert set(await watch.next()) == {"web-1"}
        guarded.put(
            f"/v1/acl/policy/{policy['ID']}", {"Name": "fading", "Rules": 'node_prefix "" { policy = "read" }'}
        )
        with pytest.raises(ProviderError, match="its ACLs hide the service"):
            await watch.next()


@pytest.mark.parametrize("content", [b"", b"with\x00nought", b"two\nlines", b"\xff\xfe"])
async def test_a_token_that_cannot_be_sent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    if content:
        file.write_bytes(content)
    told = await refused(provider("http://127.0.0.1:9", token={"file": str(file)}))
    assert "token" in told
    assert "lines" not in told


async def test_https_with_an_authority_of_its_own(guarded: Consul, authority: Authority, tmp_path: Path) -> None:
    address, token = guarded.https_url, guarded.management
    named = {"ca": str(authority.certificate), "server_name": "consul.test"}
    async with watched(provider(address, token=token, tls=named), "web") as watch:
        assert set(await watch.next()) == {"web-1"}
    other = str(Authority(tmp_path).certificate)
    for wrong in ({**named, "ca": other}, {**named, "server_name": "other.test"}, True):
        assert "its certificate is refused: " in await refused(provider(address, token=token, tls=wrong))
    (tmp_path / "broken.pem").write_text("nothing")
    assert "cannot load its TLS files" in await refused(provider(address, tls={"ca": str(tmp_path / "broken.pem")}))


async def test_another_datacenter(brief: Consul) -> None:
    brief.register("web", "web-1", 8080)
    async with watched(provider(brief.url, datacenter="dc1"), "web") as watch:
        assert set(await watch.next()) == {"web-1"}
    assert "status 500: No path to datacenter" in await refused(provider(brief.url, datacenter="nowhere"))
    assert "Namespaces are a Consul Enterprise feature" in await refused(provider(brief.url, namespace="team"))


async def test_a_consul_that_hangs(brief: Consul) -> None:
    async with watched(provider(brief.url, wait="1s", margin=1), "web") as watch:
        assert await watch.next() == {}
        brief.program.signal(signal.SIGSTOP)
        try:
            with pytest.raises(ProviderError, match=r"no answer within 2\.0625 s"):
                await watch.next()
            assert "no answer within 1 s" in await refused(provider(brief.url, margin=1))
        finally:
            brief.program.signal(signal.SIGCONT)


async def test_a_consul_that_is_killed_and_begins_anew(tmp_path: Path) -> None:
    with Consul(tmp_path, keep=True) as server:
        asked = provider(server.url)
        server.register("web", "web-1", 8080, weights={"Passing": 7, "Warning": 2})
        async with watched(asked, "web") as watch:
            good = await watch.next()
            assert good["web-1"].weight == 7
            server.warning("web-1", "worn")
            assert (await watch.next())["web-1"].weight == 2
            server.kill()
            with pytest.raises(ProviderError):
                await watch.next()
        assert "connection refused" in await refused(asked)
        await asyncio.to_thread(server.restart)
        async with watched(asked, "web") as watch:
            again = await watch.next()
            assert again["web-1"].weight in (2, 7)
            server.critical("web-1", "torn")
            torn = await watch.until(lambda now: now["web-1"].health is Health.UNAVAILABLE)
            assert torn["web-1"].reason.endswith("torn")


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """The address of a server that is no Consul."""
    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def entry(**service: object) -> dict[str, object]:
    return {"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": {"ID": "a", "Port": 80, **service}}


BAD = {
    "nothing": (b"", "not JSON"),
    "half": (b'[{"Node": {', "not JSON"),
    "not UTF-8": (b'["\xff"]', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "half a character": (b'[{"Service": {"ID": "\\ud800"}, "Node": {}}]', "not JSON"),
    "packed": (b"\x1f\x8b\x08\x00", "not JSON"),
    "an object": (b"{}", "not a list"),
    "a list of numbers": (b"[1]", "no place for 'Node'"),
    "a service that is text": (b'[{"Service": "a"}]', "bad 'Service'"),
    "an identifier that is a number": (b'[{"Service": {"ID": 1, "Port": 80}}]', "bad 'ID'"),
    "a port that is text": (b'[{"Service": {"ID": "a", "Port": "80"}}]', "bad 'Port'"),
    "metadata that is none": (b'[{"Service": {"ID": "a", "Meta": {"alpn_supported": 2}}}]', "bad 'Meta'"),
    "a check that is text": (b'[{"Service": {"ID": "a"}, "Checks": ["a"]}]', "no place for 'Status'"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_an_answer_that_cannot_be_read(bad: str) -> None:
    body, reason = BAD[bad]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"X-Consul-Index": "1"})

    async with answering(answer) as address:
        told = await refused(provider(address))
    assert reason in told
    assert told.startswith(address)


async def test_an_answer_without_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Consul-Index": "1"})
        await response.prepare(request)
        sent = 0
        while sent < 2 * LARGEST_ANSWER:
            await response.write(b" " * (1 << 20))
            sent += 1 << 20
        return response

    async with answering(answer) as address:
        assert "more than 64 MiB" in await refused(provider(address))


@pytest.mark.parametrize("index", ["", "-1", "x", "1" * 5000, "٣"])
async def test_an_answer_without_an_index(index: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response([], headers={"X-Consul-Index": index})

    async with answering(answer) as address:
        assert "Consul agent's HTTP API" in await refused(provider(address))


@pytest.mark.parametrize("status", [301, 404, 429, 500])
async def test_a_refusal_repeats_no_token_and_leads_nowhere(status: int) -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        said = f"\n\x1b[31mnot for {request.headers['X-Consul-Token']}{'!' * 5000}\nmore"
        return web.Response(status=status, text=said, headers={"Location": "/v1/health/service/other"})

    async with answering(answer) as address:
        told = await refused(provider(address, token="secret-of-mine"), "a/b c")  # noqa: S106
    assert f"status {status}:  [31mnot for (token)!!!" in told
    assert "secret" not in told
    assert len(told) < 400
    assert seen == ["/v1/health/service/a/b c"]


async def test_an_index_that_goes_back_begins_anew() -> None:
    told = [(7, 1), (5, 2), (5, 2), (0, 3), (0, 4), (9, 5), (9, 6)]
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.query.get("index"))
        if len(asked) > len(told):
            await asyncio.Event().wait()
        index, port = told[len(asked) - 1]
        return web.json_response([entry(Port=port)], headers={"X-Consul-Index": str(index)})

    async with answering(answer) as address, watched(provider(address), "web") as watch:
        await watch.until(lambda now: now["a"].address == "10.0.0.1:6")
    # 5 after 7 and 0 after 5 are backwards; a first 0 is as good as 1, and not asked for.
    assert asked[:7] == [None, "7", None, "5", None, "1", "9"]


async def test_answers_that_come_at_once_are_not_asked_for_at_once() -> None:
    times: list[float] = []
    enough = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 7:
            enough.set()
        return web.json_response([entry()], headers={"X-Consul-Index": "5"})

    async with answering(answer) as address, watched(provider(address), "web") as watch:
        assert set(await watch.next()) == {"a"}
        async with asyncio.timeout(60):
            await enough.wait()
    # 50 ms, 100, 200, and 400 from then on.
    assert times[6] - times[0] > 1.5
