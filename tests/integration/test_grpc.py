"""gRPC through the gateway: grpcio's client and server, every shape of call; and gRPC-Web to the same server."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.build import talk_stubs
from support.certificates import Authority, Pair
from support.client import Http1, Response
from support.gateway import Gateway, configuration, listener, to_app, upstream
from support.net import eventually, free_port
from support.process import output

from .conftest import Start

grpc: Any = pytest.importorskip("grpc", reason="grpcio is missing: pip install grpcio grpcio-tools")
pytest.importorskip("grpc_tools", reason="grpcio-tools is missing: pip install grpcio-tools")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, ModuleType]:
    return talk_stubs(tmp_path_factory.mktemp("stubs"))


class Calls:
    """The service's side of the calls; `cancelled` is set when a client gives up, `go_on` by the test."""

    def __init__(self, words: Any) -> None:
        self.words = words
        self.cancelled = threading.Event()
        self.go_on = threading.Event()

    def once(self, request: Any, context: Any) -> Any:
        if request.text == "fail":
            context.set_trailing_metadata([("reason-detail", "asked for"), ("reason-bin", b"\x00\xff")])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "failed: as asked")
        if request.text == "slow":
            context.add_callback(self.cancelled.set)
            # Long after its client has given up, unless it is told.
            self.cancelled.wait(20)
        if request.text == "left":
            return self.words(text=str(context.time_remaining()))
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata([("seen-by-server", sent.get("sent-by-client", ""))])
        digest = hashlib.sha256(request.payload).hexdigest()
        return self.words(text=f"{request.text}/{digest}", payload=request.payload)

    def down(self, request: Any, context: Any) -> Iterator[Any]:
        for number in range(int(request.text)):
            yield self.words(text=str(number), payload=request.payload)
            if request.payload == b"wait":
                assert self.go_on.wait(20)
        if request.payload == b"fail":
            context.abort(grpc.StatusCode.DATA_LOSS, "failed: after all of it")

    def up(self, requests: Iterator[Any], context: Any) -> Any:
        taken = []
        for one in requests:
            taken.append((one.text, len(one.payload)))
            if one.text == "enough":
                break
        return self.words(text=f"{len(taken)} {sum(size for _, size in taken)} {taken[-1][0]}")

    def both(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(self.cancelled.set)
        for request in requests:
            yield self.words(text=request.text[::-1])


class Service:
    """A grpcio server in the clear, as upstreams behind a gateway are."""

    def __init__(self, stubs: tuple[ModuleType, ModuleType]) -> None:
        messages, services = stubs
        self.calls = Calls(messages.Words)
        names = {"Once": "once", "Down": "down", "Up": "up", "Both": "both"}
        servicer = type("Servicer", (services.TalkServicer,), {})()
        for name, method in names.items():
            setattr(servicer, name, getattr(self.calls, method))
        self.server = grpc.server(ThreadPoolExecutor(16))
        services.add_TalkServicer_to_server(servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()


@pytest.fixture(scope="module")
def service(stubs: tuple[ModuleType, ModuleType]) -> Iterator[Service]:
    service = Service(stubs)
    yield service
    service.server.stop(None).wait()


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, service: Service) -> Gateway:
    routes = [
        to_app(upstream="talk", match={"path_prefix": "/talk.Talk"}, filters=[{"grpc_web": True}], timeout="30s"),
        to_app(upstream="nobody", match={"path_prefix": "/talk.Nobody"}),
        to_app(
            upstream="talk",
            match={"path_prefix": "/talk.Late"},
            filters=[{"rewrite": {"prefix": "/talk.Talk"}}],
            timeout="200ms",
        ),
    ]
    upstreams = [
        upstream("talk", f"127.0.0.1:{service.port}", protocol="h2"),
        upstream("nobody", f"127.0.0.1:{free_port()}", protocol="h2"),
    ]
    return shared_gateway(configuration([listener(edge, routes=routes)], *upstreams))


@pytest.fixture(scope="module")
def channel(gateway: Gateway, authority: Authority) -> Iterator[Any]:
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{gateway.address()[1]}", credentials) as channel:
        yield channel


@pytest.fixture(scope="module")
def talk(channel: Any, stubs: tuple[ModuleType, ModuleType]) -> Any:
    return stubs[1].TalkStub(channel)


@pytest.fixture(scope="module")
def words(stubs: tuple[ModuleType, ModuleType]) -> Any:
    return stubs[0].Words


def test_unary(talk: Any, words: Any) -> None:
    payload = os.urandom(2 << 20)
    answer, call = talk.Once.with_call(words(text="hi", payload=payload), metadata=[("sent-by-client", "value")])
    assert answer.text == f"hi/{hashlib.sha256(payload).hexdigest()}"
    assert answer.payload == payload
    assert ("seen-by-server", "value") in [tuple(item) for item in call.initial_metadata()]
    assert call.code() == grpc.StatusCode.OK


def test_server_streaming(talk: Any, words: Any) -> None:
    received = list(talk.Down(words(text="500", payload=b"x" * 10_000)))
    assert [one.text for one in received] == [str(number) for number in range(500)]
    assert all(one.payload == b"x" * 10_000 for one in received)


def test_client_streaming(talk: Any, words: Any) -> None:
    answer = talk.Up(words(text=str(number), payload=b"y" * 10_000) for number in range(500))
    assert answer.text == "500 5000000 499"


def test_an_answer_may_come_before_the_last_question(talk: Any, words: Any) -> None:
    end, waited = threading.Event(), list[bool]()

    def speak() -> Iterator[Any]:
        yield words(text="first")
        yield words(text="enough")
        waited.append(end.wait(30))

    assert talk.Up(speak()).text == "2 0 enough"
    assert waited == [], "the answer was held back until the client had nothing more to say"
    end.set()


def test_bidirectional_streaming_is_a_conversation(talk: Any, words: Any) -> None:
    said: list[str] = []
    turn = threading.Semaphore(1)

    def speak() -> Iterator[Any]:
        # Each question waits for the answer to the last: nothing may be held back on the way.
        for text in ("one", "two", "three"):
            turn.acquire()
            yield words(text=text)

    for answer in talk.Both(speak(), timeout=10):
        said.append(answer.text)
        turn.release()
    assert said == ["eno", "owt", "eerht"]


def test_many_calls_at_once(talk: Any, words: Any) -> None:
    calls = [talk.Once.future(words(text=str(number))) for number in range(300)]
    texts = [call.result(20).text.partition("/")[0] for call in calls]
    assert texts == [str(number) for number in range(300)]


def test_error_with_trailers(talk: Any, words: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        talk.Once(words(text="fail"))
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "failed: as asked")
    trailers = dict(error.trailing_metadata())
    assert trailers["reason-detail"] == "asked for"
    assert trailers["reason-bin"] == b"\x00\xff"
    assert tuple(error.initial_metadata()) == (), "the status is all there is"


def test_error_behind_messages(talk: Any, words: Any) -> None:
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        for one in talk.Down(words(text="3", payload=b"fail")):
            received.append(one.text)
    error: Any = caught.value
    assert received == ["0", "1", "2"]
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "failed: after all of it")


