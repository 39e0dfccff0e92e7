"""Service discovery: the registries that upstreams learn their instances from."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mitu.config.base import Model, switch
from mitu.config.secret import Secret
from mitu.config.tls import UpstreamTls
from mitu.config.types import (
    ConfigPath,
    DurationRange,
    HeaderValue,
    HttpUrl,
    IntRange,
    Name,
    SocketName,
    Text,
    UrlPath,
    fail,
    text_of,
)

KINDS = ("file", "consul", "etcd", "dns", "kubernetes")


def _port(value: object) -> str:
    # YAML reads a number, where Kubernetes may have a name.
    return text_of(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


ProviderTls = Annotated[UpstreamTls | None, BeforeValidator(switch, json_schema_input_type=UpstreamTls | bool | None)]


class FileProvider(Model):
    """A YAML or JSON file that lists services and their instances; read again whenever it changes."""

    unwatched: ClassVar[frozenset[str]] = frozenset({"path"})
    path: ConfigPath = Field(description="The file.")


class ConsulProvider(Model):
    """Consul's health endpoint, by blocking queries."""

    address: HttpUrl = Field(default="http://127.0.0.1:8500", description="Of an agent or a server.")
    token: Secret | None = Field(default=None, description="ACL token, with `service:read` and `node:read`.")
    datacenter: Text | None = Field(default=None, description="The agent's own when left out.")
    namespace: Text | None = Field(default=None, description="Consul Enterprise only.")
    wait: Annotated[timedelta, DurationRange("1s", "10m")] = Field(
        default=timedelta(minutes=1), description="How long one blocking query waits for a change."
    )
    tls: ProviderTls = Field(default=None, description="For `https`: all defaults when left out.")


class EtcdProvider(Model):
    """etcd's v3 API, over its JSON gateway: a range and a watch for each service."""

    addresses: tuple[HttpUrl, ...] = Field(
        default=("http://127.0.0.1:2379",), description="Client URLs, tried in turn."
    )
    prefix: Text = Field(default="/mitu/services/", description="Instances are at `PREFIX/SERVICE/INSTANCE`.")
    username: Text | None = Field(default=None, description="Needs `password`.")
    password: Secret | None = Field(default=None, description="Of `username`.")
    tls: ProviderTls = Field(default=None, description="For `https`: all defaults when left out.")

    @model_validator(mode="after")
    def _coherent(self) -> EtcdProvider:
        if (self.username is None) != (self.password is None):
            fail("E022", "a user and a password belong together", allowed=("username and password", "neither"))
        if not self.addresses:
            fail("E023", "an etcd without an address", hint="leave 'addresses' out for http://127.0.0.1:2379")
        return self


class DnsProvider(Model):
    """DNS: SRV for `_name._proto.domain`, else A and AAAA; asked again when the time to live is over."""

    servers: tuple[SocketName, ...] = Field(
        default=(), description="`host:port` of name servers; the system's when left out."
    )
    min_ttl: Annotated[timedelta, DurationRange("100ms", "1h")] = Field(
        default=timedelta(seconds=1), description="Answers are not asked for more often."
    )
    max_ttl: Annotated[timedelta, DurationRange("1s", "1d")] = Field(
        default=timedelta(minutes=5), description="Nor less often, whatever they say."
    )
    timeout: Annotated[timedelta, DurationRange("100ms", "1m")] = Field(
        default=timedelta(seconds=5), description="For an answer."
    )

    @model_validator(mode="after")
    def _in_order(self) -> DnsProvider:
        if self.min_ttl > self.max_ttl:
            fail("E022", "min_ttl is longer than max_ttl", hint="an answer is kept for no less and no more")
        return self


class KubernetesProvider(Model):
    """EndpointSlices of a Kubernetes API server, listed and watched."""

    kubeconfig: ConfigPath | None = Field(
        default=None, description="When left out: the pod's own service account, or else `$KUBECONFIG`."
    )
    context: Text | None = Field(default=None, description="Of the kubeconfig; its current one when left out.")
    namespace: Text | None = Field(
        default=None, description="Of services that do not name theirs; the context's, or the pod's, when left out."
    )


