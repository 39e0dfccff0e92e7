"""Listeners: an address, its protocols in order of preference, TLS, routes and bounds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar

from pydantic import Field

from mitu.config.base import Model
from mitu.config.routes import Route
from mitu.config.tls import ListenerTls, TlsSettings
from mitu.config.types import Alpn, Bind, DurationRange, Handler, IntRange, Name, Network, SizeRange

HTTP_PROTOCOLS = ("h2", "http/1.1")


class Protocol(Model):
    """An ALPN protocol that the listener serves; a bare string is its name."""

    shorthand: ClassVar[str | None] = "alpn"
    alpn: Alpn = Field(
        description="The name that clients offer: `h2` and `http/1.1` go to the routes, any other name needs a `relay`"
        " or a `handler`."
    )
    relay: Name | None = Field(default=None, description="The upstream that gets the decrypted bytes.")
    handler: Handler | None = Field(
        default=None, description="`module:function` of a Python coroutine `serve(reader, writer)`."
    )
    tls: TlsSettings = Field(default=TlsSettings(), description="What differs from the listener's TLS settings.")

    @property
    def is_http(self) -> bool:
        """Served by the routes."""
        return self.alpn in HTTP_PROTOCOLS and self.relay is None and self.handler is None


class ProxyProtocol(Model):
    """PROXY protocol v2 in front of the handshake."""

    trusted: tuple[Network, ...] = Field(
        description="Peers whose PROXY header is required and believed; nobody else's is read."
    )


class Limits(Model):
    """Bounds on what clients may make the gateway hold."""

    connections: Annotated[int, IntRange(1, 10_000_000)] = Field(
        default=100_000,
        description="Connections open at once; further ones are closed on accept and counted. Fewer where the process"
        " may not have as many files open, which is said where this is set.",
    )
    backlog: Annotated[int, IntRange(1, 65_535)] = Field(
        default=4096, description="Connections the kernel keeps waiting for accept, on each worker's socket."
    )
    request_header_size: Annotated[int, SizeRange("1KiB", "1MiB")] = Field(
        default=64 << 10, description="A request's headers in all, request line included; over: 431."
    )
    request_headers: Annotated[int, IntRange(1, 1000)] = Field(
        default=100, description="Header lines of a request; over: 431."
    )
    request_body_size: Annotated[int, SizeRange("1B", "1024GiB")] | None = Field(
        default=None, description="A request's body; over: 413. Unlimited when left out."
    )
    http2_concurrent_streams: Annotated[int, IntRange(1, 10_000)] = Field(
        default=128, description="Requests at once on one h2 connection."
    )
    buffer_size: Annotated[int, SizeRange("4KiB", "16MiB")] = Field(
        default=64 << 10, description="What a stream or relay direction may hold while its receiver is slow."
    )


class Timeouts(Model):
    """Bounds on waiting for clients."""

    handshake: Annotated[timedelta, DurationRange("100ms", "5m")] = Field(
        default=timedelta(seconds=10), description="From accept to the finished handshake, PROXY header included."
    )
    request_header: Annotated[timedelta, DurationRange("100ms", "5m")] = Field(
        default=timedelta(seconds=10),
        description="HTTP/1.1: from a request's first byte to the end of its headers; over: 408.",
    )
    idle: Annotated[timedelta, DurationRange("1s", "1d")] = Field(
        default=timedelta(seconds=75), description="Between two requests of a connection."
    )
    relay_idle: Annotated[timedelta, DurationRange("1s", "7d")] = Field(
        default=timedelta(hours=1), description="A relay on which nothing moves in either direction."
    )


class Listener(Model):
    """A TLS port."""

    name: Name = Field(description="Its name in logs and metrics.")
    bind: Bind = Field(description="`host:port`, `[v6]:port`, or `:port` for all addresses; port 0 takes a free one.")
    protocols: tuple[Protocol, ...] = Field(
        description="ALPN protocols, most preferred first.", examples=[["h2", "http/1.1"]]
    )
    no_alpn: Alpn | None = Field(
        default=None,
        description="The protocol for clients without the ALPN extension, or `refuse`. When left out: `http/1.1` if"
        " it is served, else `refuse`.",
    )
    tls: ListenerTls = Field(description="Certificates and TLS settings.")
    proxy_protocol: ProxyProtocol | None = Field(default=None, description="PROXY v2 from load balancers in front.")
    trusted_proxies: tuple[Network, ...] = Field(
        default=(),
        description="Peers whose `X-Forwarded-*` and `Forwarded` headers are kept; everybody else's are replaced.",
    )
    limits: Limits = Field(default=Limits(), description="Bounds on what clients may make the gateway hold.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Bounds on waiting for clients.")
    routes: tuple[Route, ...] = Field(default=(), description="Who answers HTTP requests; the first match wins.")