def test_deadline_is_passed_on(talk: Any, words: Any) -> None:
    # gRPC rounds what it sends, upwards.
    assert 10 < float(talk.Once(words(text="left"), timeout=20).text) < 25
    # Without one, grpcio tells of ages.
    assert float(talk.Once(words(text="left")).text) > 1e9, "the gateway made one up"


def test_deadline_reaches_the_server(talk: Any, words: Any, service: Service) -> None:
    service.calls.cancelled.clear()
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        talk.Once(words(text="slow"), timeout=0.3)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 8
    assert service.calls.cancelled.wait(10), "the server was not told"


def test_deadline_ends_a_conversation(talk: Any, words: Any, service: Service) -> None:
    service.calls.cancelled.clear()
    end = threading.Event()

    def speak() -> Iterator[Any]:
        yield words(text="first")
        end.wait(10)

    received = []
    with pytest.raises(grpc.RpcError) as caught:
        for one in talk.Both(speak(), timeout=3):
            received.append(one.text)
    error: Any = caught.value
    end.set()
    assert received == ["tsrif"]
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.calls.cancelled.wait(10), "the server was not told"


def test_timeout_of_the_route(channel: Any, stubs: tuple[ModuleType, ModuleType], service: Service) -> None:
    messages, _ = stubs
    service.calls.cancelled.clear()
    call = channel.unary_unary(
        "/talk.Late/Once",
        request_serializer=messages.Words.SerializeToString,
        response_deserializer=messages.Words.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(messages.Words(text="slow"))
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "response_timeout")
    assert service.calls.cancelled.wait(10), "the server was not told"


