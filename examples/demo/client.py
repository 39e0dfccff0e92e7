"""A TLS client for machines without curl and openssl: HTTP/1.1, HTTP/2, or lines from stdin.

python client.py HOST:PORT CA ALPN [PATH]
"""

from __future__ import annotations

import re
import ssl
import sys
from socket import create_connection

_DATA, _HEADERS, _SETTINGS = 0x0, 0x1, 0x4
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4


def main(address: str, ca: str, alpn: str, path: str = "/") -> None:
    host, _, port = address.rpartition(":")
    tls = ssl.create_default_context(cafile=ca)
    tls.set_alpn_protocols([alpn])
    try:
        with tls.wrap_socket(create_connection((host, int(port)), 10), server_hostname=host) as stream:
            if alpn == "http/1.1":
                sys.stdout.buffer.write(http1(stream, address, path))
            elif alpn == "h2":
                sys.stdout.buffer.write(http2(stream, address, path))
            else:
                stream.sendall(sys.stdin.buffer.read())
                sys.stdout.buffer.write(everything(stream))
    except ssl.SSLError as error:
        alert = re.search(r"alert [a-z ]+", str(error))
        print(alert[0].strip() if alert else error)


def http1(stream: ssl.SSLSocket, host: str, path: str) -> bytes:
    """The body of a response."""
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return everything(stream).partition(b"\r\n\r\n")[2]


def http2(stream: ssl.SSLSocket, host: str, path: str) -> bytes:
    """The body of a response: one request on stream 1 (RFC 9113)."""
    # HPACK (RFC 7541): GET and https from the static table, `:path` and `:authority` as literals.
    fields = b"\x82\x87" + b"\x04" + _text(path) + b"\x01" + _text(host)
    stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS))
    stream.sendall(_frame(_HEADERS, fields, flags=_END_STREAM | _END_HEADERS, stream=1))
    incoming, body = stream.makefile("rb"), b""
    while head := incoming.read(9):
        size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        payload = incoming.read(size)
        if kind == _SETTINGS and not flags & _ACK:
            stream.sendall(_frame(_SETTINGS, flags=_ACK))
        if kind == _DATA:
            body += payload
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            break
    return body


def _frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def everything(stream: ssl.SSLSocket) -> bytes:
    pieces = []
    while piece := stream.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


if __name__ == "__main__":
    main(*sys.argv[1:])
