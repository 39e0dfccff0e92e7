"""TLS and HTTP/1.1 clients that show everything: the bytes sent are the test's, the response is kept whole."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from support.certificates import Pair

Address = tuple[str, int]


def context(
    ca: Path,
    alpn: Sequence[str] | None = ("http/1.1",),
    *,
    identity: Pair | None = None,
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    """A verifying client. `alpn`: None sends no ALPN extension; `version`: this one only."""
    made = ssl.create_default_context(cafile=str(ca))
    if alpn is not None:
        made.set_alpn_protocols(list(alpn))
    if identity is not None:
        made.load_cert_chain(identity.certificate, identity.key)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


def connect(
    address: Address, tls: ssl.SSLContext, *, name: str | None = "localhost", timeout: float = 10
) -> ssl.SSLSocket:
    """A finished handshake with `address`, under the server name `name`."""
    tcp = socket.create_connection(address, timeout=timeout)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return tls.wrap_socket(tcp, server_hostname=name)
    except BaseException:
        tcp.close()
        raise


def client_hello(tls: ssl.SSLContext, name: str = "localhost") -> bytes:
    """The first record that such a client sends."""
    outgoing = ssl.MemoryBIO()
    client = tls.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@dataclass
class Response:
    """One response, its headers in order and as spelt."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that is there once or not at all."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


def request(
    path: str,
    *,
    method: str = "GET",
    host: str = "localhost",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> bytes:
    """An HTTP/1.1 request, with a `Content-Length` when there is a body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Http1:
    """One HTTP/1.1 connection over a socket, TLS or not."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._kept = b""

    @classmethod
    def open(cls, address: Address, ca: Path, *, name: str = "localhost", timeout: float = 10) -> Self:
        return cls(connect(address, context(ca), name=name, timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def send(self, data: bytes) -> None:
        self.stream.sendall(data)

    def request(self, path: str, *, method: str = "GET", **more: Any) -> Response:
        """Sends one request, as `request()` makes it, and reads its response."""
        self.send(request(path, method=method, **more))
        return self.response(method)

    def response(self, method: str = "GET") -> Response:
        """The next response that is not 1xx, body and trailers read. EOFError when the connection ends first."""
        while (response := self.head()).status < 200 and response.status != 101:
            pass
        coded = (response.header("transfer-encoding") or "").lower()
        length = response.header("content-length")
        if method == "HEAD" or response.status in (101, 204, 304):
            return response
        if coded == "chunked":
            response.body = b"".join(self.chunks())
            response.trailers = self._fields()
        elif length is not None:
            response.body = self.exactly(int(length))
        else:
            response.body = self.rest()
        return response

    def head(self) -> Response:
        """A status line and headers, whatever the status."""
        version, status, *reason = self._line().split(" ", 2)
        assert version == "HTTP/1.1", version
        return Response(int(status), reason[0] if reason else "", self._fields())

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body, as they were sent; trailers are left."""
        while size := int(self._line().split(";")[0], 16):
            yield self.exactly(size)
            assert self._line() == ""

    def exactly(self, count: int) -> bytes:
        pieces = [self._kept[:count]]
        self._kept = self._kept[count:]
        missing = count - len(pieces[0])
        while missing:
            piece = self.stream.recv(min(missing, 1 << 20))
            if not piece:
                raise EOFError(f"{missing} of {count} bytes are missing")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def rest(self) -> bytes:
        """All until the peer finishes."""
        pieces, self._kept = [self._kept], b""
        while piece := self.stream.recv(1 << 20):
            pieces.append(piece)
        return b"".join(pieces)

    def closed(self, within: float = 5) -> bool:
        """Whether the peer ends the connection, sending nothing more, within so many seconds."""
        if self._kept:
            return False
        self.stream.settimeout(within)
        try:
            return self.stream.recv(1) == b""
        except TimeoutError:
            return False
        except (ConnectionResetError, ssl.SSLError):
            return True

    def _line(self) -> str:
        while (end := self._kept.find(b"\r\n")) < 0:
            piece = self.stream.recv(65536)
            if not piece:
                raise EOFError(f"the connection ended after {self._kept!r}")
            self._kept += piece
        line, self._kept = self._kept[:end], self._kept[end + 2 :]
        return line.decode("latin-1")

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := self._line():
            name, _, value = line.partition(":")
            fields.append((name, value.strip()))
        return fields


def until_alert(address: Address, tls: ssl.SSLContext, *, name: str | None = "localhost") -> str:
    """The alert (`unknown ca`) that ends a handshake, also where TLS 1.3 tells it only on the first read."""
    try:
        with connect(address, tls, name=name) as stream:
            stream.settimeout(5)
            stream.recv(1)
            raise AssertionError(f"the handshake was accepted: {stream.version()}, {stream.selected_alpn_protocol()}")
    except ssl.SSLError as error:
        # Python knows not every alert by name, but OpenSSL's text has them all.
        found = re.search(r"(?:sslv3|tlsv1|tlsv13) (?:alert )?(.+?) \(_ssl", str(error))
        assert found is not None, error
        return found[1]


def drip(stream: socket.socket, data: bytes, every: float, limit: float) -> float:
    """Sends `data` byte by byte until the peer ends the connection; the seconds that took, `limit` at most."""
    begun = time.monotonic()
    stream.settimeout(every)
    for byte in data:
        if time.monotonic() - begun > limit:
            break
        try:
            stream.sendall(bytes([byte]))
            if stream.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begun