def test_cancel_reaches_the_server(talk: Any, words: Any, service: Service) -> None:
    service.calls.cancelled.clear()
    end = threading.Event()

    def speak() -> Iterator[Any]:
        yield words(text="first")
        end.wait(10)

    call = talk.Both(speak())
    assert next(call).text == "tsrif"
    call.cancel()
    assert service.calls.cancelled.wait(10), "the server was not told"
    end.set()


def test_unknown_method_is_the_servers_answer(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/talk.Talk/Nothing")(b"")
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("method", "code", "details"),
    [
        ("/talk.Nobody/Once", "UNAVAILABLE", "connect_refused"),
        ("/nowhere/Once", "UNIMPLEMENTED", "no_route"),
    ],
)
def test_failures_of_the_gateway_are_grpc_statuses(channel: Any, method: str, code: str, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"")
    error: Any = caught.value
    assert (error.code().name, error.details()) == (code, details)
    assert tuple(error.initial_metadata()) == (), "the status is all there is"


def test_all_calls_share_pooled_connections(gateway: Gateway, talk: Any, words: Any) -> None:
    before = gateway.metric("mitu_upstream_connects_total", upstream="talk")
    for _ in range(50):
        talk.Once(words(text="again"))
    assert gateway.metric("mitu_upstream_connects_total", upstream="talk") <= before + 1
    assert eventually(lambda: gateway.metric("mitu_upstream_requests_active", upstream="talk") == 0)


TRAILERS = 0x80
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text+proto"


def framed(message: bytes) -> bytes:
    return struct.pack("!BI", 0, len(message)) + message


class Web:
    """What a script in a browser can do: one request with a body, and a response's headers and body."""

    def __init__(self, gateway: Gateway, authority: Authority, words: Any, form: str) -> None:
        self.address, self.ca, self.words, self.form = gateway.address(), authority.certificate, words, form
        # The server of grpcio says no more than `application/grpc`.
        self.answered = form.removesuffix("+proto")

    def body(self, *messages: Any) -> bytes:
        frames = [framed(one.SerializeToString()) for one in messages]
        return b"".join(map(base64.b64encode if self.form == TEXT else bytes, frames))

    def read(self, body: bytes) -> tuple[list[Any], dict[str, str]]:
        """Messages and trailers, as far as they are whole."""
        if self.form == TEXT:
            # Each piece is padded by itself.
            body = b"".join(base64.b64decode(one) for one in re.findall(rb"[^=]+=*", body))
        messages: list[Any] = []
        trailers: dict[str, str] = {}
        while len(body) >= 5:
            kind, length = struct.unpack("!BI", body[:5])
            frame, body = body[5 : 5 + length], body[5 + length :]
            assert not trailers, "a frame behind the trailers"
            if kind == TRAILERS:
                lines = frame.decode().splitlines()
                trailers = dict(line.split(": ", 1) for line in lines)
            else:
                assert kind == 0
                messages.append(self.words.FromString(frame))
        assert not body
        return messages, trailers

    def request(self, method: str, body: bytes, *headers: tuple[str, str]) -> bytes:
        fields = [("Host", "localhost"), ("Content-Type", self.form), ("Content-Length", f"{len(body)}"), *headers]
        head = f"POST {method} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        return head.encode() + b"\r\n" + body

    def ask(self, method: str, body: bytes, *headers: tuple[str, str]) -> Response:
        with Http1.open(self.address, self.ca) as client:
            client.send(self.request(method, body, *headers))
            return client.response("POST")


