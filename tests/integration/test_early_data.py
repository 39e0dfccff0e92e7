"""Early data (0-RTT): off unless a route allows it, for requests without side effects only, and never served twice."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aioquic.tls import SessionTicket

from support import frames, hpack
from support.certificates import Authority, Pair
from support.client import Address, request
from support.gateway import Gateway, Settings, configuration, health, listener, on, to_app, upstream
from support.h2 import PREFACE, SETTINGS
from support.h3 import Http3, connected
from support.net import eventually
from support.openssl import Resuming
from support.servers import Loop, Reader, Server, Writer, http_body, http_head, http_response
from support.tls13 import Session, Tls13

from .conftest import Start

LARGE = 1 << 20
"""Fits into the kernel's buffers."""
QUIET = 0.2
"""Seconds in which what would happen has happened."""


@dataclass
class Upstream:
    """Answers with 425 what it does not want early, and notes what it has seen."""

    server: Server
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """Target, and what `Early-Data` said."""

    @classmethod
    def start(cls, loop: Loop) -> Upstream:
        async def serve(reader: Reader, writer: Writer) -> None:
            while (head := await http_head(reader)) is not None:
                line, headers = head
                body, _ = await http_body(reader, headers)
                method, target, _ = line.split(" ")
                early = next((value for name, value in headers if name.lower() == "early-data"), None)
                made.seen.append((f"{method} {target}", early))
                status = "425 Too Early" if early and "picky" in target else "200 OK"
                answer = json.dumps({"target": target, "headers": headers, "body": body.decode()}).encode()
                if "large" in target:
                    answer += bytes(LARGE)
                writer.write(http_response(status, b"" if method == "HEAD" else answer))
                await writer.drain()

        made = cls(Server(loop, serve))
        return made

    def of(self, path: str) -> list[str | None]:
        """What `Early-Data` said in each request for `path`."""
        return [early for target, early in self.seen if target.partition(" ")[2] == path]


@pytest.fixture(scope="module")
def backend(loop: Loop) -> Iterator[Upstream]:
    made = Upstream.start(loop)
    yield made
    made.server.stop()


@pytest.fixture(autouse=True)
def nothing_seen(backend: Upstream) -> None:
    backend.seen.clear()


def settings(edge: Pair, endpoint: str, workers: int = 1, **more: Any) -> Settings:
    routes = [
        health(),
        to_app(name="late", match={"path_prefix": "/late"}),
        to_app(name="early", early_data=True),
    ]
    edges = [
        listener(edge, protocols=["h3", "h2", "http/1.1"], routes=routes, **more),
        listener(edge, name="off", routes=[to_app()]),
    ]
    log = {"access": {"path": "access.log", "requests": True}}
    made = configuration(edges, upstream("app", endpoint), logging=log)
    return made | {"runtime": {"workers": workers}}


@pytest.fixture(scope="module")
def running(shared_gateway: Start, edge: Pair, backend: Upstream, provider: str) -> Gateway:
    made = settings(edge, backend.server.endpoint, workers=2, timeouts={"handshake": "4s"})
    return shared_gateway(on(provider, made))


def session(address: Address, alpn: str = "http/1.1") -> Session:
    """One to resume with, from a connection of its own."""
    asked = request("/health") if alpn == "http/1.1" else h2_request("/health")
    with Tls13(address, [alpn]) as client:
        client.send(asked)
        while not client.sessions:
            assert client.read()
        return client.sessions[0]


def resumed(address: Address, early: bytes, alpn: str = "http/1.1", **more: Any) -> Tls13:
    return Tls13(address, [alpn], session=session(address, alpn), early=early, **more)


