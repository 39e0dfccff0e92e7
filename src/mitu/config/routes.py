"""Routes: what a request must look like, what is changed on the way, and who answers it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from mitu.config.base import Model
from mitu.config.types import (
    Bool,
    DurationRange,
    HeaderName,
    HeaderValue,
    HostPattern,
    IntRange,
    MatchPath,
    MediaType,
    Method,
    Name,
    Regex,
    RouteName,
    SizeRange,
    Text,
    UrlPath,
    fail,
)

COMPRESSED_TYPES = (
    "text/*",
    "application/*+json",
    "application/*+xml",
    "application/javascript",
    "application/json",
    "application/wasm",
    "application/xml",
    "font/otf",
    "font/ttf",
    "image/svg+xml",
    "image/vnd.microsoft.icon",
)
"""What is text at heart, or as dense as text."""

REDIRECTS = (301, 302, 303, 307, 308)
DEFAULT_TIMEOUT = timedelta(seconds=60)


def _redirect_status(value: object) -> object:
    if isinstance(value, int) and value not in REDIRECTS:
        fail("E034", f"{value} is not a redirect", allowed=map(str, REDIRECTS))
    return value


def given(model: Model, fields: tuple[str, ...]) -> list[str]:
    """Those of `fields` that were set to something."""
    return [field for field in fields if getattr(model, field) not in (None, ())]


class HeaderCondition(Model):
    """What a request header must be; a bare string is its exact value."""

    shorthand: ClassVar[str | None] = "exact"
    exact: HeaderValue | None = Field(default=None, description="Its whole value.")
    regex: Regex | None = Field(default=None, description="A regular expression that its whole value must match.")
    present: Bool | None = Field(default=None, description="Whether it is there at all.")

    @model_validator(mode="after")
    def _one(self) -> HeaderCondition:
        if len(given(self, ("exact", "regex", "present"))) != 1:
            fail("E022", "a header condition is exactly one of these", allowed=("exact", "regex", "present"))
        return self


class Match(Model):
    """Conditions on a request. All that are given must hold; without any, every request matches."""

    host: HostPattern | None = Field(default=None, description="The request's host, without a port.")
    hosts: tuple[HostPattern, ...] = Field(default=(), description="The same, any one of several.")
    path: MatchPath | None = Field(default=None, description="The whole path.")
    path_prefix: MatchPath | None = Field(
        default=None, description="Whole segments in front: `/api` matches `/api` and `/api/x`, not `/apix`."
    )
    path_regex: Regex | None = Field(default=None, description="A regular expression that the whole path must match.")
    method: Method | None = Field(default=None, description="The request's method.")
    methods: tuple[Method, ...] = Field(default=(), description="The same, any one of several.")
    headers: dict[HeaderName, HeaderCondition] = Field(
        default={}, description="Conditions on request headers, by header name."
    )

    @model_validator(mode="after")
    def _coherent(self) -> Match:
        paths = ("path", "path_prefix", "path_regex")
        for group in (paths, ("host", "hosts"), ("method", "methods")):
            if len(given(self, group)) > 1:
                fail("E022", f"{' and '.join(given(self, group))} exclude each other", hint="keep one of them")
        return self

    @property
    def all_hosts(self) -> tuple[str, ...]:
        return self.hosts if self.host is None else (self.host,)

    @property
    def all_methods(self) -> tuple[str, ...]:
        return self.methods if self.method is None else (self.method,)


class HeaderOps(Model):
    """Changes to headers, in this order: remove, set, add."""

    remove: tuple[HeaderName, ...] = Field(default=(), description="Headers to drop.")
    set: dict[HeaderName, HeaderValue] = Field(default={}, description="Headers that get this one value.")
    add: dict[HeaderName, HeaderValue] = Field(default={}, description="Values added beside those already there.")


class Rewrite(Model):
    """A change of the path that the upstream sees."""

    prefix: UrlPath | None = Field(default=None, description="Replaces the prefix that the route matched.")
    regex: Regex | None = Field(default=None, description="Its first match in the path is replaced by `to`.")
    to: Text | None = Field(default=None, description="The replacement; `$1` stands for the first group.")

    @model_validator(mode="after")
    def _one(self) -> Rewrite:
        if (self.prefix is None) == (self.regex is None) or (self.regex is None) != (self.to is None):
            fail("E022", "a rewrite is one of two forms", allowed=("{prefix: /new}", "{regex: …, to: …}"))
        return self


class Filter(Model):
    """One change to the request or response; a list of them is applied in order."""

    request_headers: HeaderOps | None = Field(default=None, description="Changes to the request's headers.")
    response_headers: HeaderOps | None = Field(default=None, description="Changes to the response's headers.")
    rewrite: Rewrite | None = Field(default=None, description="A change of the path.")
    host: HeaderValue | None = Field(default=None, description="The host (`Host`, `:authority`) the upstream sees.")
    grpc_web: Literal[True] | None = Field(
        default=None, description="What browsers send as gRPC-Web goes to the upstream as gRPC, and back."
    )

    @model_validator(mode="after")
    def _one(self) -> Filter:
        kinds = ("request_headers", "response_headers", "rewrite", "host", "grpc_web")
        if len(given(self, kinds)) != 1:
            fail("E022", "a filter does exactly one thing", allowed=kinds, hint="make it two items of the list")
        return self


class Respond(Model):
    """A fixed response."""

    status: Annotated[int, IntRange(200, 599)] = Field(default=200, description="The status code.")
    content_type: HeaderValue | None = Field(default=None, description="The `content-type` header.")
    headers: dict[HeaderName, HeaderValue] = Field(default={}, description="Further headers.")
    body: Text = Field(default="", description="The body.")


class Redirect(Model):
    """A redirect; what is left out is taken from the request."""

    status: Annotated[
        int, IntRange(0, 999), BeforeValidator(_redirect_status), WithJsonSchema({"enum": list(REDIRECTS)})
    ] = Field(default=308, description="The status code.")
    scheme: Literal["http", "https"] | None = Field(default=None, description="The scheme of the new URL.")
    host: HeaderValue | None = Field(default=None, description="The host, and port if any, of the new URL.")
    path: UrlPath | None = Field(default=None, description="Replaces path and query.")


class ClientKey(Model):
    """What tells one client from another."""

    shorthand: ClassVar[str | None] = "on"
    on: Literal["source", "client_certificate", "host"] | None = Field(
        default=None,
        description="`source`: the network of its address, as `handshakes` has it; `client_certificate`: the one that"
        " was verified; `host`: the host that it asks for.",
    )
    header: HeaderName | None = Field(default=None, description="The value of a request header.")

    @model_validator(mode="after")
    def _one(self) -> ClientKey:
        if (self.on is None) == (self.header is None):
            allowed = ("source", "client_certificate", "host", "header")
            fail("E022", "clients are told apart by exactly one thing", allowed=allowed)
        return self


class RateLimit(Model):
    """A token bucket for each client; a request that finds it empty gets 429."""

    key: ClientKey = Field(description="What tells one client from another. Those without it share one bucket.")
    per_second: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="Requests a second, for long."
    )
    per_minute: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="Requests a minute, for long."
    )
    burst: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="Requests at once; when left out, those of a second, or of a minute."
    )

    @model_validator(mode="after")
    def _one(self) -> RateLimit:
        if (self.per_second is None) == (self.per_minute is None):
            fail("E022", "a rate is exactly one of these", allowed=("per_second", "per_minute"))
        return self


class RouteLimits(Model):
    """Bounds on the bodies of one route."""

    request_body_size: Annotated[int, SizeRange("1B", "1024GiB")] | None = Field(
        default=None, description="A request's body; over: 413. The listener's when left out."
    )
    response_body_size: Annotated[int, SizeRange("1B", "1024GiB")] | None = Field(
        default=None,
        description="The body of an upstream's response; over: 502 where that is announced, else it is cut short."
        " Unlimited when left out.",
    )


class Compress(Model):
    """Which responses of an upstream are compressed on their way, for clients that take it."""

    encodings: tuple[Literal["zstd", "br", "gzip"], ...] = Field(
        default=("zstd", "br", "gzip"),
        description="Most preferred first, where the client does not say which it likes better.",
    )
    min_size: Annotated[int, SizeRange("1B", "1GiB")] = Field(
        default=1 << 10, description="Responses that announce a shorter body are passed on as they are."
    )
    types: tuple[MediaType, ...] = Field(
        default=COMPRESSED_TYPES, description="Media types, in which one `*` may stand for anything."
    )

    @model_validator(mode="after")
    def _some(self) -> Compress:
        if not self.encodings or not self.types:
            hint = "leave 'compress' out where nothing is to be compressed"
            fail("E022", "compression by no encoding, or of no type", hint=hint)
        if len(set(self.encodings)) < len(self.encodings):
            fail("E048", "an encoding is listed twice", hint="remove it")
        return self


def _compress(value: object) -> object:
    """`true` and `false` in place of a mapping."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Route(Model):
    """The first route whose `match` holds answers the request."""

    name: RouteName | None = Field(
        default=None, description="Its name in logs and metrics; made from the match when left out."
    )
    match: Match = Field(default=Match(), description="Which requests it takes.")
    filters: tuple[Filter, ...] = Field(default=(), description="Changes to request and response, in order.")
    rate_limits: tuple[RateLimit, ...] = Field(
        default=(), description="How many requests each client may make; a request has to pass all of them."
    )
    limits: RouteLimits = Field(default=RouteLimits(), description="Bounds on bodies.")
    compress: Annotated[Compress | None, BeforeValidator(_compress, json_schema_input_type=Compress | bool | None)] = (
        Field(default=None, description="Compression of responses; none when left out, `true` for all defaults.")
    )
    early_data: Bool = Field(
        default=False,
        description="Whether requests without side effects (GET, HEAD, OPTIONS, no body) are served that come in TLS"
        " 1.3 early data (0-RTT), which may be a replay; the upstream is told by `Early-Data: 1`, and may answer 425."
        " Others wait for the end of the handshake. Clients of the listener then resume on this node alone.",
    )
    upstream: Name | None = Field(default=None, description="The upstream that answers.")
    respond: Respond | None = Field(default=None, description="A fixed response.")
    redirect: Redirect | None = Field(default=None, description="A redirect.")
    timeout: Annotated[timedelta, DurationRange("1ms", "1d")] | None = Field(
        default=None,
        description="From the request's arrival to the end of the upstream's response headers; over: 504. 60s when"
        " left out.",
    )
    try_timeout: Annotated[timedelta, DurationRange("1ms", "1d")] | None = Field(
        default=None,
        description="The same for one try: over, another is made where the upstream's `retries` allow it, else 504."
        " `timeout` alone when left out.",
    )

    @model_validator(mode="after")
    def _one_action(self) -> Route:
        actions = ("upstream", "respond", "redirect")
        found = given(self, actions)
        if not found:
            fail("E022", "a route without an action", allowed=actions, hint="say who answers the request")
        if len(found) > 1:
            fail("E022", f"a route has one action, found {' and '.join(found)}", hint="keep one of them")
        return self
