"""Upstreams: named groups of endpoints."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mitu.config.base import Model, switch
from mitu.config.discovery import Discover, HealthCheck
from mitu.config.resilience import EndpointLimits, OutlierDetection, Retries, detection
from mitu.config.tls import UpstreamTls
from mitu.config.types import Bool, DurationRange, EndpointAddress, HeaderName, IntRange, Name, ShareOrNothing, fail


class Endpoint(Model):
    """One address of an upstream; a bare string is an address with weight 1."""

    shorthand: ClassVar[str | None] = "address"
    address: EndpointAddress = Field(
        description="`host:port`, `[v6]:port` or `unix:/path`; a host name is resolved at each connect."
    )
    weight: Annotated[int, IntRange(0, 1000)] = Field(
        default=1, description="Its share among the endpoints; 0 sends it nothing."
    )


class HashKey(Model):
    """What the hash balancer looks at."""

    shorthand: ClassVar[str | None] = "on"
    on: Literal["client_address", "path", "server_name", "mqtt_client_id"] | None = Field(
        default=None,
        description="A property of the connection or request; `mqtt_client_id` is for relays: what the client's"
        " CONNECT says, or its address where that is empty.",
    )
    header: HeaderName | None = Field(default=None, description="The value of a request header.")

    @model_validator(mode="after")
    def _one(self) -> HashKey:
        if (self.on is None) == (self.header is None):
            fail(
                "E022",
                "a hash looks at exactly one thing",
                allowed=("client_address", "path", "server_name", "mqtt_client_id", "header"),
            )
        return self


class Balancer(Model):
    """How an endpoint is chosen: `round_robin`, `least_request` or `{hash: …}`."""

    shorthand: ClassVar[str | None] = "kind"
    kind: Literal["round_robin", "least_request", "hash"] = Field(
        default="round_robin", description="Turn by turn, the less busy of two, or always the same for the same key."
    )
    hash: HashKey | None = Field(default=None, description="The key of the `hash` balancer.")

    @classmethod
    def expand(cls, value: object) -> object:
        if isinstance(value, dict) and "hash" in value and "kind" not in value:
            return {"kind": "hash", **value}
        return super().expand(value)

    @model_validator(mode="after")
    def _coherent(self) -> Balancer:
        if (self.kind == "hash") != (self.hash is not None):
            hint = "write {hash: client_address}" if self.hash is None else "leave 'kind' out"
            fail("E022", "the hash balancer and its key belong together", hint=hint)
        return self


class UpstreamTimeouts(Model):
    """Bounds on waiting for an upstream."""

    connect: Annotated[timedelta, DurationRange("10ms", "5m")] = Field(
        default=timedelta(seconds=5), description="Until a connection is made, its TLS handshake included."
    )
    idle: Annotated[timedelta, DurationRange("1s", "1d")] = Field(
        default=timedelta(seconds=60), description="How long an unused connection is kept."
    )
    drain: Annotated[timedelta, DurationRange("0s", "4h")] = Field(
        default=timedelta(seconds=30),
        description="Relays and WebSockets to an endpoint that has been removed end within this time, each at a moment"
        " of its own.",
    )


class Upstream(Model):
    """A named group of endpoints that routes and relays send to."""

    name: Name = Field(description="What routes and relays call it.")
    endpoints: tuple[Endpoint, ...] = Field(default=(), description="Its addresses; or else `discover`.")
    discover: Discover | None = Field(default=None, description="Where its instances are registered.")
    health_check: Annotated[
        HealthCheck | None, BeforeValidator(switch, json_schema_input_type=HealthCheck | bool | None)
    ] = Field(default=None, description="What each instance is asked, again and again; `true` for all defaults.")
    panic_threshold: ShareOrNothing = Field(
        default=0.5,
        description="While less than this share of the weight is healthy, degraded instances are used too; while less"
        " of it is one or the other, all of them. `0%`: unavailable ones never.",
    )
    prefer_zone: Bool = Field(
        default=False,
        description="Only instances of the gateway's own zone (`discovery.zone`), while enough of them are healthy.",
    )
    probe_alpn: Bool = Field(
        default=False,
        description="Ask instances whose registry does not say so which protocols they speak, in TLS handshakes.",
    )
    balancer: Balancer = Field(default=Balancer(), description="How an endpoint is chosen.")
    protocol: Literal["http/1.1", "h2", "auto"] = Field(
        default="http/1.1",
        description="For routes: what it speaks; `h2` in the clear is by prior knowledge, `auto` asks by ALPN.",
    )
    tls: Annotated[UpstreamTls | None, BeforeValidator(switch, json_schema_input_type=UpstreamTls | bool | None)] = (
        Field(default=None, description="TLS to the endpoints; none when left out, `true` for all defaults.")
    )
    proxy_protocol: Bool = Field(
        default=False,
        description="Send a PROXY v2 header with ALPN, server name and TLS details first (relays only).",
    )
    timeouts: UpstreamTimeouts = Field(default=UpstreamTimeouts(), description="Bounds on waiting.")
    max_idle: Annotated[int, IntRange(0, 65536)] = Field(
        default=64, description="Unused connections kept per endpoint and worker."
    )
    outlier_detection: Annotated[
        OutlierDetection, BeforeValidator(detection, json_schema_input_type=OutlierDetection | bool)
    ] = Field(
        default=OutlierDetection(), description="When an endpoint is left alone that keeps failing; `false`: never."
    )
    slow_start: Annotated[timedelta, DurationRange("100ms", "1h")] | None = Field(
        default=None,
        description="How long an endpoint that is new, or back, takes from a tenth of its share to all of it;"
        " when left out it has all of it at once. Not for the `hash` balancer.",
    )
    limits: EndpointLimits = Field(default=EndpointLimits(), description="What one endpoint is asked for at once.")
    retries: Retries = Field(default=Retries(), description="When a request is sent once more.")
    hedge_after: Annotated[timedelta, DurationRange("1ms", "1m")] | None = Field(
        default=None,
        description="A GET, HEAD or OPTIONS without a body that has no response by then is sent to a second endpoint"
        " as well, and the first response counts; never when left out.",
    )
