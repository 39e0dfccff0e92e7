"""A client for machines without curl and openssl: HTTP/1.1, HTTP/2, HTTP/3, or lines from stdin.

python client.py HOST:PORT CA ALPN [PATH]
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
from socket import create_connection
from typing import Any

_DATA, _HEADERS, _SETTINGS = 0x0, 0x1, 0x4
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4


def main(address: str, ca: str, alpn: str, path: str = "/") -> None:
    host, _, port = address.rpartition(":")
    if alpn == "h3":
        sys.stdout.buffer.write(asyncio.run(http3(host, int(port), ca, path)))
        return
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


async def http3(host: str, port: int, ca: str, path: str) -> bytes:
    """The body of a response, in QUIC (aioquic)."""
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import DataReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import QuicEvent, StreamDataReceived

    class Client(QuicConnectionProtocol):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.http, self.body, self.done = H3Connection(self._quic), b"", asyncio.Event()

        def quic_event_received(self, event: QuicEvent) -> None:
            for told in self.http.handle_event(event):
                if isinstance(told, DataReceived):
                    self.body += told.data
            if isinstance(event, StreamDataReceived) and event.stream_id == 0 and event.end_stream:
                self.done.set()

    settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=host, cafile=ca)
    async with connect(host, port, configuration=settings, create_protocol=Client) as client:
        assert isinstance(client, Client)
        fields = {":method": "GET", ":scheme": "https", ":authority": f"{host}:{port}", ":path": path}
        encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
        client.http.send_headers(0, encoded, end_stream=True)
        client.transmit()
        await asyncio.wait_for(client.done.wait(), 10)
        return client.body


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
