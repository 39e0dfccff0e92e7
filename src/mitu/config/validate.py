"""Cross checks: what no single field can know. Pure: nothing outside the configuration is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mitu.config.diagnostic import Diagnostic, Loc, format_loc, nearest
from mitu.config.model import Config
from mitu.config.prune import Cut
from mitu.config.types import ip_address, split_host_port
from mitu.config.upstreams import Upstream


class Findings:
    """Collects diagnostics and knows where in the file they belong."""

    def __init__(self, config: Config, cut: Cut | None = None) -> None:
        self.config = config
        self.cut = cut
        self.found: list[Diagnostic] = []

    def add(self, code: str, message: str, loc: Loc, *, at_key: bool = False, **rest: Any) -> None:
        where = loc if self.cut is None else self.cut.original(loc)
        document = self.config.document
        if document is not None and not where:
            self.found.append(Diagnostic(code, message, file=document.file, **rest))
        elif document is None:
            self.found.append(Diagnostic(code, message, where, **rest))
        else:
            self.found.append(document.diagnostic(code, message, where, at_key=at_key, **rest))

    def complete(self, *loc: str | int) -> bool:
        """Whether nothing at or below `loc` was cut out, so that what is absent is really absent."""
        return self.cut is None or self.cut.complete(self.cut.original(loc))

    def lost_section(self) -> bool:
        """Whether a top-level section was cut out, such as a misspelt `upstreams`."""
        return self.cut is not None and any(len(loc) == 1 for loc in self.cut.removed)


def validate(config: Config, cut: Cut | None = None) -> list[Diagnostic]:
    """Everything that is wrong between the fields of `config`."""
    from mitu.config.validate_discovery import check_discovery
    from mitu.config.validate_listener import check_listener
    from mitu.config.validate_routes import check_routes

    findings = Findings(config, cut)
    _check_names(findings)
    _check_binds(findings)
    _check_upstreams(findings)
    for at, listener in enumerate(config.listeners):
        check_listener(findings, listener, ("listeners", at))
        check_routes(findings, listener, ("listeners", at))
    check_discovery(findings)
    _check_references(findings)
    _check_admin(findings)
    return findings.found


def _check_names(findings: Findings) -> None:
    config = findings.config
    if not config.listeners and findings.complete():
        findings.add("E023", "no listener: there is nothing to serve", ("listeners",))
    unique(findings, [one.name for one in config.listeners], ("listeners",), "listener")
    unique(findings, [one.name for one in config.upstreams], ("upstreams",), "upstream")


def unique(findings: Findings, names: Iterable[str | None], loc: Loc, what: str) -> None:
    """An error for each name that an earlier element of the list has."""
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        if name is not None and name in seen:
            first = (*loc, seen[name])
            where = first if findings.cut is None else findings.cut.original(first)
            findings.add("E041", f"a second {what} is called '{name}'", (*loc, at, "name"), hint=_first(where))
        elif name is not None:
            seen[name] = at


def _first(loc: Loc) -> str:
    return f"the first is {loc[-2]}[{loc[-1]}]; names are unique"


def _check_binds(findings: Findings) -> None:
    taken: dict[tuple[str, int], Loc] = {}
    binds: list[tuple[str, Loc]] = [
        (one.bind, ("listeners", at, "bind")) for at, one in enumerate(findings.config.listeners)
    ]
    if findings.config.admin.listen is not None:
        binds.append((findings.config.admin.listen, ("admin", "listen")))
    for bind, loc in binds:
        host, port = bind_address(bind)
        if port == 0:
            continue
        if (host, port) in taken:
            first = taken[host, port] if findings.cut is None else findings.cut.original(taken[host, port])
            findings.add("E042", f"'{bind}' is taken already", loc, hint=f"see {format_loc(first)}")
        elif any(other == port and "" in (host, address) for address, other in taken):
            findings.add("E042", f"'{bind}' overlaps a listener on all addresses of port {port}", loc)
        taken.setdefault((host, port), loc)


def bind_address(bind: str) -> tuple[str, int]:
    """Host and port of a bind address; `''` stands for all addresses."""
    host, port = split_host_port(bind) or ("", 0)
    if host == "localhost":
        return "127.0.0.1", port
    address = ip_address(host) if host else None
    return ("" if address is None or address.is_unspecified else str(address)), port


def _check_upstreams(findings: Findings) -> None:
    for at, upstream in enumerate(findings.config.upstreams):
        loc: Loc = ("upstreams", at)
        if not upstream.endpoints:
            if upstream.discover is None and findings.complete(*loc):
                hint = "list 'endpoints', or name a service to 'discover'"
                findings.add("E023", f"upstream '{upstream.name}' has no endpoints", (*loc, "endpoints"), hint=hint)
        elif findings.complete(*loc) and not any(one.weight for one in upstream.endpoints):
            hint = "give at least one endpoint a weight above 0"
            findings.add("E058", f"every endpoint of '{upstream.name}' has weight 0", (*loc, "endpoints"), hint=hint)
        seen: set[str] = set()
        for index, endpoint in enumerate(upstream.endpoints):
            if endpoint.address in seen:
                hint = "use 'weight' to send it more"
                findings.add("E041", f"'{endpoint.address}' is listed twice", (*loc, "endpoints", index), hint=hint)
            seen.add(endpoint.address)
        tls = upstream.tls
        if tls is None:
            continue
        if (tls.certificate is None) != (tls.key is None) and findings.complete(*loc, "tls"):
            absent = "key" if tls.key is None else "certificate"
            findings.add("E060", f"the client certificate lacks its '{absent}'", (*loc, "tls"))
        if (
            tls.server_name is None
            and tls.verify
            and any(one.address.startswith("unix:") for one in upstream.endpoints)
        ):
            hint = "name the server that the certificate is for"
            findings.add("E061", "TLS to a Unix socket needs 'server_name'", (*loc, "tls"), hint=hint)
        if not tls.verify:
            findings.add("W005", f"any certificate is accepted from '{upstream.name}'", (*loc, "tls", "verify"))


def _check_references(findings: Findings) -> None:
    """Every upstream that is named exists, every one that exists is named, and both sides agree on its use."""
    config = findings.config
    by_name = {one.name: (at, one) for at, one in enumerate(config.upstreams)}
    # A half of an upstream that was cut out is still the one that is meant.
    known = set(by_name) | declared_upstreams(findings)
    used: set[str] = set()
    for at, listener in enumerate(config.listeners):
        for index, protocol in enumerate(listener.protocols):
            if protocol.relay is not None:
                used.add(protocol.relay)
                used |= _check_reference(
                    findings, protocol.relay, known, ("listeners", at, "protocols", index, "relay")
                )
        for index, route in enumerate(listener.routes):
            if route.upstream is None:
                continue
            used.add(route.upstream)
            loc: Loc = ("listeners", at, "routes", index, "upstream")
            used |= _check_reference(findings, route.upstream, known, loc)
            if route.upstream in by_name and by_name[route.upstream][1].proxy_protocol:
                hint = "a pooled connection serves many clients; use X-Forwarded-For, or a second upstream for relays"
                findings.add(
                    "E059", f"upstream '{route.upstream}' has proxy_protocol, which is for relays", loc, hint=hint
                )
            if route.upstream in by_name and _hashes_mqtt(by_name[route.upstream][1]):
                hint = "hash by a header, or keep a second upstream for relays"
                message = f"upstream '{route.upstream}' looks at MQTT clients, and requests have none"
                findings.add("E087", message, loc, hint=hint)
    used |= {name for one in config.listeners if one.alpn_ranking for name in one.alpn_ranking.upstreams or ()}
    if findings.complete():
        for name in sorted(set(by_name) - used):
            findings.add("W002", f"no route and no relay uses upstream '{name}'", ("upstreams", by_name[name][0]))


def _hashes_mqtt(upstream: Upstream) -> bool:
    return upstream.balancer.hash is not None and upstream.balancer.hash.on == "mqtt_client_id"


def _check_reference(findings: Findings, name: str, known: set[str], loc: Loc) -> set[str]:
    """The upstreams that the name may stand for."""
    if name in known or (not known and findings.lost_section()):
        return {name}
    hint = None if known else "there are no upstreams; add one under 'upstreams'"
    closest = nearest(name, known)
    allowed = tuple(sorted(known))
    message = f"unknown upstream '{name}'"
    findings.add("E040", message, loc, found=name, allowed=allowed, nearest=closest, hint=hint)
    return set() if closest is None else {closest}


def declared_upstreams(findings: Findings) -> set[str]:
    if findings.cut is None or not isinstance(findings.cut.data, dict):
        return set()
    listed = findings.cut.data.get("upstreams")
    if not isinstance(listed, list | tuple):
        return set()
    names = [one.get("name") for one in listed if isinstance(one, dict)]
    return {name for name in names if isinstance(name, str) and name.isprintable()}


def _check_admin(findings: Findings) -> None:
    admin = findings.config.admin
    if admin.socket is not None and len(str(admin.socket).encode()) > 107:
        findings.add(
            "E065", "the socket's path is longer than the 107 bytes that the kernel allows", ("admin", "socket")
        )
    if admin.listen is not None:
        host, _ = bind_address(admin.listen)
        address = ip_address(host)
        if address is None or not address.is_loopback:
            hint = "listen on 127.0.0.1 or [::1]; reach it from elsewhere through SSH"
            findings.add(
                "E056",
                f"the admin endpoint listens on loopback only, found '{admin.listen}'",
                ("admin", "listen"),
                hint=hint,
            )
        if admin.token is None and findings.complete("admin"):
            hint = "add token: {file: …}"
            findings.add("E057", "the admin endpoint over TCP needs a token", ("admin", "listen"), hint=hint)
    if admin.token is not None and admin.token.value is not None and len(admin.token.value.get_secret_value()) < 16:
        findings.add(
            "E067", "the token is shorter than 16 characters", ("admin", "token"), hint="openssl rand -hex 32"
        )
