"""The check `grpc`, of grpcio's server; and HTTP/2 that no server can be made to speak."""

from __future__ import annotations

import importlib
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived

from integration.conftest import Serve
from mitu.discovery.checks import Check, Verdict
from support.certificates import Authority, Pair
from support.servers import Reader, Writer

from .checked_servers import settings, trusting

grpc: Any = pytest.importorskip("grpc", reason="grpcio is missing: pip install grpcio grpcio-tools")
pytest.importorskip("grpc_tools", reason="grpcio-tools is missing: pip install grpcio-tools")

GOOD = Verdict(True)


def bad(reason: str) -> Verdict:
    return Verdict(False, reason)


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The protocol's messages, as protoc makes them."""
    folder = tmp_path_factory.mktemp("stubs")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={here}", f"--python_out={folder}"]
    subprocess.run([*command, "health.proto"], check=True)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("health_pb2")
    finally:
        sys.path.remove(str(folder))


class Service:
    """A gRPC server in the clear and over TLS, with the health service and one that has none."""

    def __init__(self, messages: Any, pair: Pair) -> None:
        self.messages = messages
        self.statuses: dict[str, int] = {"": 1, "shop.Cart": 1, "shop.Pay": 2, "shop.New": 0, "ä" * 200: 1}
        self.seconds_left: list[float] = []
        handler = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=messages.HealthCheckRequest.FromString,
            response_serializer=messages.HealthCheckResponse.SerializeToString,
        )
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
        self.server, self.without = (grpc.server(ThreadPoolExecutor(4)) for _ in range(2))
        self.server.add_generic_rpc_handlers((health,))
        self.plain = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        files = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
        credentials = grpc.ssl_server_credentials(files)
        self.secure = f"127.0.0.1:{self.server.add_secure_port('127.0.0.1:0', credentials)}"
        self.none = f"127.0.0.1:{self.without.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.without.start()

    def _check(self, request: Any, context: Any) -> Any:
        self.seconds_left.append(context.time_remaining())
        if request.service == "shop.Down":
            context.abort(grpc.StatusCode.UNAVAILABLE, "down: as asked\nfor")
        if request.service not in self.statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self.messages.HealthCheckResponse(status=self.statuses[request.service])

    def stop(self) -> None:
        for server in (self.server, self.without):
            server.stop(None).wait()


@pytest.fixture(scope="module")
def service(messages: Any, edge: Pair) -> Iterator[Service]:
    service = Service(messages, edge)
    yield service
    service.stop()


class TestServices:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("", GOOD),
            ("shop.Cart", GOOD),
            ("ä" * 200, GOOD),
            ("shop.Pay", bad("not serving")),
            ("shop.New", bad("unknown")),
            ("shop.Nothing", bad("the service is not known to the server")),
            ("shop.Down", bad("grpc status unavailable")),
        ],
    )
    async def test_what_it_says(self, service: Service, authority: Authority, name: str, expected: Verdict) -> None:
        assert await Check(settings("grpc", service=name)).run(service.plain) == expected
        check = Check(settings("grpc", service=name), tls=trusting(authority))
        assert await check.run(service.secure) == expected

    async def test_a_server_without_the_service(self, service: Service) -> None:
        assert await Check(settings("grpc")).run(service.none) == bad("the server has no health service")

    async def test_it_knows_how_long_it_has(self, service: Service) -> None:
        service.seconds_left.clear()
        assert await Check(settings("grpc", timeout="30s")).run(service.plain) == GOOD
        (left,) = service.seconds_left
        assert 20 < left <= 30


class Scripted:
    """Answers each request with what `script` makes the connection send, then with `raw` bytes."""

    def __init__(self, script: Callable[[H2Connection], None], raw: bytes = b"") -> None:
        self._script, self._raw = script, raw

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        while piece := await reader.read(65536):
            events = connection.receive_data(piece)
            if any(isinstance(event, RequestReceived) for event in events):
                self._script(connection)
                writer.write(connection.data_to_send() + self._raw)
            writer.write(connection.data_to_send())
            await writer.drain()


def answer(body: bytes, status: str = "0") -> Callable[[H2Connection], None]:
    def send(connection: H2Connection) -> None:
        connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        for at in range(0, len(body), 16384):
            connection.send_data(1, body[at : at + 16384])
        connection.send_headers(1, [("grpc-status", status)], end_stream=True)

    return send


def framed(message: bytes) -> bytes:
    return struct.pack("!BI", 0, len(message)) + message


BODIES = {
    framed(b"\x08\x01"): "",
    # Fields of every other kind, and the first one twice: the last counts.
    framed(b"\x08\x02\x12\x03abc\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x30\x81\x01\x08\x01"): "",
    framed(b"\x08\x07"): "serving status 7",
    framed(b"\x08\x03"): "service unknown",
    framed(b""): "unknown",
    b"": "not a health answer",
    b"\x00\x00\x00": "not a health answer",
    b"\x01" + framed(b"\x08\x01")[1:]: "not a health answer",
    framed(b"\x08\x01") * 2: "not a health answer",
    framed(b"\x08"): "not a health answer",
    framed(b"\x08" + b"\xff" * 11): "not a health answer",
    framed(b"\x12\x7fabc"): "not a health answer",
    framed(b"\x0b"): "not a health answer",
    framed(bytes(60_000)): "its answer is too long",
}


