"""An etcd that goes, freezes, changes who may do what, or is none at all: always noticed, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from mitu.config.discovery import EtcdProvider
from mitu.discovery.etcd import Etcd as Provider
from mitu.discovery.etcd_gateway import encoded
from mitu.discovery.provider import ProviderError
from support.certificates import Authority
from support.etcd import Etcd, key, provider, watched
from support.net import eventually, free_port

PASSWORD = "correct horse"  # noqa: S105
AUTHENTICATED = (
    'grpc_server_handled_total{grpc_code="OK",grpc_method="Authenticate",grpc_service="etcdserverpb.Auth"'
    ',grpc_type="unary"}'
)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Etcd]]:
    """Three that are one cluster."""
    names = ("one", "two", "three")
    peers = {name: free_port() for name in names}
    with contextlib.ExitStack() as stack:
        members = [Etcd(tmp_path / name, name=name, peers=peers) for name in names]
        for member in members:
            stack.push(member)
        yield [member.ready() for member in members]


async def test_a_server_that_is_killed_and_comes_back_with_its_data(tmp_path: Path) -> None:
    with Etcd(tmp_path) as server:
        server.put(key("svc", "a"), "10.0.0.1:80")
        server.put(key("svc", "b"), "10.0.0.2:80")
        asked = provider(server)
        async with watched(asked, "svc") as watch:
            assert (await watch.next()).keys() == {"a", "b"}
            following = asyncio.ensure_future(watch.next())
            await server.watchers(1)
            server.kill()
            with pytest.raises(ProviderError, match=server.address):
                await following
        async with watched(asked, "svc") as watch:
            with pytest.raises(ProviderError, match=server.address):
                await watch.next()
        server.restart()
        # What has happened meanwhile is history that nobody can read any more.
        server.delete(key("svc", "a"))
        server.put(key("svc", "c"), "10.0.0.3:80")
        server.compact()
        async with watched(asked, "svc") as watch:
            assert (await watch.next()).keys() == {"b", "c"}
            server.delete(key("svc", "b"))
            assert (await watch.next()).keys() == {"c"}


async def test_a_server_that_freezes_is_noticed(tmp_path: Path) -> None:
    with Etcd(tmp_path) as server:
        server.put(key("svc", "a"), "10.0.0.1:80")
        asked = provider(server, silence=1, timeout=1)
        async with watched(asked, "svc") as watch:
            assert (await watch.next()).keys() == {"a"}
            following = asyncio.ensure_future(watch.next())
            await server.watchers(1)
            server.program.signal(signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(ProviderError, match="no answer within 1 s"):
                await following
            assert time.monotonic() - begun < 15
        server.program.signal(signal.SIGCONT)
        server.ready()
        async with watched(asked, "svc") as watch:
            assert (await watch.next()).keys() == {"a"}


async def test_another_member_goes_on_where_one_ends_or_freezes(members: list[Etcd]) -> None:
    one, two, three = members
    one.put(key("svc", "a"), "10.0.0.1:80")
    asked = provider(one, two, three, silence=2, timeout=2)
    async with watched(asked, "svc") as watch:
        assert (await watch.next()).keys() == {"a"}
        two.put(key("svc", "b"), "10.0.0.2:80")
        assert (await watch.next()).keys() == {"a", "b"}
        one.kill()
        two.ready().put(key("svc", "c"), "10.0.0.3:80")
        assert (await watch.next()).keys() == {"a", "b", "c"}
        one.restart()
        following = asyncio.ensure_future(watch.next(within=60))
        await two.watchers(1)
        two.program.signal(signal.SIGSTOP)
        three.ready().delete(key("svc", "a"))
        assert (await following).keys() == {"b", "c"}


async def test_a_member_without_the_others_is_not_believed(members: list[Etcd]) -> None:
    one, two, three = members
    one.put(key("svc", "a"), "10.0.0.1:80")
    async with watched(provider(one), "svc") as watch:
        assert (await watch.next()).keys() == {"a"}
        following = asyncio.ensure_future(watch.next(within=60))
        await one.watchers(1)
        two.kill()
        three.kill()
        with pytest.raises(ProviderError):
            await following


async def test_users_and_their_passwords(tmp_path: Path) -> None:
    with Etcd(tmp_path) as server:
        server.put(key("svc", "a"), "10.0.0.1:80")
        server.add_reader("gateway", PASSWORD, "/mitu/")
        server.add_reader("stranger", PASSWORD, "/other/")
        secret = tmp_path / "password"
        secret.write_text(f"{PASSWORD}\n")
        asked = provider(server, silence=0.2, username="gateway", password={"file": str(secret)})
        async with watched(asked, "svc") as watch:
            # Before anybody is asked for a password.
            assert (await watch.next()).keys() == {"a"}
            following = asyncio.ensure_future(watch.next())
            server.enable_auth("root's own")
            server.put(key("svc", "b"), "10.0.0.2:80")
            assert (await following).keys() == {"a", "b"}
            following = asyncio.ensure_future(watch.next())
            # All tokens that were given out are worthless after this.
            server.renew_auth("root's own")
            before = server.metric(AUTHENTICATED)
            await asyncio.to_thread(eventually, lambda: server.metric(AUTHENTICATED) > before, 30)
            server.put(key("svc", "c"), "10.0.0.3:80")
            assert (await following).keys() == {"a", "b", "c"}
        binary = tmp_path / "binary"
        binary.write_bytes(b"hunter2\xff")
        for settings, reason in (
            ({}, "user name is empty"),
            ({"username": "gateway", "password": "hunter2"}, "authentication failed"),
            ({"username": "gateway", "password": {"file": str(binary)}}, "not UTF-8"),
            ({"username": "stranger", "password": PASSWORD}, "permission denied"),
            ({"username": "gateway", "password": {"file": str(tmp_path / "none")}}, "cannot read the password"),
        ):
            async with watched(provider(server, **settings), "svc") as watch:
                with pytest.raises(ProviderError, match=reason) as failure:
                    await watch.next()
            assert "hunter2" not in str(failure.value)
            assert PASSWORD not in str(failure.value)


async def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("etcd", ("127.0.0.1",))
    other = Authority(tmp_path / "other")
    with Etcd(tmp_path / "etcd", tls=(pair, authority)) as server:
        server.put(key("svc", "a"), "10.0.0.1:80")
        asked = provider(server, tls={"ca": str(authority.certificate)})
        async with watched(asked, "svc") as watch:
            assert (await watch.next()).keys() == {"a"}
            server.put(key("svc", "b"), "10.0.0.2:80")
            assert (await watch.next()).keys() == {"a", "b"}
        for tls, reason in (
            (None, "its certificate is refused"),
            ({"ca": str(other.certificate)}, "its certificate is refused"),
            ({"ca": str(authority.certificate), "server_name": "etcd.test"}, "its certificate is refused"),
            ({"ca": str(tmp_path / "none")}, "cannot load its TLS files"),
        ):
            async with watched(provider(server, tls=tls), "svc") as watch:
                with pytest.raises(ProviderError, match=reason):
                    await watch.next()


@asynccontextmanager
async def answering(answer: Answer, *, patience: float = 1, **settings: object) -> AsyncGenerator[Provider]:
    """A provider whose etcd says what no etcd says."""
    application = web.Application()
    application.router.add_post("/v3/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        configured = EtcdProvider.model_validate({"addresses": [f"http://{host}:{port}"], **settings})
        yield Provider(configured, silence=patience, timeout=patience)
    finally:
        await runner.cleanup()


RANGE = b'{"header": {"revision": "5"}}'
CREATED = b'{"result": {"created": true}}\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"[" * 100_000,
        b'{"header": 5}',
        b'{"header": {"revision": "many"}}',
        b'{"kvs": {}}',
        b'{"kvs": [5]}',
        b'{"kvs": [{"key": "!"}]}',
        b'{"kvs": [{"key": 5}]}',
        b'{"more": true}',
        b'{"more": true, "kvs": [{"key": "L2E="}]}',
    ],
    ids=lambda body: body[:40].decode(),
)
async def test_ranges_that_no_etcd_gives(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with answering(answer) as asked, watched(asked, "svc") as watch:
        with pytest.raises(ProviderError):
            await watch.next()
            await watch.next()


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"never a whole line",
        b"\n\n\n",
        b"<html>\n",
        b"{}\n",
        CREATED,
        CREATED + b"<html>\n",
        CREATED + b'{"result": 5}\n',
        CREATED + b'{"result": {"events": 5}}\n',
        CREATED + b'{"result": {"events": [5]}}\n',
        CREATED + b'{"result": {"events": [{"kv": {"key": "!"}}]}}\n',
        CREATED + b'{"result": {"canceled": true, "cancel_reason": "because"}}\n',
        CREATED + b'{"result": {"canceled": true, "cancel_reason": "etcdserver: invalid auth token"}}\n',
        CREATED + b'{"result": {"compact_revision": "7"}}\n',
        CREATED + b'{"result": {"compact_revision": "many"}}\n',
        CREATED + b'{"error": {"code": 14, "message": "etcdserver: no leader"}}\n',
        CREATED + b'{"error": 5}\n',
    ],
    ids=lambda lines: lines[-60:].decode(),
)
async def test_watches_that_no_etcd_gives(lines: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=lines if request.path.endswith("watch") else RANGE)

    async with answering(answer) as asked, watched(asked, "svc") as watch:
        assert await watch.next() == {}
        with pytest.raises(ProviderError):
            await watch.next(within=20)


@pytest.mark.parametrize("at", ["range", "watch", "confirmed"])
async def test_answers_without_end(at: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if at != "range" and request.path.endswith("range"):
            return web.Response(body=RANGE)
        endless = web.StreamResponse()
        await endless.prepare(request)
        await endless.write(CREATED if at == "confirmed" else b"{")
        with contextlib.suppress(ConnectionError):
            while True:
                await endless.write(b" " * (1 << 20))
        return endless

    async with answering(answer, patience=30) as asked, watched(asked, "svc") as watch:
        with pytest.raises(ProviderError, match="of more than 16 MiB"):
            await watch.next()
            await watch.next()


async def test_events_that_come_with_the_confirmation() -> None:
    pair = {"key": encoded(key("svc", "a").encode()), "value": encoded(b"10.0.0.1:80")}
    event = json.dumps({"result": {"events": [{"kv": pair}]}}).encode()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=CREATED + event + b"\n" if request.path.endswith("watch") else RANGE)

    async with answering(answer) as asked, watched(asked, "svc") as watch:
        assert await watch.next() == {}
        assert (await watch.next()).keys() == {"a"}


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (500, b"<html>", "status 500"),
        (302, b"", "status 302"),
        (503, b'{"code": 14, "message": "no \\n\\u001b[31m leader"}', "no \\?\\?\\[31m leader"),
        (400, b'{"error": ' + json.dumps("x" * 5_000).encode() + b"}", "x{200}$"),
    ],
)
async def test_refusals_are_told_short_and_on_one_line(status: int, body: bytes, shown: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/v3/elsewhere"})

    async with answering(answer) as asked, watched(asked, "svc") as watch:
        with pytest.raises(ProviderError, match=shown):
            await watch.next()


async def test_a_token_that_cannot_be_sent() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"token": "a\r\nX-Forwarded-For: b"})

    async with (
        answering(answer, username="gateway", password=PASSWORD) as asked,
        watched(asked, "svc") as watch,
    ):
        with pytest.raises(ProviderError, match="a token that cannot be sent"):
            await watch.next()