class Provider(Model):
    """A registry, under the name that upstreams call it by."""

    name: Name = Field(description="What `discover.provider` calls it.")
    file: FileProvider | None = Field(default=None, description="A file.")
    consul: ConsulProvider | None = Field(default=None, description="Consul.")
    etcd: EtcdProvider | None = Field(default=None, description="etcd.")
    dns: DnsProvider | None = Field(default=None, description="DNS.")
    kubernetes: KubernetesProvider | None = Field(default=None, description="Kubernetes.")

    @model_validator(mode="after")
    def _one(self) -> Provider:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            fail("E022", f"the provider '{self.name}' is exactly one of these", allowed=KINDS)
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def settings(self) -> Model:
        """Those of its kind."""
        found: Model = getattr(self, self.kind)
        return found

    @property
    def secrets(self) -> dict[str, Secret]:
        """What it is let in with, by the field's name."""
        return {name: value for name, value in self.settings if isinstance(value, Secret)}


class Discovery(Model):
    """Service discovery. `consul`, `etcd`, `dns` and `kubernetes` are known with all defaults without being listed."""

    unwatched: ClassVar[frozenset[str]] = frozenset({"state"})
    state: ConfigPath | None = Field(
        default=None,
        description="Folder for what was last known, which holds through outages and restarts; when left out"
        " `$STATE_DIRECTORY/discovery` under systemd, else `mitu/discovery` in `$XDG_STATE_HOME`.",
    )
    providers: tuple[Provider, ...] = Field(default=(), description="Registries.")
    zone: Text | None = Field(default=None, description="Where this gateway is, for upstreams that prefer their zone.")
    start_timeout: Annotated[timedelta, DurationRange("0s", "5m")] = Field(
        default=timedelta(seconds=5),
        description="How long the start waits for instances of upstreams of which nothing is known from before.",
    )

    def provider(self, name: str) -> Provider | None:
        """The one that is called `name`; one with all defaults, where none is and `name` says its kind."""
        for one in self.providers:
            if one.name == name:
                return one
        if name in ("consul", "etcd", "dns", "kubernetes"):
            return Provider.model_validate({"name": name, name: {}})
        return None


class Discover(Model):
    """What an upstream's instances are called in a registry."""

    provider: Name = Field(description="A provider's name.")
    service: Text = Field(
        description="The service: its name in Consul, etcd or a file, `namespace/name` or `name` in Kubernetes, a"
        " domain name in DNS."
    )
    port: Annotated[str, BeforeValidator(_port)] | None = Field(
        default=None, description="DNS: the port for A and AAAA records; Kubernetes: a port's name or number."
    )
    tag: Text | None = Field(default=None, description="Consul: only instances with this tag.")


class HealthCheck(Model):
    """What each instance is asked, again and again."""

    kind: Literal["tcp", "tls", "http", "grpc", "mqtt"] = Field(
        default="tcp",
        description="`tcp`: a connection; `tls`: a handshake; `http`: a request; `grpc`: the health service; `mqtt`: a"
        " CONNECT.",
    )
    path: UrlPath = Field(default="/", description="`http`: path and query.")
    host: HeaderValue | None = Field(default=None, description="`http`: the `Host` header; the address when left out.")
    status: tuple[Annotated[int, IntRange(100, 599)], ...] = Field(
        default=(), description="`http`: statuses that are good; 200 to 399 when left out."
    )
    service: Text = Field(default="", description="`grpc`: the service asked for; the whole server when left out.")
    interval: Annotated[timedelta, DurationRange("100ms", "1h")] = Field(
        default=timedelta(seconds=10), description="From one check to the next, give or take a tenth."
    )
    timeout: Annotated[timedelta, DurationRange("10ms", "1m")] = Field(
        default=timedelta(seconds=2), description="For one check."
    )
    unhealthy_after: Annotated[int, IntRange(1, 100)] = Field(
        default=3, description="Failures in a row that make an instance unavailable."
    )
    healthy_after: Annotated[int, IntRange(1, 100)] = Field(
        default=2, description="Successes in a row that make it healthy again."
    )
