"""Listeners: an address, its protocols in order of preference, TLS, routes and bounds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mitu.config.base import Model, switch
from mitu.config.routes import Route
from mitu.config.tls import ListenerTls, TlsSettings
from mitu.config.types import (
    Alpn,
    Bind,
    Bool,
    DurationRange,
    Handler,
    HostPattern,
    IntRange,
    Name,
    Network,
    SizeRange,
    fail,
)

HTTP_PROTOCOLS = ("h3", "h2", "http/1.1")
H3 = "h3"

AlpnMode = Literal["observe", "lenient", "strict"]


class Protocol(Model):
    """An ALPN protocol that the listener serves; a bare string is its name."""

    shorthand: ClassVar[str | None] = "alpn"
    alpn: Alpn = Field(
        description="The name that clients offer: `h3`, `h2` and `http/1.1` go to the routes, any other name needs a"
        " `relay` or a `handler`. `h3` is served in QUIC, on the UDP port of the same number."
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

    @property
    def is_quic(self) -> bool:
        """Served on UDP."""
        return self.alpn == H3 and self.is_http


class ProtocolScore(Model):
    """What a protocol is worth, by the health of those who speak it."""

    base: Annotated[int, IntRange(1, 1000)] = Field(description="While they are healthy.")
    degraded: Annotated[int, IntRange(-1000, 0)] = Field(default=0, description="Added while they are degraded.")
    unavailable: Annotated[int, IntRange(-1000, 0)] = Field(
        default=0, description="Added while they are unavailable; never more than for `degraded`."
    )

    @model_validator(mode="after")
    def _falling(self) -> ProtocolScore:
        if not self.degraded >= self.unavailable >= -self.base:
            hint = "the worse its health the less it is worth, and never less than nothing"
            fail("E022", "scores fall from healthy to degraded to unavailable, down to 0 at most", hint=hint)
        return self


class AlpnRanking(Model):
    """How the order of protocols follows what is known of the upstreams behind them; `true` for all defaults."""

    scores: dict[Alpn, ProtocolScore] = Field(
        default={},
        description="By protocol. Known are `h3` 12/-3/-7, `h2` 10/-2/-5 and `http/1.1` 6/-1/-3; others are 4/-1/-2.",
    )
    hold: Annotated[timedelta, DurationRange("0s", "1h")] = Field(
        default=timedelta(seconds=5),
        description="An instance that has become worse counts as that for so long at least.",
    )
    upstreams: tuple[Name, ...] | None = Field(
        default=None,
        description="Those that routes' protocols are judged by; all that the routes lead to when left out.",
    )


class SiteSettings(Model):
    """What differs from the listener's ALPN settings for some server names."""

    names: tuple[HostPattern, ...] = Field(
        description="Server names; an exact one goes before a wildcard. A certificate is needed for each."
    )
    alpn_mode: AlpnMode | None = Field(default=None, description="The listener's when left out.")
    protocols: tuple[Alpn, ...] | None = Field(
        default=None,
        description="Those of the listener's protocols that clients of these names get; all of them when left out.",
    )
    alpn_order: tuple[Alpn, ...] | None = Field(
        default=None,
        description="In place of `protocols`: those that clients get, most preferred first; the order stays, whatever"
        " becomes of the upstreams.",
    )
    no_alpn: Alpn | None = Field(
        default=None,
        description="The protocol for clients without the ALPN extension, or `refuse`; the listener's when left out,"
        " if it is among `protocols`.",
    )


class ProxyProtocol(Model):
    """PROXY protocol v2 in front of the handshake."""

    trusted: tuple[Network, ...] = Field(
        description="Peers whose PROXY header is required and believed; nobody else's is read."
    )


class AltSvc(Model):
    """What h1 and h2 responses say of h3, so that clients come to it (RFC 7838)."""

    advertise: Bool = Field(default=True, description="Whether they say anything, where the listener serves h3.")
    port: Annotated[int, IntRange(1, 65_535)] | None = Field(
        default=None, description="The UDP port that clients reach; the listener's when left out."
    )
    max_age: Annotated[timedelta, DurationRange("1s", "365d")] = Field(
        default=timedelta(days=1), description="For how long clients may remember it."
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
    concurrent_streams: Annotated[int, IntRange(1, 10_000)] = Field(
        default=128, description="Requests at once on one h2 or h3 connection."
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
    relay_drain: Annotated[timedelta, DurationRange("0s", "4h")] | None = Field(
        default=None,
        description="Relays and WebSockets end within this time once the listener drains, each at a moment of its own."
        " When left out: those of a listener that a reload removes stay, and a gateway that ends takes 80 % of the"
        " time that it has.",
    )


class Listener(Model):
    """A TLS port."""

    name: Name = Field(description="Its name in logs and metrics.")
    bind: Bind = Field(description="`host:port`, `[v6]:port`, or `:port` for all addresses; port 0 takes a free one.")
    protocols: tuple[Protocol, ...] = Field(
        description="ALPN protocols, most preferred first.", examples=[["h3", "h2", "http/1.1"]]
    )
    no_alpn: Alpn | None = Field(
        default=None,
        description="The protocol for clients without the ALPN extension, or `refuse`. When left out: `http/1.1` if"
        " it is served, else `refuse`.",
    )
    alpn_mode: AlpnMode = Field(
        default="lenient",
        description="Clients whose ALPN does not lead to a protocol. `lenient`: those without ALPN get `no_alpn`,"
        " those that have nothing in common are refused; `strict`: both are refused; `observe`: both get `no_alpn`,"
        " and what `strict` would refuse is counted.",
    )
    alpn_ranking: Annotated[
        AlpnRanking | None, BeforeValidator(switch, json_schema_input_type=AlpnRanking | bool | None)
    ] = Field(
        default=None,
        description="Protocols in the order of what they are worth now, by the health of the upstreams behind them;"
        " what none of their instances speaks is not offered. When left out, the order is that of `protocols`.",
    )
    sites: tuple[SiteSettings, ...] = Field(
        default=(), description="What differs for some server names; everybody else gets what the listener says."
    )
    tls: ListenerTls = Field(description="Certificates and TLS settings.")
    alt_svc: AltSvc = Field(default=AltSvc(), description="What h1 and h2 responses say of h3.")
    proxy_protocol: ProxyProtocol | None = Field(default=None, description="PROXY v2 from load balancers in front.")
    trusted_proxies: tuple[Network, ...] = Field(
        default=(),
        description="Peers whose `X-Forwarded-*` and `Forwarded` headers are kept; everybody else's are replaced.",
    )
    limits: Limits = Field(default=Limits(), description="Bounds on what clients may make the gateway hold.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Bounds on waiting for clients.")
    routes: tuple[Route, ...] = Field(default=(), description="Who answers HTTP requests; the first match wins.")
