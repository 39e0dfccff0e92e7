"""HTTP/3: the same routes, filters, limits and reloads as on TCP, on the UDP port of the same number."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection

from support import h3
from support.certificates import Authority, Pair
from support.client import Address, Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, on, to_app, upstream
from support.h3 import Http3, connected
from support.net import eventually
from support.servers import Reader, Server, Writer, http_body, http_head, http_response

from .conftest import Serve, Start

PROTOCOLS = ["h3", "h2", "http/1.1"]
LARGE = 5 << 20
CONNECTION_REFUSED = 2


def edge_settings(edge: Pair, endpoint: str | None = None, workers: int = 1, **more: Any) -> Settings:
    """A listener for h3 and the rest, with a health route and, behind it, an upstream."""
    routes = [health(), *([to_app()] if endpoint else [])]
    upstreams = [upstream("app", endpoint)] if endpoint else []
    made = configuration([listener(edge, protocols=PROTOCOLS, routes=routes, **more)], *upstreams)
    log = {"access": {"path": "access.log", "requests": True, "connections": True}}
    return made | {"runtime": {"workers": workers}, "logging": log}


@pytest.fixture(scope="module")
def running(shared_gateway: Start, edge: Pair, app: Server, provider: str) -> Gateway:
    return shared_gateway(on(provider, edge_settings(edge, app.endpoint)))


def use(gateway: Gateway, authority: Authority, test: Callable[[Http3], Awaitable[None]], **settings: Any) -> None:
    """Runs `test` with a connection."""

    async def run() -> None:
        async with connected(gateway.address(), authority.certificate, **settings) as client:
            await test(client)

    asyncio.run(run())


class TestRequests:
    def test_a_fixed_response(self, running: Gateway, authority: Authority) -> None:
        answer = h3.get(running.address(), authority.certificate, "/health")
        assert (answer.status, answer.body) == (200, b'{"ok":true}')
        assert answer.header("content-type") == "application/json"
        assert answer.header("content-length") == "11"
        assert answer.header("date")
        assert answer.header("alt-svc") is None

    def test_head_has_no_body(self, running: Gateway, authority: Authority) -> None:
        # The client's own reading takes the length for that of a body that is missing: the bytes tell.
        answer = h3.get(running.address(), authority.certificate, "/health", method="HEAD")
        assert answer.ended
        [(kind, head)] = h3.frames(answer.raw)
        assert kind == h3.HEADERS
        assert head.endswith(b"\x02" + b"11")

    def test_an_upstream_sees_the_request(self, running: Gateway, authority: Authority) -> None:
        cookies = [("cookie", "a=1"), ("cookie", "b=2"), ("x-own", "value"), ("te", "trailers")]
        answer = h3.get(running.address(), authority.certificate, "/some/path?q=1", headers=cookies)
        seen = json.loads(answer.body)
        assert (seen["method"], seen["target"], seen["length"]) == ("GET", "/some/path?q=1", 0)
        headers = {name.lower(): value for name, value in seen["headers"]}
        assert headers["host"] == "localhost"
        assert headers["cookie"] == "a=1; b=2"
        assert headers["x-own"] == "value"
        assert headers["x-forwarded-proto"] == "https"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert "transfer-encoding" not in headers
        assert "content-length" not in headers

    @pytest.mark.parametrize("announced", [True, False], ids=["announced", "streamed"])
    def test_a_large_body_goes_up(self, running: Gateway, authority: Authority, announced: bool) -> None:
        body = bytes(range(256)) * (LARGE // 256)
        headers = [("content-length", str(len(body)))] if announced else []
        answer = h3.get(running.address(), authority.certificate, "/up", method="POST", headers=headers, body=body)
        seen = json.loads(answer.body)
        assert (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        known = {name.lower() for name, _ in seen["headers"]}
        assert ("content-length" in known, "transfer-encoding" in known) == (announced, not announced)

    def test_many_requests_share_a_connection(self, running: Gateway, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            streams = [client.begin(f"/{number}") for number in range(100)]
            answers = [await client.answer(stream) for stream in streams]
            targets = [json.loads(answer.body)["target"] for answer in answers]
            assert targets == [f"/{number}" for number in range(100)]

        use(running, authority, test)

    def test_what_is_refused_says_so(self, running: Gateway, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            assert (await client.get("/x", method="TRACE")).status == 405
            assert (await client.get("/x", headers=[("host", "other.test")])).status == 400
            assert (await client.get("/x", headers=[(f"x-{at}", "x" * 10_000) for at in range(10)])).status == 431
            assert (await client.get("/x", headers=[(f"x-{at}", "1") for at in range(101)])).status == 431
            assert (await client.get("/health")).status == 200

        use(running, authority, test)

    def test_metrics_and_the_log_tell_of_it(self, running: Gateway, authority: Authority) -> None:
        labels = {"listener": "edge", "protocol": "h3", "status": "200"}
        before = running.metric("mitu_http_requests_total", **labels)
        h3.get(running.address(), authority.certificate, "/health?logged", headers=[("user-agent", "test/1")])
        eventually(lambda: running.metric("mitu_http_requests_total", **labels) == before + 1)

        def logged(event: str, **wanted: object) -> list[Settings]:
            lines = [line for line in running.logged() if line["event"] == event]
            return [line for line in lines if wanted.items() <= line.items()]

        eventually(lambda: logged("request", path="/health?logged"))
        request = logged("request", path="/health?logged")[0]
        assert (request["alpn"], request["status"], request["user_agent"]) == ("h3", 200, "test/1")
        eventually(lambda: logged("connection", connection=request["connection"]))
        connection = logged("connection", connection=request["connection"])[0]
        assert (connection["tls_version"], connection["server_name"]) == ("TLSv1.3", "localhost")
        assert connection["cipher"].startswith("TLS_")
        assert "error" not in connection
        stages = connection["stages"]
        assert 0 < stages["crypto_us"] <= stages["total_us"]
        assert running.metric("mitu_quic_accepted_total", listener="edge") >= 1
        assert running.metric("mitu_alpn_decisions_total", listener="edge", offered="h3", chosen="h3") >= 1
        handshakes = {"listener": "edge", "alpn": "h3", "version": "TLSv1.3", "stage": "total"}
        assert running.metric("mitu_tls_handshake_duration_seconds_count", **handshakes) >= 1

    def test_open_connections_are_listed(self, running: Gateway, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            await client.get("/health")
            listed = await asyncio.to_thread(running.json, "/connections")
            assert [one["alpn"] for one in listed].count("h3") >= 1

        use(running, authority, test)


class TestHandshake:
    def test_sessions_resume(self, running: Gateway, authority: Authority) -> None:
        tickets: list[Any] = []

        async def first(client: Http3) -> None:
            await client.get("/health")
            await client.until(lambda: tickets)

        use(running, authority, first, tickets=tickets)
        labels = {"listener": "edge", "alpn": "h3", "resumed": "true", "stage": "total"}
        before = running.metric("mitu_tls_handshake_duration_seconds_count", **labels)

        async def second(client: Http3) -> None:
            assert (await client.get("/health")).status == 200
            assert client.quic.tls.session_resumed

        use(running, authority, second, session_ticket=tickets[0])
        assert running.metric("mitu_tls_handshake_duration_seconds_count", **labels) == before + 1

    def test_no_protocol_in_common_is_refused_by_an_alert(self, running: Gateway, authority: Authority) -> None:
        no_application_protocol = 0x100 + 120
        for alpn in ["h2"], ["http/1.1", "mqtt"], ["hq-interop"]:
            code = asyncio.run(refusal(running.address(), authority, alpn=alpn))
            assert code == no_application_protocol, alpn

    def test_h3_is_not_spoken_on_tcp(self, running: Gateway, authority: Authority) -> None:
        with pytest.raises(OSError, match="no application protocol"):
            connect(running.address(), context(authority.certificate, ["h3"]))
        with connect(running.address(), context(authority.certificate, ["h3", "h2"])) as stream:
            assert stream.selected_alpn_protocol() == "h2"

    def test_an_unknown_name_can_be_refused(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        strict = gateway(edge_settings(edge, tls={"unknown_name": "refuse"}))
        unrecognized_name = 0x100 + 112
        assert asyncio.run(refusal(strict.address(), authority, name="unknown.test")) == unrecognized_name
        answer = h3.get(strict.address(), authority.certificate, "/health", name="edge.test", host="edge.test")
        assert answer.status == 200

    def test_client_certificates_are_asked_for(
        self, gateway: Start, edge: Pair, app: Server, authority: Authority
    ) -> None:
        tls = {"client_auth": "required", "client_ca": str(authority.certificate)}
        strict = gateway(edge_settings(edge, app.endpoint, tls=tls))
        certificate_required = 0x100 + 116
        assert asyncio.run(refusal(strict.address(), authority)) == certificate_required
        device = authority.issue("device-h3", ("device.test",), client=True)

        async def test(client: Http3) -> None:
            seen = json.loads((await client.get("/who")).body)
            headers = {name.lower(): value for name, value in seen["headers"]}
            assert headers["x-client-cert-san"] == "DNS:device.test"

        use(strict, authority, test, identity=device)


async def refusal(address: Address, authority: Authority, **settings: Any) -> int:
    """The error with which a handshake is refused."""
    async with connected(address, authority.certificate, wait_connected=False, **settings) as client:
        client.transmit()
        return (await client.closed()).error_code


async def shapes(reader: Reader, writer: Writer) -> None:
    """Answers by path with the shapes that a response can have."""
    while (head := await http_head(reader)) is not None:
        line, headers = head
        _, path, _ = line.split(" ")
        if path == "/large":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n".encode() + b"x" * LARGE)
        elif path == "/trailers":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"4\r\nbody\r\n0\r\nX-Sum: 4\r\n\r\n")
        elif path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            await writer.drain()
            return
        elif path == "/early":
            writer.write(http_response("413 Too Much", b"no"))
            await writer.drain()
            return
        elif path == "/never":
            await reader.read()
            return
        else:
            body, trailers = await http_body(reader, headers)
            writer.write(http_response("200 OK", json.dumps({"body": body.decode(), "trailers": trailers}).encode()))
        await writer.drain()


@pytest.fixture(scope="module")
def shaped(shared_gateway: Start, edge: Pair, loop: Any) -> Any:
    with Server(loop, shapes) as server:
        server.gateway = shared_gateway(edge_settings(edge, server.endpoint))  # type: ignore[attr-defined]
        yield server


class TestStreams:
    def test_a_large_response(self, shaped: Any, authority: Authority) -> None:
        answer = h3.get(shaped.gateway.address(), authority.certificate, "/large")
        assert answer.body == b"x" * LARGE

    def test_trailers_both_ways(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            answer = await client.get("/trailers")
            assert (answer.body, answer.trailers) == (b"body", [("x-sum", "4")])
            stream = client.begin("/up", method="POST", body=b"text", end=False)
            assert client.http is not None
            client.http.send_headers(stream, [(b"x-sum", b"4")], end_stream=True)
            client.transmit()
            seen = json.loads((await client.answer(stream)).body)
            assert seen == {"body": "text", "trailers": [["x-sum", "4"]]}

        use(shaped.gateway, authority, test)

    def test_a_response_that_is_cut_off_is_reset(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            assert (await client.get("/cut")).reset == h3.INTERNAL_ERROR
            assert (await client.get("/health")).status == 200

        use(shaped.gateway, authority, test)

    def test_an_early_response_asks_for_no_more(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            stream = client.begin("/early", method="POST", body=b"x" * 1000, end=False)
            answer = await client.answer(stream)
            assert (answer.status, answer.body) == (413, b"no")
            await client.until(lambda: answer.stopped is not None)
            assert answer.stopped == h3.NO_ERROR

        use(shaped.gateway, authority, test)

    def test_whoever_cancels_ends_the_work_upstream(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            accepted = shaped.accepted
            stream = client.begin("/never")
            await asyncio.to_thread(eventually, lambda: shaped.accepted > accepted)
            open_before = shaped.open
            client.cancel(stream)
            await asyncio.to_thread(eventually, lambda: shaped.open < open_before)
            assert (await client.get("/health")).status == 200

        use(shaped.gateway, authority, test)

    def test_a_connection_that_is_lost_ends_the_work_upstream(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            client.begin("/never")
            await asyncio.to_thread(eventually, lambda: shaped.open > 0)

        use(shaped.gateway, authority, test)
        eventually(lambda: shaped.gateway.metric("mitu_upstream_requests_active") == 0)

    def test_a_body_is_as_long_as_it_says(self, shaped: Any, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            for body in b"short", b"longer than it says":
                stream = client.begin("/up", method="POST", headers=[("content-length", "10")], body=body)
                answer = await client.answer(stream)
                assert answer.status == 400
            assert (await client.get("/health")).status == 200

        use(shaped.gateway, authority, test)
        errors = {"protocol": "h3", "reason": "bad_body"}
        assert eventually(lambda: shaped.gateway.metric("mitu_http_errors_total", **errors) == 2)


class TestAltSvc:
    def alt_svc(self, gateway: Gateway, authority: Authority) -> str | None:
        with Http1.open(gateway.address(), authority.certificate) as client:
            return client.request("/health").header("alt-svc")

    def test_h1_and_h2_responses_tell_of_h3(self, running: Gateway, authority: Authority) -> None:
        port = running.address()[1]
        assert self.alt_svc(running, authority) == f'h3=":{port}"; ma=86400'

    def test_the_public_port_and_the_age_can_be_set(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        told = gateway(edge_settings(edge, alt_svc={"port": 443, "max_age": "1h"}))
        assert self.alt_svc(told, authority) == 'h3=":443"; ma=3600'
        told.apply(edge_settings(edge, alt_svc={"advertise": False}))
        assert self.alt_svc(told, authority) == "clear"

    def test_it_is_withdrawn_with_h3_and_comes_back(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        settings = edge_settings(edge)
        without = edge_settings(edge)
        without["listeners"][0]["protocols"] = ["h2", "http/1.1"]
        changing = gateway(without)
        port = changing.address()[1]
        assert self.alt_svc(changing, authority) is None
        changing.apply(settings)
        assert self.alt_svc(changing, authority) == f'h3=":{port}"; ma=86400'
        assert h3.get(changing.address(), authority.certificate, "/health").status == 200
        changing.apply(without)
        assert self.alt_svc(changing, authority) == "clear"
        with pytest.raises(ConnectionError):
            h3.get(changing.address(), authority.certificate, "/health", idle_timeout=1)
        # The port is free again, once nobody is left on it.
        eventually(lambda: is_free(port))
        changing.apply(settings)
        assert h3.get(changing.address(), authority.certificate, "/health").status == 200


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def held(serve: Serve, body: bytes) -> tuple[Server, Callable[[], None]]:
    """An upstream that answers with `body`, but not before it is let go."""
    let_go = asyncio.Event()

    async def wait(reader: Reader, writer: Writer) -> None:
        while await http_head(reader) is not None:
            await let_go.wait()
            writer.write(http_response("200 OK", body))
            await writer.drain()

    server = serve(wait)

    def release() -> None:
        server._loop.loop.call_soon_threadsafe(let_go.set)

    return server, release


def test_a_slow_upstream_is_waited_for(gateway: Start, edge: Pair, authority: Authority, serve: Serve) -> None:
    """QUIC would give the silent connection up after 16 seconds."""
    server, release = held(serve, b"late")
    waiting = gateway(edge_settings(edge, server.endpoint, timeouts={"idle": "1s", "handshake": "1s"}))

    async def test(client: Http3) -> None:
        stream = client.begin("/slow")
        await asyncio.sleep(18)
        release()
        assert (await client.answer(stream)).body == b"late"

    use(waiting, authority, test)


class TestReload:
    def test_open_connections_go_on_and_new_ones_get_the_new(
        self, gateway: Start, edge: Pair, authority: Authority
    ) -> None:
        changing = gateway(edge_settings(edge, workers=2))
        changed = edge_settings(edge, workers=2)
        changed["listeners"][0]["routes"][0]["respond"]["body"] = "new"

        async def test(client: Http3) -> None:
            assert (await client.get("/health")).body == b'{"ok":true}'
            await asyncio.to_thread(changing.apply, changed)
            assert (await client.get("/health")).body == b'{"ok":true}'
            async with connected(changing.address(), authority.certificate) as other:
                assert (await other.get("/health")).body == b"new"

        use(changing, authority, test)

    def test_a_listener_takes_over_the_port_of_another(
        self, gateway: Start, edge: Pair, authority: Authority, serve: Serve
    ) -> None:
        server, release = held(serve, b"late")
        settings = edge_settings(edge, server.endpoint, workers=2)
        changing = gateway(settings)
        host, port = changing.address()
        renamed = edge_settings(edge, server.endpoint, workers=2, name="renamed", bind=f"{host}:{port}")

        async def test(client: Http3) -> None:
            stream = client.begin("/slow")
            await asyncio.to_thread(eventually, lambda: server.open > 0)
            await asyncio.to_thread(changing.apply, renamed)
            for _ in range(4):
                async with connected((host, port), authority.certificate) as other:
                    assert (await other.get("/health")).status == 200
            release()
            assert (await client.answer(stream)).body == b"late"

        asyncio.run(on_connection(host, port, authority, test))

    def test_a_drain_finishes_what_has_begun(
        self, gateway: Start, edge: Pair, authority: Authority, serve: Serve
    ) -> None:
        server, release = held(serve, b"x" * LARGE)
        stopping = gateway(edge_settings(edge, server.endpoint))
        address = stopping.address()

        async def test(client: Http3) -> None:
            stream = client.begin("/slow")
            await asyncio.to_thread(eventually, lambda: server.open > 0)
            stopped = asyncio.create_task(asyncio.to_thread(stopping.stop))
            await asyncio.sleep(1.5)
            assert not stopped.done()
            assert await refusal(address, authority) == CONNECTION_REFUSED
            release()
            answer = await client.answer(stream)
            assert answer.body == b"x" * LARGE
            assert (await client.closed()).error_code == h3.NO_ERROR
            assert await stopped == 0

        asyncio.run(on_connection(*address, authority, test))


async def on_connection(host: str, port: int, authority: Authority, test: Callable[[Http3], Awaitable[None]]) -> None:
    async with connected((host, port), authority.certificate) as client:
        await test(client)


class TestTransport:
    def test_a_client_may_move(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        """From another port, as behind a NAT that forgets, whichever worker the connection is on."""
        moving = gateway(edge_settings(edge, workers=2))

        async def test(client: Http3) -> None:
            for _ in range(5):
                assert (await client.get("/health")).status == 200
                await client.move()
            assert (await client.get("/health")).status == 200

        for _ in range(6):
            use(moving, authority, test)
        assert moving.metric("mitu_quic_accepted_total") == 6

    def test_the_largest_packet_is_looked_for_with_one(self, running: Gateway, authority: Authority) -> None:
        async def test(client: Http3) -> None:
            assert (await client.get("/health")).status == 200
            await client.until(lambda: max(client.sizes) > 1200)
            assert (await client.get("/health")).status == 200
            assert [size for size in client.sizes if size > 1200] == [1452]

        use(running, authority, test)

    def test_a_path_that_takes_less_gets_less(
        self, shaped: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Http3, "path_takes", 1400)

        async def test(client: Http3) -> None:
            for _ in range(2):
                assert len((await client.answer(client.begin("/large"), 30)).body) == LARGE
            assert max(client.sizes) == 1325

        use(shaped.gateway, authority, test)

    def test_another_version_is_negotiated(self, running: Gateway) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            first = b"\xc0" + b"\x1a\x2a\x3a\x4a" + b"\x08" + b"d" * 8 + b"\x08" + b"s" * 8
            client.sendto(first.ljust(1200, b"\0"), running.address())
            answer = client.recv(2048)
        assert answer[1:5] == b"\0\0\0\0"
        assert answer[5:23] == b"\x08" + b"s" * 8 + b"\x08" + b"d" * 8
        assert b"\x00\x00\x00\x01" in [answer[at : at + 4] for at in range(23, len(answer), 4)]

    def test_a_packet_of_an_unknown_connection_is_told_so(self, running: Gateway) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(b"\x40" + b"unknown!" + b"x" * 60, running.address())
            assert 21 <= len(client.recv(2048)) < 69

    def test_idle_connections_are_closed(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        idle = gateway(edge_settings(edge, timeouts={"idle": "1s"}))

        async def test(client: Http3) -> None:
            await client.get("/health")
            assert (await client.closed()).error_code == h3.NO_ERROR

        use(idle, authority, test)
        eventually(lambda: idle.metric("mitu_connections_active") == 0)

    def test_clients_that_begin_and_go_away_have_to_show_where_they_are(
        self, gateway: Start, edge: Pair, authority: Authority
    ) -> None:
        """A flood of first packets: few are taken up, an honest client is served meanwhile, and nothing is left."""
        flooded = gateway(edge_settings(edge, timeouts={"handshake": "2s"}))
        address = flooded.address()
        with contextlib.ExitStack() as sockets:
            for _ in range(400):
                client = QuicConnection(configuration=h3.configuration(authority.certificate))
                client.connect(address, now=time.monotonic())
                sock = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for datagram, _ in client.datagrams_to_send(now=time.monotonic()):
                    sock.sendto(datagram, address)
            assert h3.get(address, authority.certificate, "/health").status == 200
        assert flooded.metric("mitu_quic_retries_total") > 300
        assert flooded.metric("mitu_quic_accepted_total") < 100
        eventually(lambda: flooded.metric("mitu_connections_active") == 0)
        assert eventually(lambda: flooded.metric("mitu_tls_handshake_failures_total", reason="timeout") > 50)

    def test_no_more_connections_than_allowed(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        full = gateway(edge_settings(edge, limits={"connections": 1}))

        async def test(client: Http3) -> None:
            assert await refusal(full.address(), authority) == CONNECTION_REFUSED
            assert (await client.get("/health")).status == 200

        use(full, authority, test)

    def test_a_load_balancers_clients_do_not_come_around_it(
        self, gateway: Start, edge: Pair, authority: Authority
    ) -> None:
        behind = gateway(edge_settings(edge, proxy_protocol={"trusted": ["127.0.0.0/8"]}))
        assert asyncio.run(refusal(behind.address(), authority)) == CONNECTION_REFUSED
        assert eventually(lambda: behind.metric("mitu_connections_refused_total", reason="proxy_protocol") == 1)
