"""What HTTP/3 and QPACK forbid (RFC 9114, RFC 9204), said by a client on its streams: each is met with the error that
the RFC names, and costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from integration.conftest import Start, _gateways
from support import h3
from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.h3 import Http3, connected, frame, section, varint
from support.servers import Loop, Server, mirror

PACK = "h3 conformance"

GET = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/health")]
HEAD = frame(h3.HEADERS, section(GET))
# To an upstream, which waits for the whole of it.
POST = frame(h3.HEADERS, section([(":method", "POST"), *GET[1:3], (":path", "/")]))
LONG = b"\x01" + (len(section(GET)) | 2 << 30).to_bytes(4, "big") + section(GET)
NO_SETTINGS = frame(h3.SETTINGS)
CONTROL, PUSH, ENCODER, DECODER = (varint(kind) for kind in range(4))
GREASE = 0x1F * 7 + 0x21

Stream = Literal["request", "control", "one-way"]


@dataclass(frozen=True)
class Case:
    """`sent` on a stream of this kind, to its end where `end`; control streams have begun with their settings.

    `code`: how the connection is closed for it. None: it is not, and requests go on.
    """

    name: str
    stream: Stream
    sent: bytes
    code: int | None = None
    end: bool = False
    answered: int | None = None
    """The status of the request that is on the stream."""
    reset: int | None = None


REQUESTS = (
    Case("a request", "request", HEAD, end=True, answered=200),
    Case("a request with an empty body", "request", POST + frame(h3.DATA), end=True, answered=200),
    Case("a request with a body", "request", POST + frame(h3.DATA, b"body"), end=True, answered=200),
    Case(
        "unknown frames around the head",
        "request",
        frame(GREASE, b"x" * 100) + HEAD + frame(GREASE),
        end=True,
        answered=200,
    ),
    Case(
        "trailers",
        "request",
        POST + frame(h3.DATA, b"x") + frame(h3.HEADERS, section([("x-a", "1")])),
        end=True,
        answered=200,
    ),
    Case(
        "a length in more bytes than it needs",
        "request",
        LONG,
        end=True,
        answered=200,
    ),
    Case("DATA before the head", "request", frame(h3.DATA, b"x"), h3.FRAME_UNEXPECTED),
    Case("SETTINGS", "request", NO_SETTINGS, h3.FRAME_UNEXPECTED),
    Case("GOAWAY", "request", frame(h3.GOAWAY, b"\0"), h3.FRAME_UNEXPECTED),
    Case("MAX_PUSH_ID", "request", frame(h3.MAX_PUSH_ID, b"\0"), h3.FRAME_UNEXPECTED),
    Case("CANCEL_PUSH", "request", frame(h3.CANCEL_PUSH, b"\0"), h3.FRAME_UNEXPECTED),
    Case("PUSH_PROMISE", "request", frame(h3.PUSH_PROMISE, b"\0" + section(GET)), h3.FRAME_UNEXPECTED),
    *(
        Case(f"a frame of HTTP/2, {kind:#x}", "request", frame(kind, b"x" * 4), h3.FRAME_UNEXPECTED)
        for kind in (0x2, 0x6, 0x8, 0x9)
    ),
    Case("SETTINGS behind the head", "request", POST + NO_SETTINGS, h3.FRAME_UNEXPECTED),
    Case("a third HEADERS", "request", POST + frame(h3.HEADERS, section([("x-a", "1")])) * 2, h3.FRAME_UNEXPECTED),
    Case(
        "DATA behind trailers",
        "request",
        POST + frame(h3.HEADERS, section([])) + frame(h3.DATA, b"x"),
        h3.FRAME_UNEXPECTED,
    ),
    Case("a head that is cut off", "request", HEAD[:-3], h3.FRAME_ERROR, end=True),
    Case("a frame's head that is cut off", "request", HEAD[:1], h3.FRAME_ERROR, end=True),
    Case("DATA that is cut off", "request", POST + frame(h3.DATA, b"body")[:-1], h3.FRAME_ERROR, end=True),
    Case("nothing", "request", b"", end=True, reset=h3.REQUEST_INCOMPLETE),
    Case("unknown frames alone", "request", frame(GREASE, b"x"), end=True, reset=h3.REQUEST_INCOMPLETE),
    Case("too much in unknown frames", "request", frame(GREASE, b"x" * 100_000), h3.EXCESSIVE_LOAD),
    Case("too many unknown frames", "request", frame(GREASE) * 70_000, h3.EXCESSIVE_LOAD),
    Case("a head that is announced as too large", "request", varint(h3.HEADERS) + varint(1 << 40), answered=431),
    Case(
        "a head that counts for too much",
        "request",
        frame(h3.HEADERS, b"\0\0" + b"\xdd" * 2000),
        end=True,
        answered=431,
    ),
)

QPACK = (
    *(
        Case(name, "request", frame(h3.HEADERS, bytes.fromhex(block)), h3.QPACK_DECOMPRESSION_FAILED, end=True)
        for name, block in {
            "an empty section": "",
            "a section of one byte": "00",
            "an insert count": "0200",
            "an index in the dynamic table": "0000 80",
            "a name in the dynamic table": "0000 4000",
            "an index behind the base": "0000 10",
            "a name behind the base": "0000 0000",
            "an index beyond the static table": "0000 ff24",
            "an integer without end": "0000 ffffffffffffffffffff",
            "a string that is cut off": "0000 5105 61",
            "a name that is cut off": "0000 23 61",
            "no value": "0000 51",
            "padding of zeros": "0000 51 8118",
            "padding of more than seven bits": "0000 51 821fff",
            "the end's code within a string": "0000 51 84ffffffff",
        }.items()
    ),
    Case(
        "malformed trailers", "request", POST + frame(h3.HEADERS, b"\x02\0"), h3.QPACK_DECOMPRESSION_FAILED, end=True
    ),
    Case("an encoder that has no room", "one-way", ENCODER + b"\x20"),
    Case("an encoder that takes room", "one-way", ENCODER + b"\x3f\xe1\x1f", h3.QPACK_ENCODER_ERROR),
    Case("an insertion", "one-way", ENCODER + b"\x41a\x01b", h3.QPACK_ENCODER_ERROR),
    Case("an insertion by name", "one-way", ENCODER + b"\xc0\x01a", h3.QPACK_ENCODER_ERROR),
    Case("a duplicate", "one-way", ENCODER + b"\x00", h3.QPACK_ENCODER_ERROR),
    Case("an encoder that ends", "one-way", ENCODER, h3.CLOSED_CRITICAL_STREAM, end=True),
    Case("a decoder that gives up streams", "one-way", DECODER + b"\x40\x7f\xff\x01"),
    Case("a decoder that acknowledges a section", "one-way", DECODER + b"\x80", h3.QPACK_DECODER_ERROR),
    Case("a decoder that counts insertions", "one-way", DECODER + b"\x01", h3.QPACK_DECODER_ERROR),
    Case("a decoder that ends", "one-way", DECODER, h3.CLOSED_CRITICAL_STREAM, end=True),
)


def setting(number: int, value: int = 0) -> bytes:
    return varint(number) + varint(value)


CONTROLS = (
    Case("settings that nobody knows", "control", frame(GREASE, b"x") + frame(0xF0700, b"\0u=1")),
    Case("no settings", "one-way", CONTROL + frame(h3.GOAWAY, b"\0"), h3.MISSING_SETTINGS),
    Case("unknown settings", "one-way", CONTROL + frame(h3.SETTINGS, setting(GREASE, 7) + setting(0x33, 1))),
    Case("an empty control stream", "one-way", CONTROL, h3.CLOSED_CRITICAL_STREAM, end=True),
    Case("a control stream that ends", "control", b"", h3.CLOSED_CRITICAL_STREAM, end=True),
    Case("a second control stream", "one-way", b"", h3.STREAM_CREATION_ERROR),
    Case("settings twice", "control", NO_SETTINGS, h3.FRAME_UNEXPECTED),
    Case("one setting twice", "one-way", CONTROL + frame(h3.SETTINGS, setting(6, 1) * 2), h3.SETTINGS_ERROR),
    *(
        Case(
            f"a setting of HTTP/2, {number:#x}",
            "one-way",
            CONTROL + frame(h3.SETTINGS, setting(number)),
            h3.SETTINGS_ERROR,
        )
        for number in (0x2, 0x3, 0x4, 0x5)
    ),
    Case("settings that are cut off", "one-way", CONTROL + frame(h3.SETTINGS, b"\x06"), h3.FRAME_ERROR),
    Case("settings that are too many", "one-way", CONTROL + varint(h3.SETTINGS) + varint(100_000), h3.EXCESSIVE_LOAD),
    Case("DATA", "control", frame(h3.DATA, b"x"), h3.FRAME_UNEXPECTED),
    Case("HEADERS", "control", HEAD, h3.FRAME_UNEXPECTED),
    Case("a promise", "control", frame(h3.PUSH_PROMISE, b"\0"), h3.FRAME_UNEXPECTED),
    *(
        Case(f"a frame of HTTP/2 on control, {kind:#x}", "control", frame(kind, b"x" * 4), h3.FRAME_UNEXPECTED)
        for kind in (0x2, 0x6, 0x8, 0x9)
    ),
    Case("GOAWAY", "control", frame(h3.GOAWAY, varint(8)) + frame(h3.GOAWAY, varint(4))),
    Case("GOAWAY that goes back", "control", frame(h3.GOAWAY, varint(4)) + frame(h3.GOAWAY, varint(8)), h3.ID_ERROR),
    Case("GOAWAY with more", "control", frame(h3.GOAWAY, b"\0\0"), h3.FRAME_ERROR),
    Case("GOAWAY of nothing", "control", frame(h3.GOAWAY), h3.FRAME_ERROR),
    Case("MAX_PUSH_ID", "control", frame(h3.MAX_PUSH_ID, varint(4)) + frame(h3.MAX_PUSH_ID, varint(8))),
    Case(
        "MAX_PUSH_ID back", "control", frame(h3.MAX_PUSH_ID, varint(8)) + frame(h3.MAX_PUSH_ID, varint(4)), h3.ID_ERROR
    ),
    Case("CANCEL_PUSH of nothing", "control", frame(h3.CANCEL_PUSH, varint(0)), h3.ID_ERROR),
    Case("a client that pushes", "one-way", PUSH + varint(0), h3.STREAM_CREATION_ERROR),
    Case("a stream that nobody knows", "one-way", varint(GREASE) + b"whatever"),
    Case("a stream that ends before it has a kind", "one-way", b"", end=True),
)


def messages() -> Iterator[Case]:
    """Malformed requests: 400, and the connection goes on (RFC 9114, section 4.1.2)."""
    method, scheme, authority, path = GET
    malformed = {
        "no method": [scheme, authority, path],
        "no scheme": [method, authority, path],
        "no path": [method, scheme, authority],
        "an empty path": [method, scheme, authority, (":path", "")],
        "two paths": [*GET, path],
        "a status": [*GET, (":status", "200")],
        "an unknown pseudo-header field": [*GET, (":unknown", "x")],
        "a protocol without CONNECT": [*GET, (":protocol", "websocket")],
        "a protocol and no path": [(":method", "CONNECT"), scheme, authority, (":protocol", "websocket")],
        "a protocol and no authority": [(":method", "CONNECT"), scheme, path, (":protocol", "websocket")],
        "a protocol and a length": [
            (":method", "CONNECT"),
            *GET[1:],
            (":protocol", "websocket"),
            ("content-length", "9"),
        ],
        "a pseudo-header field behind others": [method, scheme, authority, ("x-a", "1"), path],
        "a capital": [*GET, ("X-A", "1")],
        "no name": [*GET, ("", "1")],
        "a line break": [*GET, ("x-a", "1\r\nx-b: 2")],
        "a NUL": [*GET, ("x-a", "1\0")],
        "connection": [*GET, ("connection", "close")],
        "transfer-encoding": [*GET, ("transfer-encoding", "chunked")],
        "upgrade": [*GET, ("upgrade", "h2c")],
        "te": [*GET, ("te", "gzip")],
        "two hosts": [*GET, ("host", "other.test")],
        "no host": [method, scheme, path],
        "two lengths": [*GET, ("content-length", "0"), ("content-length", "0")],
        "a length with a sign": [*GET, ("content-length", "+0")],
    }
    for name, fields in malformed.items():
        yield Case(name, "request", frame(h3.HEADERS, section(fields)), end=True, answered=400)
    short = [(":method", "POST"), *GET[1:], ("content-length", "4")]
    connect = [(":method", "CONNECT"), authority]
    yield Case("CONNECT", "request", frame(h3.HEADERS, section(connect)), answered=405)
    yield Case(
        "a head of its own length",
        "request",
        frame(h3.HEADERS, section(short)) + frame(h3.DATA, b"four"),
        end=True,
        answered=200,
    )


CASES = (*REQUESTS, *QPACK, *CONTROLS, *messages())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    yield from _gateways()


@pytest.fixture(scope="module")
def app() -> Iterator[Server]:
    loop = Loop()
    with Server(loop, mirror) as server:
        yield server
    loop.close()


@pytest.fixture(scope="module")
def gateway(start: Start, authority: Authority, app: Server) -> Gateway:
    edge: Pair = authority.issue("edge", ("localhost",))
    routes = [health(), to_app()]
    return start(configuration([listener(edge, protocols=["h3", "h2"], routes=routes)], upstream("app", app.endpoint)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stream}: {case.name}")
def test_h3(gateway: Gateway, authority: Authority, case: Case) -> None:
    async def run() -> None:
        async with connected(gateway.address(), authority.certificate, raw=True) as client:
            stream = begin(client, case)
            if case.code is not None:
                closed = await client.closed()
                assert (closed.error_code, closed.frame_type) == (case.code, None), closed
                return
            if case.answered is not None:
                answer = await client.answer(stream)
                kind, block = h3.frames(answer.raw)[0]
                assert (kind, h3.status(block)) == (h3.HEADERS, case.answered)
            if case.reset is not None:
                assert (await client.answer(stream)).reset == case.reset
            # It was taken in good part: the connection goes on.
            other = await client.answer(client.open(HEAD, end=True))
            assert h3.status(h3.frames(other.raw)[0][1]) == 200
            assert client.ended is None

    asyncio.run(run())


def begin(client: Http3, case: Case) -> int:
    if case.name == "a second control stream":
        client.open(CONTROL + NO_SETTINGS, one_way=True)
        return client.open(CONTROL + NO_SETTINGS, one_way=True)
    if case.stream == "control":
        return client.open(CONTROL + NO_SETTINGS + case.sent, end=case.end, one_way=True)
    if case.stream == "request" and case.name != "nothing":
        client.open(CONTROL + NO_SETTINGS, one_way=True)
    return client.open(case.sent, end=case.end, one_way=case.stream == "one-way")


class TestQuic:
    """What QUIC itself forbids is quinn's to refuse; here is what would cost a gateway most."""

    def test_a_stream_that_begins_with_a_reset(self, gateway: Gateway, authority: Authority) -> None:
        async def run() -> None:
            async with connected(gateway.address(), authority.certificate) as client:
                for _ in range(100):
                    stream = client.quic.get_next_available_stream_id()
                    client.quic.send_stream_data(stream, b"")
                    client.quic.reset_stream(stream, h3.REQUEST_CANCELLED)
                client.transmit()
                assert (await client.get("/health")).status == 200

        asyncio.run(run())

    def test_requests_that_are_taken_back_without_end(self, gateway: Gateway, authority: Authority) -> None:
        async def run() -> None:
            async with connected(gateway.address(), authority.certificate) as client:
                for begun in range(5000):
                    # What raises the limit is told to nobody.
                    for _ in range(2000):
                        if client.quic._remote_max_streams_bidi > begun or client.ended is not None:
                            break
                        await asyncio.sleep(0.005)
                    if client.ended is not None:
                        break
                    client.cancel(client.open(POST))
                closed = await client.closed()
                assert closed.error_code == h3.EXCESSIVE_LOAD

        asyncio.run(run())

    def test_no_more_streams_than_allowed(self, gateway: Gateway, authority: Authority) -> None:
        async def run() -> None:
            async with connected(gateway.address(), authority.certificate) as client:
                assert client.quic._remote_max_streams_bidi == 128
                assert client.quic._remote_max_streams_uni == 8
                open_streams = [client.open(POST) for _ in range(128)]
                waiting = client.begin("/health")
                with pytest.raises(TimeoutError):
                    await client.answer(waiting, 0.5)
                # Room is given back an eighth at a time.
                for stream in open_streams[:32]:
                    client.send(stream, b"", end=True)
                assert (await client.answer(waiting)).status == 200

        asyncio.run(run())