class TestOddAnswers:
    @pytest.mark.parametrize(("body", "reason"), BODIES.items(), ids=range(len(BODIES)))
    async def test_messages(self, serve: Serve, body: bytes, reason: str) -> None:
        verdict = await Check(settings("grpc")).run(serve(Scripted(answer(body))).endpoint)
        assert verdict == Verdict(not reason, reason)

    @pytest.mark.parametrize(
        ("status", "reason"), [("7", "permission denied"), ("99", "99"), ("-1", ""), ("1e3", ""), ("", "")]
    )
    async def test_statuses(self, serve: Serve, status: str, reason: str) -> None:
        server = serve(Scripted(answer(framed(b"\x08\x01"), status)))
        expected = f"grpc status {reason}" if reason else "not gRPC"
        assert await Check(settings("grpc")).run(server.endpoint) == bad(expected)

    @pytest.mark.parametrize("kind", ["grpc", "http"])
    async def test_a_server_that_speaks_http_1_alone(self, serve: Serve, kind: str) -> None:
        async def refuse(reader: Reader, writer: Writer) -> None:
            await reader.read(65536)
            writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\n\r\n")

        check = Check(settings(kind), protocol="h2")
        assert await check.run(serve(refuse).endpoint) == bad("not HTTP/2")

    async def test_an_answer_that_is_only_http(self, serve: Serve) -> None:
        def refuse(connection: H2Connection) -> None:
            connection.send_headers(1, [(":status", "404")], end_stream=True)

        assert await Check(settings("grpc")).run(serve(Scripted(refuse)).endpoint) == bad("status 404")

    @pytest.mark.parametrize("kind", ["grpc", "http"])
    async def test_a_reset(self, serve: Serve, kind: str) -> None:
        server = serve(Scripted(lambda connection: connection.reset_stream(1, ErrorCodes.REFUSED_STREAM)))
        check = Check(settings(kind), protocol="h2")
        assert await check.run(server.endpoint) == bad("stream reset: refused stream")

    @pytest.mark.parametrize("kind", ["grpc", "http"])
    async def test_an_end_of_the_connection(self, serve: Serve, kind: str) -> None:
        server = serve(Scripted(lambda connection: connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)))
        check = Check(settings(kind), protocol="h2")
        assert await check.run(server.endpoint) == bad("connection ended: enhance your calm")

    async def test_an_end_behind_the_answer_is_none_of_its_business(self, serve: Serve) -> None:
        def send(connection: H2Connection) -> None:
            answer(framed(b"\x08\x01"))(connection)
            connection.close_connection()

        server = serve(Scripted(send))
        assert await Check(settings("grpc")).run(server.endpoint) == GOOD
        assert await Check(settings("http"), protocol="h2").run(server.endpoint) == GOOD

    async def test_nothing_may_be_pushed(self, serve: Serve) -> None:
        allowed: list[int] = []

        def send(connection: H2Connection) -> None:
            allowed.append(connection.remote_settings.enable_push)
            answer(framed(b"\x08\x01"))(connection)

        assert await Check(settings("grpc")).run(serve(Scripted(send)).endpoint) == GOOD
        assert allowed == [0]

    @pytest.mark.parametrize("kind", ["grpc", "http"])
    async def test_pings_without_end(self, serve: Serve, kind: str) -> None:
        pings = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
        server = serve(Scripted(lambda _: None, pings * 100_000))
        check = Check(settings(kind), protocol="h2")
        assert await check.run(server.endpoint) == bad("its answer is too long")

    async def test_bytes_that_were_changed_on_their_way(self, serve: Serve) -> None:
        whole = bytearray()

        def keep(connection: H2Connection) -> None:
            answer(framed(b"\x08\x01"))(connection)
            whole.extend(connection.data_to_send())

        chance = random.Random(6)  # noqa: S311 - the same each time

        async def change(reader: Reader, writer: Writer) -> None:
            await reader.read(65536)
            changed = bytearray(whole)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            writer.write(changed)

        recorded = Check(settings("grpc", timeout="1s"))
        # What h2 writes for this answer, once.
        await recorded.run(serve(Scripted(keep)).endpoint)
        assert len(whole) > 50
        server = serve(change)
        check = Check(settings("grpc"))
        verdicts = [await check.run(server.endpoint) for _ in range(300)]
        assert any(verdict.good for verdict in verdicts), "some bytes do not matter"
        reasons = {verdict.reason for verdict in verdicts if not verdict.good}
        assert "not HTTP/2" in reasons
        assert all(reason.isprintable() and 0 < len(reason) <= 120 for reason in reasons)
