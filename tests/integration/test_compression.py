"""Responses that are compressed on their way: which, how, and that nobody waits for what is there."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from support import h3
from support.certificates import Authority, Pair
from support.client import Http1, Response
from support.gateway import Gateway, Settings, configuration, health, listener, to_app, upstream
from support.process import output, run
from support.servers import Loop, Reader, Server, Writer, http_head, http_response

from .conftest import Start

PROTOCOLS = ["h3", "h2", "http/1.1"]
WORDS = " ".join(str(number * 2654435761 % 4294967296) for number in range(20_000)).encode()
LARGE = 64 << 20
ROOM = 32 << 20
EVENTS = 5

DECODE: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "br": brotli.decompress,
    "gzip": gzip.decompress,
}


def decoder(encoding: str) -> Callable[[bytes], bytes]:
    """Turns what has come of a stream into what can be read of it."""
    made: Any
    if encoding == "br":
        made = brotli.Decompressor()
        return lambda data: bytes(made.process(data))
    made = zstandard.ZstdDecompressor().decompressobj() if encoding == "zstd" else zlib.decompressobj(wbits=31)
    return lambda data: bytes(made.decompress(data))


async def site(reader: Reader, writer: Writer) -> None:
    """Answers with every kind of body, and says what it was asked."""
    while (head := await http_head(reader)) is not None:
        method, path, _ = head[0].split(" ")
        text = ("Content-Type", "text/plain; charset=utf-8")
        if path == "/words":
            response = http_response("200 OK", WORDS, text, ("ETag", '"words"'), ("Accept-Ranges", "bytes"))
            writer.write(response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else response)
        elif path == "/small":
            writer.write(http_response("200 OK", b"x" * 1023, text))
        elif path == "/picture":
            writer.write(http_response("200 OK", WORDS, ("Content-Type", "image/png")))
        elif path == "/encoded":
            writer.write(http_response("200 OK", gzip.compress(WORDS), text, ("Content-Encoding", "gzip")))
        elif path == "/as-it-is":
            writer.write(http_response("200 OK", WORDS, text, ("Cache-Control", "no-transform")))
        elif path == "/part":
            writer.write(http_response("206 Partial Content", WORDS, text, ("Content-Range", "bytes 0-1/2")))
        elif path == "/nothing":
            writer.write(b"HTTP/1.1 204 No Content\r\nContent-Type: text/plain\r\n\r\n")
        elif path == "/not-modified":
            writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "words"\r\n\r\n')
        elif path == "/trailers":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\nX-Sum: 7\r\n\r\n" % (len(WORDS), WORDS))
        elif path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n" + WORDS)
            await writer.drain()
            return
        elif path == "/large":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % LARGE)
            for _ in range(LARGE // 65536):
                writer.write(WORDS[:65536])
                await writer.drain()
        elif path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(EVENTS):
                event = f"data: {number}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                # The next one comes when the client has told that it has read this one.
                await asyncio.wait_for(TOLD.setdefault(number, asyncio.Event()).wait(), 60)
            writer.write(b"0\r\n\r\n")
        elif path.startswith("/told/"):
            TOLD.setdefault(int(path.rpartition("/")[2]), asyncio.Event()).set()
            writer.write(http_response("200 OK"))
        elif path == "/forget":
            TOLD.clear()
            writer.write(http_response("200 OK"))
        else:
            writer.write(http_response("200 OK", json.dumps(head[1]).encode() + b" " * 2000, text))
        await writer.drain()


TOLD: dict[int, asyncio.Event] = {}


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, loop: Loop) -> Gateway:
    gzip_only = {"encodings": ["gzip"], "min_size": "4KiB", "types": ["image/png"]}
    routes: list[Settings] = [
        health(),
        to_app(match={"path": "/raw"}),
        to_app(match={"path": "/picture"}, compress=gzip_only),
        to_app(compress=True),
    ]
    listeners = [listener(edge, protocols=PROTOCOLS, routes=routes)]
    return shared_gateway(configuration(listeners, upstream("app", Server(loop, site).endpoint)))


@pytest.fixture
def client(gateway: Gateway, authority: Authority) -> Iterator[Http1]:
    with Http1.open(gateway.address(), authority.certificate) as client:
        yield client


def get(client: Http1, path: str, accept: str = "gzip", method: str = "GET", *more: tuple[str, str]) -> Response:
    return client.request(path, method=method, headers=[("Accept-Encoding", accept), *more])


class TestEncodings:
    @pytest.mark.needs("curl")
    @pytest.mark.parametrize("encoding", DECODE)
    @pytest.mark.parametrize("version", ["--http1.1", "--http2"])
    def test_curl(self, gateway: Gateway, authority: Authority, version: str, encoding: str) -> None:
        words = ["curl", "-sS", version, "--cacert", authority.certificate, "--compressed"]
        words += ["-H", f"Accept-Encoding: {encoding}", "-w", "\n%{size_download} %header{content-encoding}"]
        url = f"https://localhost:{gateway.address()[1]}/words"
        body, _, told = output([*words, url]).rpartition("\n")
        size, said = told.split(" ")
        assert (body.encode(), said) == (WORDS, encoding)
        assert int(size) < len(WORDS) * 0.6

    @pytest.mark.parametrize("encoding", DECODE)
    def test_h3(self, gateway: Gateway, authority: Authority, encoding: str) -> None:
        headers = [("accept-encoding", encoding)]
        answer = h3.get(gateway.address(), authority.certificate, "/words", headers=headers)
        assert (answer.status, answer.header("content-encoding"), answer.ended) == (200, encoding, True)
        assert answer.header("content-length") is None
        assert DECODE[encoding](answer.body) == WORDS

    @pytest.mark.parametrize(
        ("accept", "encoding"),
        [
            ("gzip, deflate, br, zstd", "zstd"),
            ("br;q=0.9, gzip;q=0.8", "br"),
            ("gzip;q=0.9, *;q=0.1", "gzip"),
            ("identity", None),
            ("*;q=0", None),
        ],
    )
    def test_the_client_chooses(self, client: Http1, accept: str, encoding: str | None) -> None:
        answer = get(client, "/words", accept)
        assert answer.header("content-encoding") == encoding
        assert (DECODE[encoding](answer.body) if encoding else answer.body) == WORDS
        assert answer.header("vary") == "Accept-Encoding"

    def test_the_head_is_of_what_is_sent(self, client: Http1) -> None:
        for method in ("GET", "HEAD"):
            answer = get(client, "/words", "gzip", method)
            assert answer.header("etag") == 'W/"words"'
            assert answer.header("content-encoding") == "gzip"
            assert answer.header("content-length") is answer.header("accept-ranges") is None
        assert get(client, "/words", "identity").header("etag") == '"words"'
        assert get(client, "/not-modified").header("etag") == 'W/"words"'

    def test_a_client_of_http_1_0(self, client: Http1) -> None:
        client.send(b"GET /words HTTP/1.0\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        answer = client.response()
        assert answer.header("transfer-encoding") is None
        assert gzip.decompress(answer.body) == WORDS

    def test_upstreams_are_told_what_the_client_takes(self, client: Http1) -> None:
        answer = get(client, "/echo", "br")
        assert ["accept-encoding", "br"] in json.loads(brotli.decompress(answer.body))


class TestLeftAlone:
    @pytest.mark.parametrize(
        ("path", "status"),
        [("/raw", 200), ("/small", 200), ("/as-it-is", 200), ("/part", 206), ("/nothing", 204)],
    )
    def test_what_is(self, client: Http1, path: str, status: int) -> None:
        answer = get(client, path)
        assert (answer.status, answer.header("content-encoding"), answer.header("vary")) == (status, None, None)

    def test_what_is_encoded_already(self, client: Http1) -> None:
        answer = get(client, "/encoded", "br, gzip")
        assert answer.header("content-encoding") == "gzip"
        assert gzip.decompress(answer.body) == WORDS

    def test_ranges_and_what_must_not_be_transformed(self, client: Http1) -> None:
        for more in (("Range", "bytes=0-9"), ("Cache-Control", "no-transform")):
            answer = get(client, "/words", "gzip", "GET", more)
            assert (answer.header("content-encoding"), answer.header("etag")) == (None, '"words"')
            assert answer.body == WORDS

    def test_what_a_route_names(self, client: Http1) -> None:
        assert get(client, "/picture", "zstd, br").header("content-encoding") is None
        assert gzip.decompress(get(client, "/picture", "gzip").body) == WORDS


class TestStreams:
    def told(self, gateway: Gateway, authority: Authority, what: str) -> None:
        with Http1.open(gateway.address(), authority.certificate) as client:
            assert client.request(what).status == 200

    @pytest.mark.parametrize("encoding", DECODE)
    def test_events_are_not_held_back(
        self, gateway: Gateway, authority: Authority, client: Http1, encoding: str
    ) -> None:
        self.told(gateway, authority, "/forget")
        client.send(f"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {encoding}\r\n\r\n".encode())
        assert client.head().header("content-encoding") == encoding
        decode, seen, number = decoder(encoding), b"", 0
        for chunk in client.chunks():
            seen += decode(chunk)
            # The upstream goes on when this one has been read: who held it back would wait for ever.
            while f"data: {number}\n\n".encode() in seen:
                self.told(gateway, authority, f"/told/{number}")
                number += 1
        assert (number, seen) == (EVENTS, b"".join(b"data: %d\n\n" % number for number in range(EVENTS)))

    def test_events_over_h3(self, gateway: Gateway, authority: Authority) -> None:
        self.told(gateway, authority, "/forget")

        async def read() -> None:
            async with h3.connected(gateway.address(), authority.certificate) as client:
                stream = client.begin("/events", headers=[("accept-encoding", "br")])
                answer, decode, seen = client.answers[stream], decoder("br"), b""
                for number in range(EVENTS):
                    while f"data: {number}\n\n".encode() not in seen:
                        await client.until(lambda: answer.body)
                        seen += decode(answer.body)
                        answer.data.clear()
                    await asyncio.to_thread(self.told, gateway, authority, f"/told/{number}")
                assert (await client.answer(stream)).ended

        asyncio.run(read())

    def test_trailers_pass(self, client: Http1) -> None:
        answer = get(client, "/trailers", "zstd", "GET", ("TE", "trailers"), ("Connection", "TE"))
        assert DECODE["zstd"](answer.body) == WORDS
        assert [(name.lower(), value) for name, value in answer.trailers] == [("x-sum", "7")]

    @pytest.mark.parametrize("encoding", DECODE)
    def test_a_body_that_was_cut_short_does_not_look_whole(self, client: Http1, encoding: str) -> None:
        with pytest.raises(EOFError):
            get(client, "/cut", encoding)

    @pytest.mark.needs("curl")
    @pytest.mark.parametrize("encoding", DECODE)
    def test_large_ones_take_no_memory_and_leave_others_their_turn(
        self, gateway: Gateway, authority: Authority, client: Http1, encoding: str
    ) -> None:
        before = gateway.program.resident()
        url = f"https://localhost:{gateway.address()[1]}/large"
        words = ["curl", "-sS", "--http2", "--cacert", authority.certificate, "-H", f"Accept-Encoding: {encoding}"]

        async def both() -> tuple[bytes, int]:
            download = asyncio.create_task(asyncio.to_thread(run, [*words, url], timeout=100))
            answered = 0
            while not download.done():
                assert (await asyncio.to_thread(client.request, "/health")).status == 200
                answered += 1
            return (await download).stdout, answered

        body, answered = asyncio.run(both())
        decode = decoder(encoding)
        assert sum(len(decode(body[at : at + 65536])) for at in range(0, len(body), 65536)) == LARGE
        assert answered > 20
        assert gateway.program.resident() - before < ROOM
