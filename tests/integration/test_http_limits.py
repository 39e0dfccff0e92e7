"""Limits, timeouts, and upstreams that fail."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, drip
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually, free_port
from support.process import output
from support.servers import Loop, Reader, Server, Writer, http_head, http_response

from .conftest import Start

LIMITS = {
    "request_header_size": "4KiB",
    "request_headers": 20,
    "request_body_size": "1KiB",
    "connections": 60,
}
TIMEOUTS = {"request_header": "1s", "idle": "2s", "handshake": "4s"}


async def faulty(reader: Reader, writer: Writer) -> None:
    """Fails in the way that the path asks for."""
    while (head := await http_head(reader)) is not None:
        path = head[0].split(" ")[1].removeprefix("/faulty/")
        if path == "silent":
            await reader.read()
            return
        if path == "close":
            return
        if path == "reset":
            writer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            writer.transport.abort()
            return
        if path == "short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nbeginning")
            await writer.drain()
            return
        if path == "short-chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbeginning\r\n")
            await writer.drain()
            return
        if path == "garbage":
            writer.write(b"220 mail.test ESMTP\r\n\r\n")
        elif path == "both":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"3\r\nabc\r\n0\r\n\r\n")
        elif path == "stall":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
            await writer.drain()
            await asyncio.sleep(1.5)
            writer.write(b"56789")
        elif path == "endless-head":
            writer.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(4000):
                writer.write(b"X-Long: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
            return
        await writer.drain()


@pytest.fixture(scope="module")
def gateway(
    shared_gateway: Start, edge: Pair, loop: Loop, app: Server, tmp_path_factory: pytest.TempPathFactory
) -> Gateway:
    log = tmp_path_factory.mktemp("access") / "access.log"

    def route(path: str, name: str, **settings: Any) -> Settings:
        return {"match": {"path_prefix": path}, "upstream": name, "timeout": "1s", **settings}

    routes = [health(), route("/faulty", "faulty"), route("/refused", "refused"), to_app()]
    upstreams = [
        upstream("app", app.endpoint),
        upstream("faulty", Server(loop, faulty).endpoint),
        upstream("refused", f"127.0.0.1:{free_port()}"),
    ]
    settings = listener(edge, routes=routes, limits=LIMITS, timeouts=TIMEOUTS)
    return shared_gateway(configuration([settings], *upstreams, logging={"access": {"path": str(log)}}))


@pytest.fixture
def client(gateway: Gateway, authority: Authority) -> Iterator[Http1]:
    with Http1.open(gateway.address(), authority.certificate) as client:
        yield client


def logged(gateway: Gateway, path: str) -> dict[str, Any]:
    """The access log's line for the last request to `path`."""
    log = json.loads(gateway.file.read_text())["logging"]["access"]["path"]

    def find() -> dict[str, Any] | None:
        return next((line for line in reversed(gateway.logged(log)) if line["path"] == path), None)

    found = eventually(find)
    assert found is not None
    return found


class TestLimits:
    def test_header_size(self, client: Http1) -> None:
        assert client.request("/health", headers=[("X-Fill", "a" * 3500)]).status == 200
        assert client.request("/health", headers=[("X-Fill", "a" * 5000)]).status == 431
        assert client.closed()

    def test_header_count(self, client: Http1) -> None:
        assert client.request("/health", headers=[("X-Fill", "a")] * 19).status == 200
        assert client.request("/health", headers=[("X-Fill", "a")] * 20).status == 431

    def test_a_long_path(self, client: Http1) -> None:
        assert client.request("/" + "a" * 8000).status in (414, 431)

    def test_a_header_without_end_costs_no_memory(self, gateway: Gateway, client: Http1) -> None:
        before = gateway.program.resident()
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(2000):
                client.send(b"X-Fill: " + b"a" * 10_000 + b"\r\n")
        except OSError:
            pass  # Refused and closed on the way: as it should be.
        assert gateway.program.resident() - before < 4 << 20

    @pytest.mark.needs("curl")
    def test_header_size_over_h2(self, gateway: Gateway, authority: Authority) -> None:
        curl = ["curl", "-sS", "--http2", "--cacert", authority.certificate, "-o", "/dev/null", "-w", "%{http_code}"]
        url = f"https://localhost:{gateway.address()[1]}/health"
        assert output([*curl, "-H", "x-fill: " + "a" * 3000, url]) == "200"
        assert output([*curl, "-H", "x-fill: " + "a" * 6000, url]) == "431"

    def test_body_announced(self, client: Http1) -> None:
        assert client.request("/", method="POST", body=b"a" * 1024).status == 200
        assert client.request("/", method="POST", body=b"a" * 1025).status == 413

    def test_body_in_chunks(self, client: Http1) -> None:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head + b"400\r\n" + b"a" * 1024 + b"\r\n0\r\n\r\n")
        assert json.loads(client.response().body)["length"] == 1024
        client.send(head + b"401\r\n" + b"a" * 1025 + b"\r\n0\r\n\r\n")
        assert client.response().status == 413

    @pytest.mark.needs("curl")
    def test_body_over_h2(self, gateway: Gateway, authority: Authority) -> None:
        curl = ["curl", "-sS", "--http2", "--cacert", authority.certificate, "-o", "/dev/null", "-w", "%{http_code}"]
        url = f"https://localhost:{gateway.address()[1]}/"
        assert output([*curl, "--data-binary", "a" * 1024, url]) == "200"
        assert output([*curl, "--data-binary", "a" * 2000, url]) == "413"

    def test_connections(self, gateway: Gateway, authority: Authority) -> None:
        """Over the limit they are closed at once, and counted; the others go on."""
        eventually(lambda: gateway.metric("mitu_connections_active") == 0)
        before = gateway.metric("mitu_connections_refused_total", reason="limit")
        waiting = [socket.create_connection(gateway.address()) for _ in range(60)]
        try:
            eventually(lambda: gateway.metric("mitu_connections_active") == 60)
            with socket.create_connection(gateway.address()) as refused:
                refused.settimeout(10)
                assert refused.recv(1) == b""
            eventually(lambda: gateway.metric("mitu_connections_refused_total", reason="limit") == before + 1)
        finally:
            for one in waiting:
                one.close()
        eventually(lambda: gateway.metric("mitu_connections_active") == 0)
        with Http1.open(gateway.address(), authority.certificate) as client:
            assert client.request("/health").status == 200