class TestOnH1:
    def test_a_request_is_answered_before_the_handshake_ends(self, running: Gateway, backend: Upstream) -> None:
        served = {"listener": "edge", "outcome": "served"}
        before = running.metric("mitu_http_early_data_requests_total", **served)
        with resumed(running.address(), request("/at-once"), finish=False) as client:
            assert client.took_early
            assert client.http1.response().status == 200
            assert backend.of("/at-once") == ["1"]
            client.finish()
            client.send(request("/at-once?then"))
            assert client.http1.response().status == 200
            assert backend.of("/at-once?then") == [None]
        assert running.metric("mitu_http_early_data_requests_total", **served) == before + 1

        def lines() -> list[Settings]:
            return [line for line in running.logged() if line["event"] == "request" and "at-once" in line["path"]]

        eventually(lambda: len(lines()) == 2)
        assert [line.get("early_data") for line in lines()] == [True, None]

    def test_the_connection_goes_on_after_it(self, running: Gateway) -> None:
        with resumed(running.address(), request("/one") + request("/two")) as client:
            assert client.http1.response().status == 200
            assert client.http1.response().status == 200
            client.send(request("/three", method="POST", body=b"body"))
            assert b'"body": "body"' in client.http1.response().body
            assert client.sessions
            assert client.sessions[0].early_data == 16_384

    @pytest.mark.parametrize(
        "request_bytes",
        [
            request("/waits/post", method="POST"),
            request("/waits/post-body", method="POST", body=b"body"),
            request("/waits/get-body", body=b"body"),
            request("/waits/delete", method="DELETE"),
            request(
                "/waits/upgrade",
                headers=[("Connection", "upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            ),
            request("/late/route"),
        ],
        ids=["POST", "POST with a body", "GET with a body", "DELETE", "an upgrade", "a route without early data"],
    )
    def test_what_is_not_harmless_waits(self, running: Gateway, backend: Upstream, request_bytes: bytes) -> None:
        path = request_bytes.split(b" ")[1].decode()
        delayed = {"listener": "edge", "outcome": "delayed"}
        before = running.metric("mitu_http_early_data_requests_total", **delayed)
        with resumed(running.address(), request_bytes, finish=False) as client:
            assert client.took_early
            time.sleep(QUIET)
            assert not backend.seen
            client.finish()
            assert client.http1.response().status == 200
        assert backend.of(path) == [None]
        assert running.metric("mitu_http_early_data_requests_total", **delayed) == before + 1

    def test_it_waits_behind_what_is_pipelined(self, running: Gateway, backend: Upstream) -> None:
        """The end of the handshake is read although other requests stand in front of it."""
        early = request("/pipelined/first", method="POST", body=b"x" * 2_000) + request("/pipelined/second") * 20
        with resumed(running.address(), early, finish=False) as client:
            time.sleep(QUIET)
            assert not backend.seen
            client.finish()
            for _ in range(21):
                assert client.http1.response().status == 200

    def test_who_does_not_end_its_handshake_gets_425(self, running: Gateway, backend: Upstream) -> None:
        with resumed(running.address(), request("/never", method="POST"), finish=False) as client:
            assert client.http1.response().status == 425
        assert backend.of("/never") == []
        # What a request came to is counted once its response is written.
        eventually(lambda: running.metric("mitu_http_errors_total", reason="too_early") >= 1)

    def test_the_upstream_may_refuse_and_the_client_tries_again(self, running: Gateway, backend: Upstream) -> None:
        with resumed(running.address(), request("/picky"), finish=False) as client:
            assert client.http1.response().status == 425
            client.finish()
            client.send(request("/picky"))
            assert client.http1.response().status == 200
        assert backend.of("/picky") == ["1", None]

    def test_the_mark_cannot_be_nominated_away(self, running: Gateway, backend: Upstream) -> None:
        early = request("/marked", headers=[("Connection", "early-data"), ("Early-Data", "0")])
        with resumed(running.address(), early) as client:
            assert client.http1.response().status == 200
        assert backend.of("/marked") == ["1"]

    def test_a_forged_end_ends_the_connection(self, running: Gateway) -> None:
        with resumed(running.address(), request("/forged", method="POST"), finish=False) as client:
            client.finish(bytes(32))
            with pytest.raises(EOFError):
                client.http1.response()

    def test_a_response_is_whole_although_the_gateway_closes(self, running: Gateway) -> None:
        """What ends the handshake comes behind it, and must not be answered with a reset."""
        with resumed(running.address(), request("/large", headers=[("Connection", "close")]), finish=False) as client:
            time.sleep(QUIET)
            client.finish()
            assert len(client.http1.response().body) > LARGE

    def test_a_handshake_that_is_never_ended_ends_the_connection(self, running: Gateway) -> None:
        with resumed(running.address(), request("/endless"), finish=False) as client:
            assert client.http1.response().status == 200
            begun = time.monotonic()
            assert client.read() == b""
            assert time.monotonic() - begun < 9

    def test_too_much_of_it_ends_the_connection(self, running: Gateway, backend: Upstream) -> None:
        flood = request("/flood", method="POST", body=b"x" * 100_000)
        with (
            resumed(running.address(), flood[:10_000], finish=False) as client,
            pytest.raises((ConnectionError, EOFError)),
        ):
            for start in range(10_000, len(flood), 10_000):
                client.send_early(flood[start : start + 10_000])
            client.http1.response()
        assert not backend.seen

    @pytest.mark.needs("openssl")
    def test_openssl(self, running: Gateway, authority: Authority, backend: Upstream, tmp_path: Path) -> None:
        file = tmp_path / "request"
        file.write_bytes(request("/openssl", headers=[("Connection", "close")]))
        client = Resuming(authority.certificate, tmp_path, "-tls1_3", "-alpn", "http/1.1")
        client.full(running.address())
        told = client.again(running.address(), "-early_data", file)
        assert "Early data was accepted" in told, told
        assert backend.of("/openssl") == ["1"]

    @pytest.mark.needs("openssl")
    def test_a_verified_client_is_itself(
        self, gateway: Start, edge: Pair, authority: Authority, backend: Upstream, tmp_path: Path
    ) -> None:
        """A certificate comes in no resumption: who the client is, its session says."""
        client_auth = {"client_auth": "required", "client_ca": str(authority.certificate)}
        node = gateway(settings(edge, backend.server.endpoint, tls=client_auth))
        device = authority.issue("device", ("device-7",), client=True)
        file = tmp_path / "request"
        file.write_bytes(request("/who", headers=[("Connection", "close")]))
        flags = ("-tls1_3", "-alpn", "http/1.1", "-cert", device.certificate, "-key", device.key)
        client = Resuming(authority.certificate, tmp_path, *flags)
        client.full(node.address())
        told = client.again(node.address(), "-early_data", file)
        assert "Early data was accepted" in told, told
        assert '["x-client-verified", "success"]' in told.lower()
        assert "device-7" in told
        assert backend.of("/who") == ["1"]


class TestOff:
    def test_no_session_of_such_a_listener_allows_it(self, running: Gateway, backend: Upstream) -> None:
        address = running.address("off")
        kept = session(address)
        assert kept.early_data == 0
        with Tls13(address, ["http/1.1"], session=kept, early=request("/off")) as client:
            assert not client.took_early
            client.send(request("/off?late"))
            assert client.http1.response().status == 200
        assert backend.of("/off") == []

    def test_sessions_are_of_their_protocol(self, running: Gateway, backend: Upstream) -> None:
        """What was said to one protocol's handler is not given to another's (ALPACA)."""
        kept = session(running.address(), "h2")
        with Tls13(running.address(), ["http/1.1"], session=kept, early=request("/confused")) as client:
            assert not client.took_early
        assert backend.of("/confused") == []


def h2_request(path: str, method: str = "GET", body: bytes = b"") -> bytes:
    fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
    block = hpack.block([(name.encode(), value.encode()) for name, value in fields])
    sent = PREFACE + frames.frame(SETTINGS, 0, 0) + frames.headers(1, block, end=not body)
    return sent + (frames.data(1, body, end=True) if body else b"")


class TestOnH2:
    def test_a_request_is_answered_before_the_handshake_ends(self, running: Gateway, backend: Upstream) -> None:
        with resumed(running.address(), h2_request("/h2-early"), "h2", finish=False) as client:
            assert client.took_early
            came = b""
            while b'"/h2-early"' not in came:
                piece = client.read()
                assert piece
                came += piece
        assert backend.of("/h2-early") == ["1"]

    @pytest.mark.parametrize(("path", "method", "body"), [("/h2-post", "POST", b"body"), ("/late/h2", "GET", b"")])
    def test_what_is_not_harmless_waits(
        self, running: Gateway, backend: Upstream, path: str, method: str, body: bytes
    ) -> None:
        with resumed(running.address(), h2_request(path, method, body), "h2", finish=False) as client:
            time.sleep(QUIET)
            assert backend.of(path) == []
            client.finish()
            came = b""
            while f'"{path}"'.encode() not in came:
                piece = client.read()
                assert piece
                came += piece
        assert backend.of(path) == [None]


@dataclass(frozen=True)
class Visit:
    """What a client remembers of a connection: its session, and what shows that it is at its address."""

    session: SessionTicket
    token: bytes


def visit(address: Address, ca: Path) -> Visit:
    async def remember() -> Visit:
        kept: list[SessionTicket] = []
        tokens: list[bytes] = []
        async with connected(address, ca, tickets=kept, tokens=tokens) as client:
            assert (await client.get("/health")).status == 200
            await client.until(lambda: kept and tokens)
        return Visit(kept[0], tokens[0])

    return asyncio.run(remember())


def resuming(address: Address, ca: Path, kept: Visit, *, token: bool = True) -> AbstractAsyncContextManager[Http3]:
    """A connection that sends at once."""
    shown = kept.token if token else b""
    return connected(address, ca, session_ticket=kept.session, token=shown, wait_connected=False)


class TestOnH3:
    def test_a_request_is_answered(self, running: Gateway, authority: Authority, backend: Upstream) -> None:
        kept = visit(running.address(), authority.certificate)
        assert kept.session.max_early_data_size == 0xFFFF_FFFF

        async def test() -> None:
            async with resuming(running.address(), authority.certificate, kept) as client:
                first, second = client.begin("/h3-early"), client.begin("/h3-post", method="POST", body=b"body")
                client.transmit()
                assert (await client.answer(first)).status == 200
                assert (await client.answer(second)).status == 200
                assert client.quic.tls.early_data_accepted

        asyncio.run(test())
        assert backend.of("/h3-early") == ["1"]
        assert backend.of("/h3-post") == [None]

    def test_a_replay_is_not_served(self, running: Gateway, authority: Authority, backend: Upstream) -> None:
        kept = visit(running.address(), authority.certificate)
        sent: list[bytes] = []

        async def test() -> None:
            async with resuming(running.address(), authority.certificate, kept) as client:
                transport = client._transport
                assert transport is not None
                forward = transport.sendto

                def sendto(data: Any, *where: Any) -> None:
                    sent.append(bytes(data))
                    forward(data, *where)

                transport.sendto = sendto  # type: ignore[method-assign, assignment]
                stream = client.begin("/h3-replayed")
                client.transmit()
                assert (await client.answer(stream)).status == 200

        asyncio.run(test())
        assert sent
        for _ in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                for datagram in sent:
                    other.sendto(datagram, running.address())
        time.sleep(QUIET)
        assert backend.of("/h3-replayed") == ["1"]

    def test_other_limits_take_no_early_data(
        self, gateway: Start, edge: Pair, authority: Authority, backend: Upstream
    ) -> None:
        """The client would keep to those that it remembers (RFC 9000, section 7.4.1)."""
        made = settings(edge, backend.server.endpoint)
        node = gateway(made)

        async def again(kept: SessionTicket) -> bool:
            async with connected(node.address(), authority.certificate, session_ticket=kept) as client:
                return bool(client.quic.tls.early_data_accepted)

        first, second = (visit(node.address(), authority.certificate).session for _ in range(2))
        node.apply(made | {"logging": {"level": "warning"}})
        assert asyncio.run(again(first))
        made["listeners"][0]["limits"] = {"concurrent_streams": 2}
        node.apply(made)
        assert not asyncio.run(again(second))

    def test_who_may_be_elsewhere_is_served_later(
        self, running: Gateway, authority: Authority, backend: Upstream
    ) -> None:
        """Early data comes from any address that its sender writes into a packet, and is served in its name."""
        kept = visit(running.address(), authority.certificate)

        async def test() -> None:
            async with resuming(running.address(), authority.certificate, kept, token=False) as client:
                stream = client.begin("/h3-from-somewhere")
                client.transmit()
                assert (await client.answer(stream)).status == 200

        asyncio.run(test())
        assert backend.of("/h3-from-somewhere") == [None]


class TestReplay:
    """Whoever has recorded a client's first flight sends it again."""

    def replay(self, address: Address, flight: bytes) -> None:
        with socket.create_connection(address) as tcp:
            tcp.settimeout(20)
            tcp.sendall(flight)
            assert tcp.recv(1 << 16), "the handshake goes on, without the early data"

    def test_on_the_same_node(self, running: Gateway, backend: Upstream) -> None:
        with resumed(running.address(), request("/replayed")) as client:
            client.http1.response()
            # While the first connection is open, and on all workers.
            for _ in range(20):
                self.replay(running.address(), client.first_flight)
        self.replay(running.address(), client.first_flight)
        time.sleep(QUIET)
        assert backend.of("/replayed") == ["1"]

    def test_all_at_once(self, running: Gateway, backend: Upstream) -> None:
        """Many copies race for one session, on all workers, while reloads swap what they come to."""
        held = session(running.address())
        with Tls13(running.address("off"), ["http/1.1"], session=held, early=request("/race")) as recorder:
            flight = recorder.first_flight
        start = threading.Barrier(8)

        def race() -> None:
            start.wait(10)
            self.replay(running.address(), flight)

        with ThreadPoolExecutor(8) as racers:
            racing = [racers.submit(race) for _ in range(8)]
            assert running.reload()[0] == 0
            for one in racing:
                one.result(20)
        time.sleep(QUIET)
        assert backend.of("/race") == ["1"]

    def test_a_replay_that_comes_first_is_the_one_that_is_served(self, running: Gateway, backend: Upstream) -> None:
        """As if the attacker had held the client's packets back: once is once, whoever sends it."""
        kept = session(running.address())
        with Tls13(running.address(), ["http/1.1"], session=kept, early=request("/raced")) as client:
            client.http1.response()
        with Tls13(running.address(), ["http/1.1"], session=kept, early=request("/raced")) as again:
            assert not again.took_early
            again.send(request("/raced?late"))
            again.http1.response()
        assert backend.of("/raced") == ["1"]

    def test_after_a_reload(self, gateway: Start, edge: Pair, backend: Upstream) -> None:
        made = settings(edge, backend.server.endpoint)
        node = gateway(made)
        kept = session(node.address())
        unused = session(node.address())
        with Tls13(node.address(), ["http/1.1"], session=kept, early=request("/reloaded")) as client:
            client.http1.response()
        made["listeners"][0]["routes"][0]["respond"]["body"] = "other"
        node.apply(made)
        self.replay(node.address(), client.first_flight)
        # What was not used is still good.
        with Tls13(node.address(), ["http/1.1"], session=unused, early=request("/reloaded?other")) as client:
            assert client.took_early
            client.http1.response()
        time.sleep(QUIET)
        assert backend.of("/reloaded") == ["1"]

    def test_after_a_restart_and_on_another_node(
        self, gateway: Start, edge: Pair, backend: Upstream, tmp_path: Path
    ) -> None:
        """Nodes that share a secret for tickets share no sessions that allow early data."""
        secret = tmp_path / "secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(32))
        made = settings(edge, backend.server.endpoint) | {"tickets": {"secrets": [{"file": str(secret)}]}}
        one, two = gateway(made), gateway(made)
        kept = session(one.address())
        with Tls13(one.address(), ["http/1.1"], session=kept, early=request("/elsewhere")) as client:
            client.http1.response()
        self.replay(two.address(), client.first_flight)
        other = session(one.address())
        with Tls13(two.address(), ["http/1.1"], session=other, early=request("/elsewhere")) as elsewhere:
            assert not elsewhere.took_early
            elsewhere.send(request("/elsewhere?late"))
            elsewhere.http1.response()
        one.stop()
        one.restart()
        self.replay(one.address(), client.first_flight)
        time.sleep(QUIET)
        assert backend.of("/elsewhere") == ["1"]
        assert backend.of("/elsewhere?late") == [None]


def test_a_session_is_forgotten_after_its_lifetime(
    gateway: Start, edge: Pair, backend: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(edge, backend.server.endpoint) | {"tickets": {"rotation": "1s", "lifetime": "1s"}}
    node = gateway(made)
    kept = session(node.address())
    time.sleep(1.2)
    with Tls13(node.address(), ["http/1.1"], session=kept, early=request("/old")) as client:
        assert not client.took_early
    assert backend.of("/old") == []


def test_an_age_that_does_not_fit_is_refused(gateway: Start, edge: Pair, backend: Upstream) -> None:
    """A flight that was held back for longer than a minute (RFC 8446, section 8.3)."""
    node = gateway(settings(edge, backend.server.endpoint))
    kept = session(node.address())
    held = replace(kept, since=kept.since - 120)
    with Tls13(node.address(), ["http/1.1"], session=held, early=request("/held")) as client:
        assert not client.took_early
    assert backend.of("/held") == []
