"""From a `Config` to what the data plane obeys (`crates/mitu-proxy/src/config.rs`) and the key material beside it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mitu.config.alpn_policy import alpn_policy
from mitu.config.certificates import Inspector, Pair, covered
from mitu.config.compile_resilience import compile_resilience
from mitu.config.compile_routes import compile_routes
from mitu.config.connection_limits import connection_limits, kept_files
from mitu.config.diagnostic import Diagnostic, Loc, Report
from mitu.config.listeners import Listener, Protocol, SiteSettings
from mitu.config.model import Config, Handshakes, Rate
from mitu.config.policy import Policy, effective
from mitu.config.provider_files import check_provider_files
from mitu.config.sites import DEAR, Candidate, dear_certificates, default_site, derive_sites
from mitu.config.tickets import ticket_settings
from mitu.config.types import split_host_port
from mitu.config.upstreams import Balancer, Upstream
from mitu.config.validate import Findings, validate
from mitu.errors import ConfigError

# A certificate outside its dates fails `check`, but must not keep the other sites of a gateway from being served.
DATE_CODES = frozenset({"E074", "E075"})
HANDLERS = {"h3": "http3", "h2": "http2", "http/1.1": "http1"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """The runtime configuration (JSON), its key material by identifier, and every file that was read for it.

    `warnings` are worth a line in the log; certificates outside their dates are among them.
    """

    runtime: str = field(repr=False)
    secrets: dict[str, bytes] = field(repr=False)
    files: frozenset[Path]
    warnings: tuple[Diagnostic, ...] = ()


def python_handlers(config: Config) -> tuple[str, ...]:
    """The `module:function` names of all Python handlers, each once."""
    found = [protocol.handler for listener in config.listeners for protocol in listener.protocols]
    return tuple(dict.fromkeys(name for name in found if name is not None))


def compile_runtime(
    config: Config,
    handler_sockets: Mapping[str, Path | str] | None = None,
    *,
    open_files: int | None = None,
    memory: int | None = None,
) -> Compiled:
    """Compile `config`. `handler_sockets`: the Unix socket of each Python handler, by `module:function`; `open_files`:
    how many the process may have, which bounds its connections (None: no limit); `memory`: likewise, in bytes.

    ConfigError when the configuration or a file that it names is no good.
    """
    compiler = Compiler(config, dict(handler_sockets or {}), open_files=open_files, memory=memory)
    for name in python_handlers(config):
        if name not in compiler.handler_sockets:
            raise ValueError(f"no socket for the Python handler '{name}'")
    document = compiler.document()
    found = [*validate(config), *compiler.findings.found]
    blocking = [one for one in found if one.is_error and one.code not in DATE_CODES]
    if blocking:
        raise ConfigError(Report.of(found))
    files = set(compiler.inspector.files)
    if config.document is not None:
        files.add(config.document.file.absolute())
    if config.admin.token is not None and config.admin.token.file is not None:
        files.add(config.admin.token.file)
    report = Report.of(found)
    runtime = json.dumps(document, indent=1)
    return Compiled(runtime, compiler.secrets, frozenset(files), (*report.errors, *report.warnings))


@dataclass
class Compiler:
    """Gathers the runtime document, its secrets, and what is wrong with the files that it names."""

    config: Config
    handler_sockets: dict[str, Path | str]
    now: datetime | None = None
    open_files: int | None = None
    memory: int | None = None
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    certificates: dict[str, dict[str, str]] = field(default_factory=dict)
    pairs: dict[tuple[Path, Path], tuple[str, Pair] | None] = field(default_factory=dict)
    findings: Findings = field(init=False)
    inspector: Inspector = field(init=False)

    def __post_init__(self) -> None:
        self.findings = Findings(self.config)
        self.inspector = Inspector(self.findings) if self.now is None else Inspector(self.findings, self.now)

    def document(self) -> dict[str, Any]:
        config = self.config
        workers = config.runtime.workers or cores()
        asked = [one.limits.connections for one in config.listeners]
        connections = connection_limits(asked, self.open_files, workers)
        listeners = [
            self._listener(one, ("listeners", at), connections[at]) for at, one in enumerate(config.listeners)
        ]
        upstreams = [self._upstream(one, ("upstreams", at)) for at, one in enumerate(config.upstreams)]
        check_provider_files(config.discovery, self.inspector)
        return {
            "workers": workers,
            "scheduler": config.runtime.scheduler,
            "kept_files": kept_files(self.open_files, workers, len(listeners)),
            "access_log": self._access_log(),
            "tickets": ticket_settings(config.tickets, self.inspector, self.secrets),
            "handshakes": _handshakes(config.handshakes),
            "overload": {
                "memory_bytes": config.overload.memory or self.memory,
                "disable_keepalive": config.overload.disable_keepalive,
                "stop_accepting_requests": config.overload.stop_accepting_requests,
                "reject_connections": config.overload.reject_connections,
            },
            "certificates": list(self.certificates.values()),
            "listeners": listeners,
            "upstreams": [*upstreams, *self._handler_upstreams()],
        }

    def _access_log(self) -> dict[str, Any] | None:
        access = self.config.logging.access
        if access is None:
            return None
        path = access.path
        if path not in ("stdout", "stderr"):
            target = self.config.base / path
            if not target.parent.is_dir():
                hint = f"make the folder {target.parent}"
                self.findings.add(
                    "E066", f"the folder of '{path}' does not exist", ("logging", "access", "path"), hint=hint
                )
            path = str(target)
        return {
            "path": path,
            "requests": access.requests,
            "connections": access.connections,
            "queue": access.queue,
        }

    def _listener(self, listener: Listener, loc: Loc, connections: int) -> dict[str, Any]:
        sites, default = self._sites(listener, loc)
        limits, timeouts = listener.limits, listener.timeouts
        if connections < limits.connections and "connections" in limits.model_fields_set:
            message = (
                f"'{listener.name}' may have {connections} connections at once, not {limits.connections}:"
                f" this process may have {self.open_files} files open"
            )
            hint = "raise that limit with 'ulimit -n', or LimitNOFILE= of the service; or set limits.connections lower"
            self.findings.add("W011", message, (*loc, "limits", "connections"), hint=hint)
        return {
            "name": listener.name,
            "bind": socket_address(listener.bind),
            "backlog": limits.backlog,
            "proxy_protocol_from": list(listener.proxy_protocol.trusted) if listener.proxy_protocol else [],
            "trusted_proxies": list(listener.trusted_proxies),
            "protocols": [
                self._protocol(listener, one, (*loc, "protocols", at)) for at, one in enumerate(listener.protocols)
            ],
            "alt_svc": _alt_svc(listener),
            "sites": sites,
            "default_site": default,
            "routes": compile_routes(listener.routes, _source_prefix(self.config.handshakes)),
            "limits": {
                "connections": connections,
                "request_header_bytes": limits.request_header_size,
                "request_headers": limits.request_headers,
                "request_body_bytes": limits.request_body_size,
                "concurrent_streams": limits.concurrent_streams,
                "buffer_bytes": limits.buffer_size,
            },
            "timeouts": {
                "handshake_ms": milliseconds(timeouts.handshake),
                "request_header_ms": milliseconds(timeouts.request_header),
                "idle_ms": milliseconds(timeouts.idle),
                "relay_idle_ms": milliseconds(timeouts.relay_idle),
                "relay_drain_ms": None if timeouts.relay_drain is None else milliseconds(timeouts.relay_drain),
            },
        }

    def _protocol(self, listener: Listener, protocol: Protocol, loc: Loc) -> dict[str, Any]:
        if protocol.handler is not None:
            handler = {"kind": "relay", "upstream": handler_upstream(protocol.handler)}
        elif protocol.relay is not None:
            handler = {"kind": "relay", "upstream": protocol.relay}
        else:
            handler = {"kind": HANDLERS.get(protocol.alpn, "http1")}
        own_ca = protocol.tls.client_ca is not None
        ca_loc: Loc = (*loc, "tls", "client_ca") if own_ca else (*loc[:2], "tls", "client_ca")
        return {
            "alpn": protocol.alpn,
            "handler": handler,
            "tls": self._policy(effective(listener.tls, protocol), ca_loc)
            | {"early_data": _takes_early_data(listener, protocol)},
        }

    def _policy(self, policy: Policy, ca_loc: Loc) -> dict[str, Any]:
        client_auth: dict[str, str] = {"mode": policy.client_auth}
        if policy.client_auth != "none" and policy.client_ca is not None:
            client_auth["ca"] = self._authorities(policy.client_ca, ca_loc)
        return {
            "provider": policy.provider,
            "min_version": policy.min_version,
            "max_version": policy.max_version,
            "cipher_suites": list(policy.cipher_suites),
            "groups": list(policy.groups),
            "post_quantum": policy.post_quantum,
            "client_auth": client_auth,
            "tickets": policy.tickets,
        }

    def _authorities(self, path: Path, loc: Loc) -> str:
        """The identifier of a bundle of trusted roots."""
        identifier = f"ca:{path}"
        if identifier not in self.secrets:
            bundle = self.inspector.authorities(path, loc)
            if bundle is not None:
                self.secrets[identifier] = bundle
        return identifier

    def _pair(self, certificate: Path, key: Path, loc: Loc, *, serving: bool = True) -> tuple[str, Pair] | None:
        """Identifier and content of a chain with its key, each read and checked once."""
        if (certificate, key) not in self.pairs:
            pair = self.inspector.pair(certificate, key, loc, serving=serving)
            self.pairs[certificate, key] = None if pair is None else (self._keep(certificate, key, pair), pair)
        return self.pairs[certificate, key]

    def _keep(self, certificate: Path, key: Path, pair: Pair) -> str:
        identifier = str(certificate) if str(certificate) not in self.certificates else f"{certificate}+{key}"
        entry = {"id": identifier, "chain": f"chain:{certificate}", "key": f"key:{key}"}
        self.certificates[identifier] = entry
        self.secrets[entry["chain"]] = pair.chain
        self.secrets[entry["key"]] = pair.key
        return identifier

    def _sites(self, listener: Listener, loc: Loc) -> tuple[list[dict[str, Any]], int | None]:
        """The sites, and which of them unknown names lead to."""
        candidates = []
        for at, one in enumerate(listener.tls.certificates):
            where: Loc = (*loc, "tls", "certificates", at)
            found = self._pair(one.certificate, one.key, where)
            if found is None:
                continue
            identifier, pair = found
            for name in one.names or ():
                if not covered(name, pair.names):
                    hint = f"the certificate is for {', '.join(pair.names[:8])}"
                    self.findings.add(
                        "W007", f"'{name}' is not among the certificate's names", (*where, "names"), hint=hint
                    )
            candidates.append(Candidate(identifier, pair.key_type, one.names or pair.names))
        sites = derive_sites(candidates, [one.names for one in listener.sites])
        self._check_site_names(listener, candidates, loc)
        served = {identifier for site in sites for identifier in site.certificates}
        dear = dear_certificates(sites, candidates)
        for at, one in enumerate(listener.tls.certificates):
            found = self.pairs.get((one.certificate, one.key))
            where = (*loc, "tls", "certificates", at)
            if found is not None and found[0] not in served:
                hint = "an earlier certificate with the same kind of key takes all its names"
                self.findings.add("W010", f"'{one.certificate.name}' is never served", where, hint=hint)
            elif found is not None and (kind := dear.pop(found[0], None)) is not None:
                message = f"full handshakes with '{one.certificate.name}' are dear: {DEAR[kind]}"
                hint = "put a P-256 certificate for the same names beside it; 'mitu crypto' measures it here"
                self.findings.add("W012", message, where, hint=hint)
        default = None
        if sites and listener.tls.unknown_name == "default":
            sites, default = default_site(sites)
        return [
            {
                "names": list(site.names),
                "certificates": list(site.certificates),
                "alpn": _alpn(listener, None if site.settings is None else listener.sites[site.settings]),
            }
            for site in sites
        ], default

    def _check_site_names(self, listener: Listener, candidates: list[Candidate], loc: Loc) -> None:
        if len(candidates) < len(listener.tls.certificates):
            return
        known = tuple(name for one in candidates for name in one.names)
        for at, site in enumerate(listener.sites):
            for index, name in enumerate(site.names):
                if not covered(name, known) and not any(covered(one, (name,)) for one in known):
                    hint = f"there are certificates for {', '.join(known[:8])}"
                    self.findings.add(
                        "E092", f"no certificate is for '{name}'", (*loc, "sites", at, "names", index), hint=hint
                    )

    def _upstream(self, upstream: Upstream, loc: Loc) -> dict[str, Any]:
        return {
            "name": upstream.name,
            "endpoints": [{"address": one.address, "weight": one.weight} for one in upstream.endpoints],
            "balancer": _balancer(upstream.balancer),
            "protocol": upstream.protocol,
            "tls": self._upstream_tls(upstream, (*loc, "tls")),
            "proxy_protocol": upstream.proxy_protocol,
            "connect_timeout_ms": milliseconds(upstream.timeouts.connect),
            "idle_timeout_ms": milliseconds(upstream.timeouts.idle),
            "max_idle": upstream.max_idle,
            "drain_ms": milliseconds(upstream.timeouts.drain),
            **compile_resilience(upstream),
        }

    def _upstream_tls(self, upstream: Upstream, loc: Loc) -> dict[str, Any] | None:
        tls = upstream.tls
        if tls is None:
            return None
        found = None
        if tls.certificate is not None and tls.key is not None:
            found = self._pair(tls.certificate, tls.key, loc, serving=False)
        return {
            "server_name": tls.server_name,
            "ca": None if tls.ca is None else self._authorities(tls.ca, (*loc, "ca")),
            "client_certificate": None if found is None else found[0],
            "verify": tls.verify,
        }

    def _handler_upstreams(self) -> Iterator[dict[str, Any]]:
        for name in python_handlers(self.config):
            upstream = Upstream(name="handler", endpoints=(), proxy_protocol=True)
            address = f"unix:{self.handler_sockets[name]}"
            plain = self._upstream(upstream, ())
            yield plain | {"name": handler_upstream(name), "endpoints": [{"address": address, "weight": 1}]}


def handler_upstream(handler: str) -> str:
    """The upstream behind a Python handler; '@' keeps it apart from names in the configuration."""
    return f"@{handler}"


def _alt_svc(listener: Listener) -> dict[str, Any] | None:
    settings = listener.alt_svc
    if not settings.advertise or not any(protocol.is_quic for protocol in listener.protocols):
        return None
    return {"port": settings.port, "max_age_s": int(settings.max_age.total_seconds())}


def _takes_early_data(listener: Listener, protocol: Protocol) -> bool:
    """Only requests can be told apart that may be served twice."""
    return protocol.is_http and any(route.early_data for route in listener.routes)


def _alpn(listener: Listener, site: SiteSettings | None) -> dict[str, Any]:
    policy = alpn_policy(listener, site)
    names = [protocol.alpn for protocol in listener.protocols]
    return {
        "mode": policy.mode,
        "protocols": [names.index(name) for name in policy.protocols],
        "no_alpn": names.index(policy.no_alpn) if policy.no_alpn in names else None,
        "ranking": policy.ranking,
    }


def socket_address(bind: str) -> str:
    """The one socket address of a `bind`; all addresses are one IPv6 socket where the kernel can."""
    host, port = split_host_port(bind) or ("", 0)
    if not host:
        return f"[::]:{port}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{port}"
    if host == "localhost":
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def milliseconds(value: timedelta) -> int:
    return round(value / timedelta(milliseconds=1))


def _handshakes(handshakes: Handshakes) -> dict[str, Any]:
    return {
        "patience_ms": milliseconds(handshakes.patience),
        "queue": handshakes.queue,
        "source_prefix": _source_prefix(handshakes),
        "source_rate": _rate(handshakes.source_rate),
        "server_name_rate": _rate(handshakes.server_name_rate),
    }


def _source_prefix(handshakes: Handshakes) -> dict[str, int]:
    return {"ipv4": handshakes.ipv4_prefix, "ipv6": handshakes.ipv6_prefix}


def _rate(rate: Rate | None) -> dict[str, int] | None:
    return None if rate is None else {"per_second": rate.per_second, "burst": rate.burst or 2 * rate.per_second}


def _balancer(balancer: Balancer) -> dict[str, Any]:
    key = balancer.hash
    if key is None:
        return {"kind": balancer.kind}
    on = {"kind": "header", "value": key.header} if key.header is not None else {"kind": key.on}
    return {"kind": "hash", "on": on}
