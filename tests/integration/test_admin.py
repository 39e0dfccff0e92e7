"""The admin endpoint on its Unix socket: who may open it, what it answers, and what it makes of nonsense."""

from __future__ import annotations

import json
import re
import socket
import stat
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.servers import Server, echo

from .conftest import Serve, Start

SECRET = "0123456789abcdef-the-token"  # noqa: S105 - a secret that must not be found


@pytest.fixture(scope="module")
def settings(edge: Pair, edge_rsa: Pair, app: Server) -> Settings:
    return configuration(
        [
            listener(
                [edge, edge_rsa],
                protocols=["h2", "http/1.1", {"alpn": "echo", "relay": "echo"}],
                routes=[health(), to_app()],
            )
        ],
        upstream("app", app.endpoint),
        upstream("echo", "127.0.0.1:9"),
    )


@pytest.fixture(scope="module")
def running(shared_gateway: Start, settings: Settings) -> Gateway:
    return shared_gateway(settings)


def test_only_its_owner_may_open_the_socket(running: Gateway) -> None:
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(running.socket.stat().st_mode)
    lock = running.socket.with_name("admin.sock.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert lock.read_text() == f"{running.program.pid}\n"


def test_health_and_readiness(running: Gateway) -> None:
    assert running.admin("/healthz") == (200, b"ok\n")
    assert running.admin("/readyz") == (200, b"serving\n")


def test_status(running: Gateway) -> None:
    status = running.status()
    assert status["pid"] == running.program.pid
    assert status["state"] == "serving"
    assert status["admin"] == {"socket": str(running.socket), "listen": None}
    (edge,) = status["listeners"]
    assert edge["name"] == "edge"
    assert edge["protocols"] == ["h2", "http/1.1", "echo"]
    assert edge["address"].startswith("127.0.0.1:")
    assert status["config"]["file"] == str(running.file)
    assert len(status["config"]["digest"]) == 64
    assert status["reloads"] == {
        "succeeded": 0, "failed": 0, "last_at": None, "last_error": None, "report": None,
    }  # fmt: skip


def test_metrics_say_which_format_they_have(running: Gateway) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(running.socket))
        client = Http1(stream)
        response = client.request("/metrics")
        assert response.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        assert b"mitu_connections_accepted_total" in response.body


def test_connections(running: Gateway, authority: Authority) -> None:
    ca = authority.certificate
    eventually(lambda: running.json("/connections") == [])
    with (
        Http1.open(running.address(), ca) as first,
        connect(running.address(), context(ca), name="edge.test") as second,
    ):
        first.request("/health")
        first.request("/health")
        eventually(lambda: len(running.json("/connections")) == 2)
        one, two = running.json("/connections")
        assert one["client"] == "{}:{}".format(*first.stream.getsockname())
        assert (one["listener"], one["alpn"], one["tls_version"]) == ("edge", "http/1.1", "TLSv1.3")
        assert (one["requests"], two["requests"]) == (2, 0)
        assert (one["server_name"], two["server_name"]) == ("localhost", "edge.test")
        assert two["client"] == "{}:{}".format(*second.getsockname())
        assert one["connection"] < two["connection"]
        assert 0 < one["stages"]["crypto_us"] <= one["stages"]["total_us"]
        assert [one["connection"] for one in running.json("/connections?limit=1")] == [one["connection"]]
    eventually(lambda: running.json("/connections") == [])


@pytest.mark.parametrize("limit", ["0", "-1", "x", "100001", "", "1e3", "9" * 5000])
def test_a_limit_that_is_none(running: Gateway, limit: str) -> None:
    status, body = running.admin(f"/connections?limit={limit}")
    assert (status, json.loads(body)["error"]) == (400, "'limit' must be a number from 1 to 100000")


def test_certificates(running: Gateway, edge: Pair, edge_rsa: Pair) -> None:
    (site,) = running.json("/certificates")
    assert site["listener"] == "edge"
    assert sorted(site["names"]) == ["127.0.0.1", "edge.test", "localhost"]
    assert site["default"] is True
    for shown, pair, key in zip(site["certificates"], (edge, edge_rsa), ("secp256r1", "rsa-2048"), strict=True):
        assert shown["file"] == str(pair.certificate)
        assert shown["sha256"] == pair.fingerprint
        assert shown["serial"] == f"{pair.serial:x}"
        assert shown["key"] == key
        assert shown["issuer"] == "CN=Test CA"
        assert sorted(shown["names"]) == ["127.0.0.1", "edge.test", "localhost"]
        assert datetime.fromisoformat(shown["not_before"]) < datetime.now(UTC)
        assert datetime.fromisoformat(shown["not_after"]) == pair.leaf.not_valid_after_utc


