"""Slow clients: what they say, byte by byte or in part, and what they do not read."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from support import frames, hpack
from support.client import Address, client_hello, context
from support.frames import CONTINUATION, frame, headers
from support.ground import Ground
from support.h2 import HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, SETTINGS
from support.h2_raw import READY, fields, get, post, setting, window

TCP_REPAIR = 19
"""An option of Linux with which a socket can be closed without telling the peer."""
Says = Callable[[], Iterator[bytes]]
"""What is said, a piece each tick."""


class Slow:
    """A client on TCP, TLS or not. `sent`: what it says, a piece each tick; `reading`: whether it takes what comes."""

    def __init__(self, stream: socket.socket, sent: Iterator[bytes], *, reading: bool) -> None:
        stream.setblocking(False)
        self.stream, self._sent, self._reading = stream, sent, reading
        host, port = stream.getsockname()
        self.address = f"{host}:{port}"
        self._ended = False

    def tick(self) -> None:
        try:
            if not self._ended and (piece := next(self._sent, None)) is not None:
                self.stream.send(piece)
            while self._reading and not self._ended:
                self._ended = not self.stream.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._ended = True


def small(address: Address) -> socket.socket:
    """A TCP connection that has hardly room for what comes."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.settimeout(10)
    made.connect(address)
    return made


def bytewise(text: bytes) -> Iterator[bytes]:
    return (text[at : at + 1] for at in range(len(text)))


def silent() -> Iterator[bytes]:
    return iter(())


Open = Callable[[Ground], Slow]


def bare(says: Says, listener: str = "edge") -> Open:
    """Before a handshake."""

    def open(ground: Ground) -> Slow:
        # From another host to another listener: the kernel may use a port once for each.
        source = ("127.0.0.1" if listener == "edge" else "127.0.0.2", 0)
        stream = socket.create_connection(ground.gateway.address(listener), source_address=source)
        return Slow(stream, says(), reading=True)

    return open


def with_hello(says: Callable[[bytes], Iterator[bytes]]) -> Open:
    """What becomes of a good ClientHello."""

    def open(ground: Ground) -> Slow:
        return bare(lambda: says(client_hello(context(ground.ca))))(ground)

    return open


def in_records(hello: bytes) -> Iterator[bytes]:
    """Each byte of its message in a record of its own."""
    return (hello[:3] + b"\x00\x01" + hello[at : at + 1] for at in range(5, len(hello)))


def over(alpn: str, first: bytes, says: Says = silent, *, reading: bool = True) -> Open:
    """Behind a handshake. `reading`: False takes nothing but what the kernel has room for."""

    def open(ground: Ground) -> Slow:
        tcp = socket.create_connection(ground.address) if reading else small(ground.address)
        stream = context(ground.ca, [alpn]).wrap_socket(tcp, server_hostname="localhost")
        stream.sendall(first)
        return Slow(stream, says(), reading=reading)

    return open


