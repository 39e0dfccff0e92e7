"""The access log: one JSON object a line, one line a request and one a connection, whatever clients send."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from support import proxy_protocol
from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.h2 import Http2
from support.net import eventually, free_port
from support.servers import Server, echo

from .conftest import Serve, Start

Line = dict[str, Any]
STAGES = ["accept_wait_us", "client_hello_us", "select_us", "gate_us", "crypto_us", "client_flight_us", "total_us"]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def logged(edge: Pair, *upstreams: Settings, log: Settings | None = None, **more: Any) -> Settings:
    access = {"path": "access.log", "connections": True, **(log or {})}
    protocols = ["h2", "http/1.1", *([{"alpn": "echo", "relay": "echo"}] if len(upstreams) > 1 else [])]
    routes = [health(), *([to_app()] if upstreams else [])]
    form = {"protocols": protocols, "routes": routes, **more}
    return configuration([listener(edge, **form)], *upstreams, logging={"access": access})


@pytest.fixture
def running(gateway: Start, authority: Authority, edge: Pair, app: Server, serve: Serve) -> Gateway:
    upstreams = [upstream("app", app.endpoint), upstream("echo", serve(echo).endpoint)]
    asks = {"client_auth": "optional", "client_ca": str(authority.certificate)}
    return gateway(logged(edge, *upstreams, tls=asks), flags=["--no-watch"])


def lines(gateway: Gateway, count: int, file: str = "access.log") -> list[Line]:
    """That many lines, once they are there; every one of them is JSON and ends in a newline."""
    eventually(lambda: len(gateway.logged(file)) >= count and (gateway.folder / file).read_bytes().endswith(b"\n"))
    found = gateway.logged(file)
    assert len(found) == count, found
    return found


def of(event: str, found: list[Line]) -> list[Line]:
    return [line for line in found if line["event"] == event]


def test_a_request_and_its_connection(running: Gateway, authority: Authority) -> None:
    before = time.time()
    with Http1.open(running.address(), authority.certificate) as client:
        client.request("/health?a=1", headers=[("User-Agent", "test/1"), ("traceparent", TRACE)])
        name = "{}:{}".format(*client.stream.getsockname())
    request, connection = lines(running, 2)
    assert before - 1 <= request["ts"] <= time.time() + 1
    assert 0 <= request["duration_ms"] < 10_000
    assert request | {"ts": 0, "duration_ms": 0} == {
        "event": "request", "ts": 0, "connection": connection["connection"], "client": name, "listener": "edge",
        "alpn": "http/1.1", "method": "GET", "host": "localhost", "path": "/health?a=1", "route": "/health",
        "status": 200, "bytes_received": 0, "bytes_sent": 11, "duration_ms": 0, "user_agent": "test/1",
        "trace_id": TRACE[3:35], "span_id": TRACE[36:52],
    }  # fmt: skip
    stages = connection["stages"]
    assert list(stages) == STAGES
    assert all(isinstance(value, int) and value >= 0 for value in stages.values())
    assert stages["total_us"] >= max(list(stages.values())[:-1])
    assert connection["duration_ms"] * 1000 >= stages["total_us"]
    assert connection | {"ts": 0, "duration_ms": 0, "stages": 0, "cipher": ""} == {
        "event": "connection", "ts": 0, "connection": request["connection"], "listener": "edge", "client": name,
        "server_name": "localhost", "alpn": "http/1.1", "tls_version": "TLSv1.3", "cipher": "", "resumed": False,
        "client_certificate": None, "requests": 1, "duration_ms": 0, "stages": 0,
    }  # fmt: skip
    assert connection["cipher"].startswith("TLS_")


def test_one_line_for_each(running: Gateway, authority: Authority, app: Server) -> None:
    with Http1.open(running.address(), authority.certificate) as client:
        for number in range(20):
            client.request(f"/{number}", method="POST", body=b"x" * number)
    with Http2.open(running.address(), authority.certificate) as h2:
        for number in [h2.send(f"/{number}") for number in range(20, 40)]:
            assert h2.finish(number).status == 200
    found = lines(running, 42)
    requests, connections = of("request", found), of("connection", found)
    assert sorted(int(line["path"][1:]) for line in requests) == list(range(40))
    assert [line["requests"] for line in connections] == [20, 20]
    assert {line["connection"] for line in requests} == {line["connection"] for line in connections}
    for line in requests:
        assert (line["upstream"], line["endpoint"]) == ("app", app.endpoint)
        assert 0 < line["upstream_ms"] <= line["duration_ms"]
        assert line["bytes_received"] == (int(line["path"][1:]) if line["method"] == "POST" else 0)
        assert line["bytes_sent"] > 100


def test_what_failed_says_why(gateway: Start, authority: Authority, edge: Pair) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    running = gateway(logged(edge, upstream("app", nobody)))
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/x").status == 502
    with Http1.open(running.address(), authority.certificate) as client:
        client.send(b"NONSENSE\r\n\r\n")
        assert client.response().status == 400
    found = of("request", lines(running, 4))
    refused, bad = found
    assert (refused["status"], refused["side"], refused["reason"]) == (502, "upstream", "connect_refused")
    assert refused["endpoint"] == nobody
    assert (bad["status"], bad["side"], bad["reason"]) == (400, "downstream", "bad_request")
    assert (bad["method"], bad["path"], bad["route"]) == ("", "", None)


def test_a_handshake_that_failed(running: Gateway, authority: Authority) -> None:
    with contextlib.suppress(ssl.SSLError):
        connect(running.address(), context(authority.certificate, ["private/9"])).close()
    with socket.create_connection(running.address(), timeout=10) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stream.recv(100)
    nothing, plain = lines(running, 2)
    assert (nothing["event"], nothing["reason"]) == ("handshake_failed", "no_application_protocol")
    assert (plain["event"], plain["reason"]) == ("handshake_failed", "not_tls")
    assert (nothing["alpn_verdict"], nothing["alpn_offered"]) == ("mismatch", "other")
    for line, own in ((nothing, ["alpn_verdict", "alpn_offered"]), (plain, [])):
        assert list(line) == ["event", "ts", "listener", "client", "reason", *own, "error", "stages"]
        assert line["error"]
        assert list(line["stages"]) == STAGES


def test_a_relay_says_what_it_moved(running: Gateway, authority: Authority) -> None:
    with connect(running.address(), context(authority.certificate, ["echo"])) as relay:
        relay.sendall(b"x" * 1000)
        assert len(Http1(relay).exactly(1000)) == 1000
    (line,) = lines(running, 1)
    assert (line["event"], line["alpn"], line["requests"]) == ("connection", "echo", 1)
    assert (line["bytes_received"], line["bytes_sent"]) == (1000, 1000)


@pytest.mark.parametrize(("alpn", "begun"), [("h2", b"PRI "), ("http/1.1", b"GET /"), ("echo", b"hello")])
def test_a_client_that_leaves_without_a_word(running: Gateway, authority: Authority, alpn: str, begun: bytes) -> None:
    with connect(running.address(), context(authority.certificate, [alpn])) as stream:
        stream.sendall(begun)
        # The FIN alone, without close_notify; what comes is read, as the end would be a reset otherwise.
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(65536):
            pass
    (line,) = lines(running, 1)
    assert (line["event"], line["alpn"], line["error"]) == ("connection", alpn, "unexpected_eof")


HOSTILE = [
    'quote" back\\slash tab\t \\n {"event":"request"} é \u2028'.encode(),
    b'"}\\',
    b"\xff\xfe\xc2",
    # The 8-bit form of ESC [, which terminals obey as well.
    b"\xc2\x9b2J",
]


def test_hostile_names_stay_in_their_place(running: Gateway, authority: Authority) -> None:
    """Quotes, newlines, controls, invalid UTF-8: in headers, paths, and certificates."""
    identity = authority.issue("hostile", common_name='evil", "status": 200\n{"x": "\x1b[31m\x7f', client=True)
    with Http1(connect(running.address(), context(authority.certificate, identity=identity))) as client:
        for agent in HOSTILE:
            client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + agent + b"\r\n\r\n")
            assert client.response().status == 200
        client.send(b'GET /%0a%22\\"{}[]<>|^`?"\\x0a{"event":"request"} HTTP/1.1\r\nHost: localhost\r\n\r\n')
        client.response()
    assert running.stop() == 0
    text = (running.folder / "access.log").read_bytes().decode("utf-8")
    found = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert [line["event"] for line in found] == ["request"] * (len(HOSTILE) + 1) + ["connection"]
    assert [line["user_agent"] for line in found[: len(HOSTILE)]] == [
        agent.decode("utf-8", "replace") for agent in HOSTILE
    ]
    assert "evil" in found[-1]["client_certificate"]
    # Whoever shows the file on a terminal is safe.
    assert not [char for char in text if unicodedata.category(char) == "Cc" and char != "\n"]


def test_hostile_names_over_h2(running: Gateway, authority: Authority) -> None:
    with Http2.open(running.address(), authority.certificate) as client:
        client.get('/"\\{}%0a')
    text = eventually(lambda: (running.folder / "access.log").read_bytes())
    assert json.loads(text.split(b"\n")[0])["path"] == '/"\\{}%0a'


def test_the_client_behind_a_balancer(gateway: Start, authority: Authority, edge: Pair) -> None:
    trusting = {"proxy_protocol": {"trusted": ["127.0.0.0/8"]}}
    running = gateway(logged(edge, **trusting))
    tcp = socket.create_connection(running.address(), timeout=10)
    tcp.sendall(proxy_protocol.make(("2001:db8::7", 4711), ("2001:db8::1", 443)))
    with context(authority.certificate).wrap_socket(tcp, server_hostname="localhost") as stream:
        Http1(stream).request("/health")
    assert {line["client"] for line in lines(running, 2)} == {"[2001:db8::7]:4711"}


def test_a_balancer_that_sends_no_proper_header(gateway: Start, edge: Pair) -> None:
    running = gateway(logged(edge, proxy_protocol={"trusted": ["127.0.0.0/8"]}))
    with socket.create_connection(running.address(), timeout=10) as tcp:
        tcp.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        with contextlib.suppress(ConnectionError):
            assert tcp.recv(1) == b""
    (line,) = lines(running, 1)
    assert (line["event"], line["reason"]) == ("handshake_failed", "proxy_protocol")
    assert line["error"] == "malformed PROXY header: no version 2 signature"
    assert line["client"].startswith("127.0.0.1:")


@pytest.mark.parametrize(("requests", "connections"), [(True, False), (False, True), (False, False)])
def test_what_is_not_wanted(
    gateway: Start, authority: Authority, edge: Pair, requests: bool, connections: bool
) -> None:
    running = gateway(logged(edge, log={"requests": requests, "connections": connections}))
    with Http1.open(running.address(), authority.certificate) as client:
        client.request("/health")
    eventually(lambda: running.metric("mitu_connections_active") == 0)
    # Lines that wait are written before the end.
    assert running.stop() == 0
    text = (running.folder / "access.log").read_text()
    wanted = ["request"] * requests + ["connection"] * connections
    assert [json.loads(line)["event"] for line in text.splitlines()] == wanted


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_standard_stream(gateway: Start, authority: Authority, edge: Pair, stream: str) -> None:
    running = gateway(logged(edge, log={"path": stream, "connections": False}))
    with Http1.open(running.address(), authority.certificate) as client:
        client.request("/health")
    eventually(lambda: '"event":"request"' in running.program.log)
    # It stands between the gateway's own lines, each whole.
    assert all(json.loads(line) for line in running.program.log.splitlines())


def test_rotation_loses_nothing(running: Gateway, authority: Authority) -> None:
    """The file is moved, and the gateway told, while requests go on."""
    log = running.folder / "access.log"
    total = 0
    with Http1.open(running.address(), authority.certificate) as client:
        for generation in range(1, 4):
            for _ in range(50):
                client.request(f"/{generation}")
                total += 1
            eventually(log.exists)
            log.rename(f"{log}.{generation}")
            running.program.signal(signal.SIGUSR1)
        eventually(log.exists)
        client.request("/last")
        total += 1
    eventually(lambda: "/last" in log.read_text())
    assert running.stop() == 0
    files = [log, *(Path(f"{log}.{generation}") for generation in range(1, 4))]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(of("request", found)) == total
    assert len(found) == total + 1
    assert all(file.read_text() for file in files)