class TestTimeouts:
    def test_slow_headers(self, client: Http1) -> None:
        took = drip(client.stream, b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 200, every=0.05, limit=9)
        assert 0.9 < took < 8

    def test_headers_that_stop(self, client: Http1) -> None:
        client.send(b"GET /health HTTP/1.1\r\nHost: localh")
        response = client.response()
        assert response.status == 408
        assert client.closed()

    def test_an_idle_connection(self, client: Http1) -> None:
        assert client.request("/health").status == 200
        begun = time.monotonic()
        assert client.closed(within=10)
        assert 1.7 < time.monotonic() - begun < 8

    def test_a_connection_that_never_asks(self, client: Http1) -> None:
        assert client.closed(within=10)

    def test_a_slow_upstream(self, gateway: Gateway, client: Http1) -> None:
        begun = time.monotonic()
        response = client.request("/faulty/silent")
        assert (response.status, response.body) == (504, b"504 Gateway Timeout: response_timeout\n")
        assert 0.9 < time.monotonic() - begun < 8
        line = logged(gateway, "/faulty/silent")
        assert (line["status"], line["reason"], line["side"]) == (504, "response_timeout", "upstream")
        assert client.request("/health").status == 200, "the client's connection goes on"

    def test_the_timeout_is_for_the_head(self, client: Http1) -> None:
        """A body may take longer than the route's timeout: it is not for streams to end in the middle."""
        assert client.request("/faulty/stall").body == b"0123456789"


class TestFailures:
    @pytest.mark.parametrize(
        ("path", "status", "reason"),
        [
            ("/refused", 502, "connect_refused"),
            ("/faulty/close", 502, "reset_before_response"),
            ("/faulty/reset", 502, "reset_before_response"),
            ("/faulty/garbage", 502, "bad_response"),
            ("/faulty/both", 502, "bad_response"),
            ("/faulty/endless-head", 502, "bad_response"),
        ],
    )
    def test_before_the_response(self, gateway: Gateway, client: Http1, path: str, status: int, reason: str) -> None:
        response = client.request(path)
        assert (response.status, response.body.decode().split(": ")[1].strip()) == (status, reason)
        line = logged(gateway, path)
        assert (line["status"], line["reason"], line["side"]) == (status, reason, "upstream")
        assert client.request("/health").status == 200

    @pytest.mark.parametrize("path", ["/faulty/short", "/faulty/short-chunked"])
    def test_in_the_middle_of_the_response(self, gateway: Gateway, client: Http1, path: str) -> None:
        """The client must not take what it has for the whole."""
        with pytest.raises((EOFError, OSError)):
            client.request(path)
        line = logged(gateway, path)
        assert (line["status"], line["reason"]) == (200, "response_incomplete")

    def test_json_for_those_who_ask(self, client: Http1) -> None:
        response = client.request("/refused", headers=[("Accept", "application/json")])
        assert response.header("content-type") == "application/json"
        assert json.loads(response.body) == {"status": 502, "reason": "connect_refused"}


class TestPool:
    def test_connections_to_the_upstream_are_kept(self, gateway: Gateway, client: Http1, app: Server) -> None:
        client.request("/first")
        before = app.accepted
        for number in range(50):
            assert client.request(f"/{number}").status == 200
        assert app.accepted == before

    def test_clients_share_them(self, gateway: Gateway, authority: Authority, app: Server, client: Http1) -> None:
        client.request("/first")
        before = app.accepted
        for _ in range(10):
            with Http1.open(gateway.address(), authority.certificate) as other:
                assert other.request("/").status == 200
        assert app.accepted == before

    def test_a_connection_that_the_upstream_has_closed_is_not_the_clients_problem(
        self, gateway: Gateway, edge: Pair, loop: Loop, client: Http1
    ) -> None:
        async def once(reader: Reader, writer: Writer) -> None:
            """Promises to keep the connection, and does not."""
            assert await http_head(reader)
            writer.write(http_response("200 OK", b"only one"))
            await writer.drain()

        with Server(loop, once) as server:
            settings = json.loads(gateway.file.read_text())
            settings["listeners"][0]["routes"].insert(0, {"match": {"path": "/once"}, "upstream": "once"})
            settings["upstreams"].append(upstream("once", server.endpoint))
            code, text = gateway.reload(settings)
            assert code == 0, text
            with Http1.open(gateway.address(), Path(edge.certificate.parent / "ca.crt")) as fresh:
                for _ in range(30):
                    assert fresh.request("/once").body == b"only one"

    def test_an_abandoned_request_ends_upstream_as_well(self, gateway: Gateway, client: Http1) -> None:
        client.send(b"GET /faulty/silent HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: gateway.metric("mitu_upstream_requests_active", upstream="faulty") == 1)
        client.stream.close()
        eventually(lambda: gateway.metric("mitu_upstream_requests_active", upstream="faulty") == 0, timeout=2)