@pytest.fixture(params=[BINARY, TEXT])
def web(request: pytest.FixtureRequest, gateway: Gateway, authority: Authority, words: Any) -> Web:
    return Web(gateway, authority, words, request.param)


class TestWeb:
    def test_unary(self, web: Web) -> None:
        payload = os.urandom(1 << 20)
        body = web.body(web.words(text="hi", payload=payload))
        response = web.ask("/talk.Talk/Once", body, ("sent-by-client", "value"))
        assert (response.status, response.header("content-type")) == (200, web.answered)
        assert response.header("seen-by-server") == "value"
        assert response.header("content-length") is None
        (answer,), trailers = web.read(response.body)
        assert (answer.text, answer.payload) == (f"hi/{hashlib.sha256(payload).hexdigest()}", payload)
        assert trailers["grpc-status"] == "0"
        assert not response.trailers

    def test_server_streaming(self, web: Web) -> None:
        response = web.ask("/talk.Talk/Down", web.body(web.words(text="500", payload=b"x" * 1_000)))
        messages, trailers = web.read(response.body)
        assert [one.text for one in messages] == [str(number) for number in range(500)]
        assert trailers["grpc-status"] == "0"

    def test_messages_come_when_they_are_sent(self, web: Web, service: Service) -> None:
        service.calls.go_on.clear()
        with Http1.open(web.address, web.ca) as client:
            client.send(web.request("/talk.Talk/Down", web.body(web.words(text="2", payload=b"wait"))))
            assert client.head().status == 200
            (first,), trailers = web.read(next(client.chunks()))
            assert (first.text, trailers) == ("0", {})
            service.calls.go_on.set()

    def test_an_error(self, web: Web) -> None:
        response = web.ask("/talk.Talk/Once", web.body(web.words(text="fail")))
        messages, trailers = web.read(response.body)
        # A server that has only trailers to say says it in headers.
        said = {name.lower(): value for name, value in response.headers} | trailers
        assert (messages, said["grpc-status"], said["grpc-message"]) == ([], "9", "failed: as asked")
        assert (said["reason-detail"], response.header("content-type")) == ("asked for", web.answered)

    def test_a_deadline(self, web: Web, service: Service) -> None:
        service.calls.cancelled.clear()
        response = web.ask("/talk.Talk/Once", web.body(web.words(text="slow")), ("grpc-timeout", "300m"))
        _, trailers = web.read(response.body)
        assert (trailers.get("grpc-status") or response.header("grpc-status")) == "4"
        assert service.calls.cancelled.wait(10), "the server was not told"

    def test_a_failure_of_the_gateway(self, web: Web) -> None:
        response = web.ask("/talk.Nobody/Once", web.body(web.words(text="hi")))
        assert (response.status, response.header("content-type"), response.body) == (200, BINARY, b"")
        assert (response.header("grpc-status"), response.header("grpc-message")) == ("14", "connect_refused")


def test_what_is_no_base64_is_refused(gateway: Gateway, authority: Authority, words: Any) -> None:
    web = Web(gateway, authority, words, TEXT)
    for body in (b"AAAA*AAA", web.body(words(text="hi"))[:-3]):
        response = web.ask("/talk.Talk/Once", body)
        assert (response.header("grpc-status"), response.header("grpc-message")) == ("13", "bad_body")


def test_curl_over_h2(gateway: Gateway, authority: Authority, words: Any, tmp_path: Path) -> None:
    web = Web(gateway, authority, words, TEXT)
    sent = tmp_path / "body"
    sent.write_bytes(web.body(words(text="hi")))
    url = f"https://localhost:{gateway.address()[1]}/talk.Talk/Once"
    flags = ("-sS", "--http2", "--cacert", authority.certificate, "-H", f"Content-Type: {TEXT}")
    body = output(["curl", *flags, "--data-binary", f"@{sent}", url])
    (answer,), trailers = web.read(body.encode())
    assert (answer.text.partition("/")[0], trailers["grpc-status"]) == ("hi", "0")
