"""Requests whose meaning two servers could read differently: refused, and never seen by the upstream."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import pytest

from support.certificates import Authority, Pair
from support.client import Http1
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.net import eventually
from support.servers import Loop, Reader, Server, Writer, http_response

from .conftest import Start


class Recorder:
    """An upstream that keeps every byte it gets, and answers whatever ends in an empty line."""

    def __init__(self) -> None:
        self.bytes = b""

    async def serve(self, reader: Reader, writer: Writer) -> None:
        while piece := await reader.read(65536):
            self.bytes += piece
            if b"\r\n\r\n" in piece:
                writer.write(http_response("200 OK", b"upstream"))
                await writer.drain()


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, loop: Loop, recorder: Recorder) -> Gateway:
    app = Server(loop, recorder.serve)
    return shared_gateway(configuration([listener(edge, routes=[health(), to_app()])], upstream("app", app.endpoint)))


@pytest.fixture
def client(gateway: Gateway, authority: Authority) -> Iterator[Http1]:
    with Http1.open(gateway.address(), authority.certificate) as client:
        yield client


HOST = b"Host: localhost\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST
BODY = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"

REFUSED = {
    "length and chunked": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + BODY,
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 6\r\n\r\nabcdef",
    "two lengths in one": POST + b"Content-Length: 4, 6\r\n\r\nabcdef",
    "a signed length": POST + b"Content-Length: +4\r\n\r\nabcd",
    "a negative length": POST + b"Content-Length: -4\r\n\r\nabcd",
    "a length in hex": POST + b"Content-Length: 0x4\r\n\r\nabcd",
    "a huge length": POST + b"Content-Length: 99999999999999999999\r\n\r\nabcd",
    "an empty length": POST + b"Content-Length:\r\n\r\nabcd",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
    "gzip last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + BODY,
    "a misspelt coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY,
    "a coding with a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + BODY,
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + BODY,
    "a folded header": POST + b"X-Folded: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd",
    "a bare CR": POST + b"X-Bare: a\rTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "a NUL": POST + b"X-Nul: a\x00b\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other.test\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: localhost/../x\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: user@localhost\r\n\r\n",
    "another authority": b"GET https://other.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path above the root": b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "an encoded path above the root": b"GET /%2e%2e/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "no header name": b"GET / HTTP/1.1\r\n" + HOST + b": value\r\n\r\n",
    "not HTTP": b"\x00\x01\x02\x03\x04\x05\x06\x07\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED.keys())
def test_refused(client: Http1, gateway: Gateway, recorder: Recorder, request_bytes: bytes) -> None:
    before = recorder.bytes
    client.send(request_bytes)
    response = client.response()
    assert response.status == 400, response
    assert response.header("connection") == "close"
    assert client.closed(), "what follows must not be read as a request"
    assert recorder.bytes == before, "the upstream saw some of it"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/3.7\r\n" + HOST + b"\r\n", 505),
        (b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (POST + b"Expect: a miracle\r\nContent-Length: 1\r\n\r\na", 417),
    ],
)
def test_refused_with_a_word_of_its_own(client: Http1, recorder: Recorder, request_bytes: bytes, status: int) -> None:
    before = recorder.bytes
    client.send(request_bytes)
    assert client.response().status == status
    assert recorder.bytes == before


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\nab\r\n0\r\n\r\n",
        b"-1\r\nab\r\n0\r\n\r\n",
        b"0x2\r\nab\r\n0\r\n\r\n",
        b"2\r\nabXX0\r\n\r\n",
        b"fffffffffffffffff\r\nab",
        b"\r\n\r\n",
        b"2 \r\nab\r\n0\r\n\r\n",
        b"2\nab\n0\n\n",
    ],
)
def test_malformed_chunks_never_complete(client: Http1, recorder: Recorder, chunks: bytes) -> None:
    """The head has gone upstream by then; the body must not end there as if it were whole."""
    before = len(recorder.bytes)
    client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
    client.stream.settimeout(3)
    try:
        answers = client.rest()
    except (TimeoutError, ConnectionResetError, ssl.SSLError):
        answers = b""
    assert answers.count(b"HTTP/1.1 ") <= 1
    assert b"HTTP/1.1 200" not in answers or b"upstream" in answers
    time.sleep(0.1)
    passed_on = recorder.bytes[before:]
    assert b"smuggled" not in passed_on
    assert b"0\r\n\r\n" not in passed_on


def test_the_same_length_twice_is_one(client: Http1, recorder: Recorder) -> None:
    """RFC 9110, section 8.6, lets a recipient take it as one or refuse it; never pass both on."""
    before = len(recorder.bytes)
    client.send(POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd")
    assert client.response().status in (200, 400)
    assert recorder.bytes[before:].lower().count(b"content-length") <= 1


def test_refusals_are_counted_by_reason(gateway: Gateway, authority: Authority) -> None:
    before = gateway.metric("mitu_http_errors_total", side="downstream", reason="ambiguous_framing")
    with Http1.open(gateway.address(), authority.certificate) as client:
        client.send(REFUSED["length and chunked"])
        client.response()
    eventually(
        lambda: gateway.metric("mitu_http_errors_total", side="downstream", reason="ambiguous_framing") == before + 1
    )