def test_the_configuration_in_force(running: Gateway, edge: Pair) -> None:
    found = running.json("/config")
    assert found["admin"]["socket"] == str(running.socket)
    (shown,) = found["listeners"]
    assert shown["timeouts"]["handshake"]  # A default, filled in.
    assert shown["tls"]["certificates"][0] == {"certificate": str(edge.certificate), "key": str(edge.key)}


def test_no_secret_is_shown(gateway: Start, authority: Authority, edge: Pair, tmp_path: Path) -> None:
    """Wherever it came from: the file itself, the environment, another file."""
    hidden = {"one": f"{SECRET}-one", "two": f"{SECRET}-two"}
    routes: list[Settings] = [
        health(),
        {
            "match": {"path": "/keyed", "headers": {"x-api-key": "${API_SECRET}"}},
            "filters": [{"request_headers": {"set": {"authorization": hidden["two"]}}}],
            "respond": {"body": "let in"},
        },
    ]
    admin = {"socket": "admin.sock", "listen": "127.0.0.1:0", "token": hidden["one"]}
    running = gateway(
        configuration([listener(edge, routes=routes)], admin=admin), environment={"API_SECRET": f"{SECRET}-env"}
    )
    with Http1.open(running.address(), authority.certificate) as client:
        assert client.request("/keyed", headers=[("X-Api-Key", f"{SECRET}-env")]).body == b"let in"
    key = edge.key.read_text().splitlines()[1]
    for path in ("/config", "/status", "/certificates", "/connections", "/metrics", "/healthz", "/nowhere"):
        text = running.admin(path)[1].decode()
        assert SECRET not in text, path
        assert key not in text, path
    # Nor in what is said of a configuration that is refused.
    running.write(configuration([listener(edge, routes=[*routes, {"match": {}, "upstream": "no"}])], admin=admin))
    status, body = running.admin("/reload", "POST")
    assert status == 422
    assert SECRET not in body.decode()
    assert SECRET not in json.dumps(running.status())
    assert SECRET not in running.program.log


def test_a_reload_that_is_refused_says_where(running: Gateway, settings: Settings) -> None:
    bad: dict[str, Any] = json.loads(json.dumps(settings))
    bad["listeners"][0]["routes"][1]["upstream"] = "ap"
    running.write(bad)
    status, body = running.admin("/reload", "POST")
    answer = json.loads(body)
    assert (status, answer["ok"]) == (422, False)
    (error,) = answer["report"]["errors"]
    assert (error["code"], error["path"], error["nearest"]) == ("E040", "listeners[0].routes[1].upstream", "app")
    assert error["line"] > 1
    running.apply(settings)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/../status", 404),
        ("POST", "/status", 405),
        ("GET", "/reload", 405),
        ("GET", "/drain", 405),
        ("DELETE", "/config", 405),
        ("HEAD", "/drain", 405),
    ],
)
def test_what_is_not_there(running: Gateway, method: str, path: str, status: int) -> None:
    found, body = running.admin(path, method)
    assert found == status
    if method != "HEAD":
        assert json.loads(body)["ok"] is False
    assert running.status()["state"] == "serving"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /status HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"POST /reload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 1_000_000,
        b"POST /drain HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["line", "tls", "length", "framing", "header", "path", "headers", "body", "chunked", "h2"],
)
def test_nonsense_is_refused(running: Gateway, nonsense: bytes) -> None:
    before, counted = running.program.resident(), running.status()["reloads"]
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(running.socket))
        answer = b""
        try:
            stream.sendall(nonsense)
            while piece := stream.recv(65536):
                answer += piece
        except ConnectionError:
            pass  # It need not hear us out.
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer), answer[:100]
    assert running.status()["state"] == "serving"
    assert running.status()["reloads"] == counted
    assert running.program.resident() - before < 16 << 20


def test_many_clients_at_once(running: Gateway) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for stream in streams:
            stream.settimeout(10)
            stream.connect(str(running.socket))
        for stream in streams:
            assert Http1(stream).request("/readyz").body == b"serving\n"


def test_a_relay_is_among_the_connections(gateway: Start, authority: Authority, edge: Pair, serve: Serve) -> None:
    to = upstream("echo", serve(echo).endpoint)
    protocols = [{"alpn": "echo", "relay": "echo"}]
    running = gateway(configuration([listener(edge, protocols=protocols)], to))
    with connect(running.address(), context(authority.certificate, ["echo"])) as stream:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        (one,) = running.json("/connections")
        assert (one["alpn"], one["client_certificate"]) == ("echo", None)
