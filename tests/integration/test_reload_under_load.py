"""Fifty reloads under load of h1, h2, h3, WebSocket and MQTT: nothing fails, and each is whole or not at all."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from cryptography.hazmat.primitives.serialization import Encoding

from support.certificates import Authority, Pair
from support.client import Address, Http1, connect, context
from support.gateway import Gateway, Settings, configuration, listener, upstream
from support.h3 import connected
from support.load import Count, H2load, Wrk
from support.mqtt import Session, SessionError
from support.servers import Loop, Server, mirror
from support.steady_h3 import SteadyH3
from support.websocket import WebSocketEcho

from .conftest import EDGE_NAMES, Start

pytestmark = [pytest.mark.needs("wrk"), pytest.mark.needs("h2load"), pytest.mark.needs("mosquitto")]

RELOADS = 50
SESSIONS = 200
PAUSE = 0.3


@dataclass
class Wanted:
    """What the next configuration is to be."""

    edge: Pair
    endpoints: list[str]
    chat: str
    broker: str
    generation: int = 0
    protocols: list[str] = field(default_factory=lambda: ["h2", "http/1.1"])
    second: bool = False

    def settings(self) -> Settings:
        text = f"generation {self.generation}"
        routes: list[Settings] = [
            {"match": {"path": "/health"}, "respond": {"body": '{"ok":true}'}},
            {"match": {"path": "/generation"}, "respond": {"body": text}},
            {"match": {"path": "/chat"}, "upstream": "chat"},
            {"match": {"path_prefix": "/"}, "upstream": "app"},
        ]
        protocols: list[Any] = ["h3", *self.protocols, {"alpn": "mqtt", "relay": "broker"}]
        listeners = [listener(self.edge, protocols=protocols, routes=routes)]
        if self.second:
            listeners.append(listener(self.edge, name="second", routes=routes[:2]))
        upstreams = [
            upstream("app", self.endpoints[self.generation % len(self.endpoints)]),
            upstream("chat", self.chat),
            upstream("broker", self.broker),
        ]
        return configuration(listeners, *upstreams, runtime={"workers": 2})


class Sessions:
    """MQTT sessions that talk to each other until they are told to stop."""

    def __init__(self, loop: Loop, gateway: Gateway, authority: Authority) -> None:
        self.messages = 0
        self._stop = asyncio.Event()
        self._tls = context(authority.certificate, ["mqtt"])
        self._loop = loop
        self._address = gateway.address()
        self.open: list[Session] = loop.run(self._open(), timeout=60)
        self._ended = loop.submit(self._talk())

    async def _open(self) -> list[Session]:
        # As many handshakes at once as a small machine does in good time.
        at_once = asyncio.Semaphore(20)

        async def begin(number: int) -> Session:
            async with at_once:
                session = await Session.open(self._address, self._tls, f"device-{number}")
                await session.subscribe(f"to/{number}")
                return session

        return await asyncio.gather(*(begin(number) for number in range(SESSIONS)))

    async def _talk(self) -> list[str]:
        found = await asyncio.gather(*(self._serve(number) for number in range(SESSIONS)), return_exceptions=True)
        lost = [str(one) for one in found if isinstance(one, SessionError)]
        lost += [repr(one) for one in found if isinstance(one, BaseException) and not isinstance(one, SessionError)]
        lost += [session.lost for session in self.open if session.lost is not None]
        await asyncio.gather(*(session.close() for session in self.open))
        return lost

    async def _serve(self, number: int) -> None:
        """Send to itself through the broker; each message must come back before the next."""
        session = self.open[number]
        for sequence in count():
            message = f"{number}/{sequence}".encode()
            await session.publish(f"to/{number}", message)
            _, received = await asyncio.wait_for(session.inbox.get(), 20)
            if received != message:
                raise SessionError(f"{session.name}: {received!r} came in place of {message!r}")
            self.messages += 1
            if self._stop.is_set():
                return
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - a spread, no secret

    def stop(self) -> list[str]:
        """What was lost."""
        self._loop.loop.call_soon_threadsafe(self._stop.set)
        return self._ended.result(60)


class Chat:
    """One WebSocket that echoes without a pause."""

    def __init__(self, loop: Loop, gateway: Gateway, authority: Authority) -> None:
        self.echoed = 0
        self._stopping = False
        self._task: Future[None] = loop.submit(self._talk(gateway.address(), context(authority.certificate)))

    async def _talk(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        async with (
            ClientSession() as session,
            session.ws_connect(f"https://localhost:{address[1]}/chat", ssl=tls) as chat,
        ):
            while not self._stopping:
                await chat.send_str(str(self.echoed))
                assert await chat.receive_str(timeout=20) == str(self.echoed)
                self.echoed += 1
                await asyncio.sleep(0.002)

    def stop(self) -> None:
        self._stopping = True
        self._task.result(60)


def test_fifty_reloads_under_mixed_load(
    gateway: Start,
    authority: Authority,
    loop: Loop,
    clients: Loop,
    mosquitto: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edge = authority.issue("under-load", EDGE_NAMES)
    with Server(loop, mirror) as one, Server(loop, mirror) as two, WebSocketEcho(loop) as chat:
        wanted = Wanted(edge, [one.endpoint, two.endpoint], chat.endpoint, f"127.0.0.1:{mosquitto}")
        running = gateway(wanted.settings(), flags=["--no-watch"])
        address = running.address()
        begun = time.monotonic()
        sessions = Sessions(clients, running, authority)
        talk = Chat(clients, running, authority)
        keep_alive = Wrk(address, "/health", connections=8)
        fresh = Wrk(address, "/health", connections=2, headers=("Connection: close",))
        quic = SteadyH3(clients, address, authority.certificate, ["/health", "/app"], each=3, same="/generation")
        with H2load(address, "/app", connections=4, rate=50) as multiplexed:
            done = reload_all(running, authority, wanted)
            h1, each, h2 = keep_alive.stop(), fresh.stop(), multiplexed.stop()
        quic.stop()
        talk.stop()
        lost = sessions.stop()
        reloads = running.status()["reloads"]
    seconds = time.monotonic() - begun
    counts = (h1, each, h2, quic.count)
    with capsys.disabled():
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(done.items()))
        print(
            f"\n{RELOADS} reloads in {seconds:.0f} s ({kinds}): wrk {h1.answered:,} h1 requests kept alive and"
            f" {each.answered:,} on connections of their own, h2load {h2.answered:,} h2 requests, aioquic"
            f" {quic.count.answered:,} h3 requests on {quic.connections} connections, WebSocket {talk.echoed:,}"
            f" echoes, {SESSIONS} MQTT sessions with {sessions.messages:,} messages;"
            f" {sum(len(one.failures) for one in counts)} failed requests, {len(lost)} dropped sessions"
        )
    for counted in counts:
        assert_good(counted)
    assert (quic.told, quic.silent) == (0, 0)
    assert lost == []
    assert sessions.messages >= SESSIONS
    assert talk.echoed > 0
    assert sum(done.values()) == RELOADS
    assert done["invalid"] == 10
    assert (reloads["succeeded"], reloads["failed"]) == (40, 10)


def assert_good(counted: Count) -> None:
    assert counted.failures == []
    assert counted.answered > 0


def reload_all(gateway: Gateway, authority: Authority, wanted: Wanted) -> Counter[str]:
    """Reload again and again, and look each time at what is live."""
    done: Counter[str] = Counter()
    kinds = ("certificate", "route", "ALPN order", "listener", "invalid")
    for number in range(RELOADS):
        kind = kinds[number % len(kinds)]
        if kind == "invalid":
            refused(gateway, wanted, number // len(kinds))
        else:
            change(kind, wanted, authority)
            gateway.apply(wanted.settings())
        look(gateway, authority, wanted)
        done[kind] += 1
        time.sleep(PAUSE)
    return done


def change(kind: str, wanted: Wanted, authority: Authority) -> None:
    wanted.generation += 1
    if kind == "certificate":
        wanted.edge = authority.issue("under-load", EDGE_NAMES, key="p384" if wanted.generation % 2 else "p256")
    elif kind == "ALPN order":
        wanted.protocols.reverse()
    elif kind == "listener":
        wanted.second = not wanted.second


def refused(gateway: Gateway, wanted: Wanted, number: int) -> None:
    """One of the ways in which a configuration is no good; it must leave no trace."""
    good = gateway.status()["config"]["digest"]
    spoilt = Wanted(wanted.edge, wanted.endpoints, wanted.chat, wanted.broker, -1, ["http/1.1"], not wanted.second)
    settings = spoilt.settings()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        match number % 5:
            case 0:
                settings["listeners"][0]["routes"][3]["upstream"] = "nowhere"
                reason = "'nowhere'"
            case 1:
                settings["listeners"][0]["tls"]["certificates"][0]["key"] = str(wanted.edge.certificate)
                reason = wanted.edge.certificate.name
            case 2:
                bind = f"127.0.0.1:{taken.getsockname()[1]}"
                settings["listeners"].append({**settings["listeners"][0], "name": "taken", "bind": bind})
                reason = f"cannot bind {bind}"
            case 3:
                settings["runtime"] = {"workers": 1}
                reason = "without a restart"
            case _:
                settings["listeners"][0]["routes"][0]["match"] = {"path_regex": "/a{2000}{2000}"}
                reason = "regex"
        gateway.write(settings)
        status, body = gateway.admin("/reload", "POST")
    assert status == 422, body
    assert reason in body.decode()
    assert gateway.status()["config"]["digest"] == good


def look(gateway: Gateway, authority: Authority, wanted: Wanted) -> None:
    """What a new connection meets is the configuration wanted, all of it."""
    ca, address = authority.certificate, gateway.address()
    with connect(address, context(ca, ["mqtt", "http/1.1", "h2"])) as stream:
        assert stream.selected_alpn_protocol() == wanted.protocols[0]
        certificate = stream.getpeercert(binary_form=True)
        assert certificate == ssl.PEM_cert_to_DER_cert(wanted.edge.certificate.read_text())
    asyncio.run(look_at_h3(address, ca, wanted))
    names = ["edge", "second"] if wanted.second else ["edge"]
    assert sorted(gateway.addresses()) == names
    for name in names:
        with Http1.open(gateway.address(name), ca) as client:
            assert client.request("/generation").body.decode() == f"generation {wanted.generation}"


async def look_at_h3(address: Address, ca: Path, wanted: Wanted) -> None:
    async with connected(address, ca) as client:
        found = client.quic.tls._peer_certificate.public_bytes(Encoding.PEM)
        assert found == wanted.edge.certificate.read_bytes()
        assert (await client.get("/generation")).body.decode() == f"generation {wanted.generation}"
