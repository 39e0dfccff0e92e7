"""How many requests each client may make of a route, and how large the bodies of one may be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from support import h3
from support.certificates import Authority, Pair
from support.client import Http1, Response, connect, context
from support.gateway import Gateway, Settings, configuration, listener, to_app, upstream
from support.net import eventually
from support.process import output
from support.servers import Reader, Writer, http_head, http_response

from .conftest import EDGE_NAMES, Serve, Start

PROTOCOLS = ["h3", "h2", "http/1.1"]


def limited(path: str, *limits: Settings, **more: Any) -> Settings:
    """A route that answers under `path` by itself."""
    return {"match": {"path": path}, "rate_limits": list(limits), "respond": {"body": "ok"}, **more}


def settings(edge: Pair, *routes: Settings, **more: Any) -> Settings:
    """Two workers, on which a client's connections can end up."""
    log = {"access": {"path": "access.log"}}
    made = configuration([listener(edge, protocols=PROTOCOLS, routes=list(routes), **more)], logging=log)
    return made | {"runtime": {"workers": 2}}


def ask(gateway: Gateway, authority: Authority, path: str, *headers: tuple[str, str], **more: Any) -> Response:
    """One request on a connection of its own."""
    with Http1.open(gateway.address(), authority.certificate) as client:
        return client.request(path, headers=headers, **more)


class TestRates:
    @pytest.mark.needs("curl")
    def test_workers_and_protocols_count_together(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        running = gateway(settings(edge, limited("/", {"key": "source", "per_minute": 1, "burst": 6})))
        url = f"https://localhost:{running.address()[1]}/"

        def curl() -> int:
            words = ["curl", "-sS", "--http2", "--cacert", authority.certificate, "-o", "/dev/null"]
            return int(output([*words, "-w", "%{http_code}", url]))

        ways: list[Callable[[], int]] = [
            lambda: ask(running, authority, "/").status,
            curl,
            lambda: h3.get(running.address(), authority.certificate, "/").status,
        ]
        statuses = [way() for _ in range(4) for way in ways]
        assert statuses == [200] * 6 + [429] * 6

    def test_who_waits_as_long_as_told_is_served(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        running = gateway(settings(edge, limited("/", {"key": "source", "per_second": 1, "burst": 1})))
        with Http1.open(running.address(), authority.certificate) as client:

            def is_refused() -> Response | None:
                answer = client.request("/")
                return answer if answer.status == 429 else None

            refused = eventually(is_refused)
            assert refused is not None
            assert refused.header("retry-after") == "1"
            assert refused.body == b"429 Too Many Requests: rate_limited\n"
            time.sleep(1)
            assert client.request("/").status == 200
        logged = eventually(lambda: [line for line in running.logged() if line.get("reason")])
        assert (logged[0]["status"], logged[0]["reason"], logged[0]["side"]) == (429, "rate_limited", "downstream")

    def test_every_limit_has_to_be_passed(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        by_key = {"key": {"header": "X-Api-Key"}, "per_minute": 2}
        route = limited("/", by_key, {"key": "source", "per_minute": 4})
        running = gateway(settings(edge, route, limited("/free")))
        keys = ["a", "a", "a", "b", "b", "c", "d"]
        statuses = [ask(running, authority, "/", ("x-api-key", key)).status for key in keys]
        assert statuses == [200, 200, 429, 200, 200, 429, 429]
        assert ask(running, authority, "/free").status == 200

    def test_certificates_are_clients(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        tls = {"client_auth": "optional", "client_ca": str(authority.certificate)}
        running = gateway(settings(edge, limited("/", {"key": "client_certificate", "per_minute": 2}), tls=tls))
        devices = [authority.issue(name, EDGE_NAMES, common_name=name, client=True) for name in ("one", "two")]

        def status(device: Pair | None) -> int:
            stream = connect(running.address(), context(authority.certificate, identity=device))
            with Http1(stream) as client:
                return client.request("/").status

        for client in [*devices, None]:
            assert [status(client) for _ in range(3)] == [200, 200, 429]

    def test_a_reload_does_not_start_anew(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        limit = {"key": "source", "per_minute": 1, "burst": 2}
        running = gateway(settings(edge, limited("/", limit)))
        assert [ask(running, authority, "/").status for _ in range(3)] == [200, 200, 429]
        running.apply(settings(edge, limited("/", limit), limited("/new")))
        assert ask(running, authority, "/new").status == 200
        assert ask(running, authority, "/").status == 429
        running.apply(settings(edge, limited("/", limit | {"burst": 3})))
        assert [ask(running, authority, "/").status for _ in range(4)] == [200, 200, 200, 429]

    def test_grpc_clients_are_told_in_their_words(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        grpc: Any = pytest.importorskip("grpc", reason="grpcio is missing: pip install grpcio")
        running = gateway(settings(edge, limited("/talk/Once", {"key": "source", "per_minute": 1})))
        assert ask(running, authority, "/talk/Once").status == 200
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{running.address()[1]}", credentials) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/talk/Once")(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "rate_limited"
            assert ("retry-after", "60") in refused.value.initial_metadata() + refused.value.trailing_metadata()


async def sized(reader: Reader, writer: Writer) -> None:
    """Answers with as many bytes as the path says, announced or in chunks."""
    while (head := await http_head(reader)) is not None:
        _, path, _ = head[0].split(" ")
        shape, _, length = path.strip("/").partition("/")
        body = b"x" * int(length)
        if shape == "announced":
            writer.write(http_response("200 OK", body))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        await writer.drain()


class TestSizes:
    def test_requests(self, gateway: Start, edge: Pair, authority: Authority) -> None:
        upload = {"match": {"path": "/upload"}, "limits": {"request_body_size": "8KiB"}, "respond": {"body": "ok"}}
        rest = {"match": {"path_prefix": "/"}, "respond": {"body": "ok"}}
        running = gateway(settings(edge, upload, rest, limits={"request_body_size": "1KiB"}))
        sizes = [("/", 1024), ("/", 1025), ("/upload", 8192), ("/upload", 8193)]
        statuses = [ask(running, authority, path, method="POST", body=b"x" * size).status for path, size in sizes]
        assert statuses == [200, 413, 200, 413]

    def test_responses(self, gateway: Start, edge: Pair, authority: Authority, serve: Serve) -> None:
        route = to_app(limits={"response_body_size": "1KiB"})
        made = settings(edge, route)
        running = gateway(made | {"upstreams": [upstream("app", serve(sized).endpoint)]})
        for shape in ("announced", "chunked"):
            assert len(ask(running, authority, f"/{shape}/1024").body) == 1024
        refused = ask(running, authority, "/announced/1025", ("accept", "application/json"))
        assert refused.status == 502
        assert json.loads(refused.body) == {"status": 502, "reason": "response_too_large"}
        cut = h3.get(running.address(), authority.certificate, "/chunked/1025")
        assert (cut.body, cut.ended, cut.reset) == (b"", False, h3.INTERNAL_ERROR)