def unfinished(ground: Ground) -> Slow:
    """A handshake that is done but for the client's last flight."""
    tcp = socket.create_connection(ground.address)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(ground.ca).wrap_bio(came, goes, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
            return Slow(tcp, bytewise(goes.read()), reading=True)
        except ssl.SSLWantReadError:
            tcp.sendall(goes.read())
            came.write(tcp.recv(65536))


def half_closed(after: Open) -> Open:
    """The same, with a FIN behind it."""

    def open(ground: Ground) -> Slow:
        slow = after(ground)
        socket.socket.shutdown(slow.stream, socket.SHUT_WR)
        return slow

    return open


def gone(after: Open) -> Open:
    """The same by a client that loses its power: no FIN comes, nor anything else."""

    def open(ground: Ground) -> Slow:
        slow = after(ground)
        slow.stream.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        slow.stream.close()
        return slow

    return open


@dataclass(frozen=True)
class Case:
    """`event`: what the access log calls the end, `why`: the reason or error that it gives.

    `status` and `reason`: of the request that it tells of, if it does. `soon`: no timeout has to end it.
    """

    name: str
    open: Open
    event: str
    why: str | None = None
    status: int | None = None
    reason: str | None = None
    soon: bool = False


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
LINES = [b"GET /health HTTP/1.1\r\n", b"Host: localhost\r\n", *(b"X-%d: a\r\n" % at for at in range(80))]
ANNOUNCED = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n"
CHUNKED = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"
PROXY = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
FILLER = b"a" * 400


def failed(name: str, open: Open, why: str = "timeout", *, soon: bool = False) -> Case:
    return Case(name, open, "handshake_failed", why, soon=soon)


HANDSHAKES = (
    failed("nothing", bare(silent)),
    failed("a ClientHello byte by byte", with_hello(bytewise)),
    failed("half a ClientHello", with_hello(lambda hello: iter([hello[:100]]))),
    failed("a ClientHello in records of a byte", with_hello(in_records)),
    failed("a Finished byte by byte", unfinished),
    failed("half closed before the handshake", half_closed(bare(silent)), "client_closed", soon=True),
    failed("no PROXY header", bare(silent, "behind")),
    failed("half a PROXY header", bare(lambda: iter([PROXY]), "behind")),
    failed("a PROXY header byte by byte", bare(lambda: bytewise(PROXY + bytes(400)), "behind")),
)


def slow(name: str, open: Open, reason: str, why: str | None = None) -> Case:
    return Case(name, open, "connection", why, 408, reason)


H1 = (
    Case("h1: no request", over("http/1.1", b""), "connection"),
    Case("h1: no second request", over("http/1.1", HEAD + b"\r\n"), "connection", None, 200),
    Case("h1: half closed", half_closed(over("http/1.1", b"")), "connection", soon=True),
    slow("h1: a request line byte by byte", over("http/1.1", b"GET /", lambda: bytewise(FILLER)), "header_timeout"),
    slow("h1: a header byte by byte", over("http/1.1", HEAD + b"X-A: ", lambda: bytewise(FILLER)), "header_timeout"),
    slow("h1: a head line by line", over("http/1.1", b"", lambda: iter(LINES)), "header_timeout"),
    slow("h1: a head that stops", over("http/1.1", HEAD), "header_timeout"),
    slow("h1: a body byte by byte", over("http/1.1", ANNOUNCED, lambda: bytewise(FILLER)), "body_timeout"),
    slow("h1: a body that stops", over("http/1.1", ANNOUNCED + b"half"), "body_timeout"),
    slow("h1: chunks of a byte", over("http/1.1", CHUNKED, lambda: itertools.repeat(b"1\r\nx\r\n")), "body_timeout"),
    slow(
        "h1: the size of a chunk digit by digit",
        over("http/1.1", CHUNKED, lambda: bytewise(b"0" * 400)),
        "body_timeout",
    ),
    Case(
        "h1: a response that is not read",
        over("http/1.1", ENDLESS, reading=False),
        "connection",
        "timed out",
        200,
        "client_closed",
    ),
    Case(
        "h1: many responses that are not read",
        over("http/1.1", (HEAD + b"\r\n") * 2000, reading=False),
        "connection",
        None,
        200,
    ),
)

UNKNOWN = 0xBE
BLOCK = hpack.block(fields(b"/health", b"GET", (b"x-long", FILLER)))
BEGUN = READY + frame(HEADERS, 1, 1, BLOCK[:9])
CONTINUED = [frame(CONTINUATION, 0, 1, BLOCK[at : at + 1]) for at in range(9, 400)]
HELD = b"".join(get(1 + 2 * at, b"/endless") for at in range(8))
NO_ROOM = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 0))
WIDE = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 1 << 30))
UPLOAD = READY + post(1, b"/upload")


def held(name: str, first: bytes, *, reading: bool = True) -> Case:
    return Case(
        name, over("h2", PREFACE + first + HELD, reading=reading), "connection", "timed out", 200, "client_closed"
    )


def idle(name: str, first: bytes, says: Says = silent, status: int | None = None) -> Case:
    return Case(name, over("h2", first, says), "connection", "timed out", status)


H2 = (
    idle("h2: half a preface", PREFACE[:12]),
    idle("h2: a preface byte by byte", b"", lambda: bytewise(PREFACE + frame(UNKNOWN, 0, 0, FILLER))),
    idle("h2: no request", READY),
    idle("h2: no second request", READY + get(1, b"/health"), status=200),
    idle("h2: pings alone", READY, lambda: itertools.repeat(frame(PING, 0, 0, bytes(8)))),
    idle("h2: settings alone", READY, lambda: itertools.repeat(frame(SETTINGS, 0, 0))),
    idle("h2: windows alone", READY, lambda: itertools.repeat(window(0, 1))),
    idle("h2: half the head of a frame", READY + frame(PING, 0, 0, bytes(8))[:5]),
    idle("h2: half a frame", READY + get(1, b"/health")[:-10]),
    idle("h2: a frame byte by byte", READY, lambda: bytewise(headers(1, BLOCK, end=True))),
    Case(
        "h2: a head continued byte by byte",
        over("h2", BEGUN, lambda: iter(CONTINUED)),
        "connection",
        "http2 error",
        soon=True,
    ),
    Case("h2: half closed", half_closed(over("h2", READY)), "connection", soon=True),
    slow(
        "h2: a body byte by byte",
        over("h2", UPLOAD, lambda: itertools.repeat(frames.data(1, b"x"))),
        "body_timeout",
        "timed out",
    ),
    slow("h2: a body that stops", over("h2", UPLOAD), "body_timeout", "timed out"),
    held("h2: streams without a window", NO_ROOM),
    held("h2: a connection without a window", WIDE),
    held("h2: responses that are not read", WIDE + window(0, 1 << 30), reading=False),
)

# Behind all others, who could get its port and be taken for it.
GONE = failed("gone before the handshake", gone(bare(silent)))
CASES = (*HANDSHAKES, *H1, *H2, GONE)
