"""Cross checks of discovery: providers that there are, upstreams that can use them, and rankings with something to go
by."""

from __future__ import annotations

from mitu.config.diagnostic import Loc, nearest
from mitu.config.listeners import Listener
from mitu.config.upstreams import Upstream
from mitu.config.validate import Findings, unique


def check_discovery(findings: Findings) -> None:
    config = findings.config
    loc: Loc = ("discovery", "providers")
    unique(findings, [one.name for one in config.discovery.providers], loc, "provider")
    used = {one.discover.provider for one in config.upstreams if one.discover is not None}
    for at, provider in enumerate(config.discovery.providers):
        if provider.name not in used and findings.complete():
            findings.add("W002", f"no upstream uses the provider '{provider.name}'", (*loc, at))
    for at, upstream in enumerate(config.upstreams):
        _check_upstream(findings, upstream, ("upstreams", at))
    for at, listener in enumerate(config.listeners):
        if listener.alpn_ranking is not None:
            _check_ranking(findings, listener, ("listeners", at, "alpn_ranking"))


def _check_upstream(findings: Findings, upstream: Upstream, loc: Loc) -> None:
    discover = upstream.discover
    if upstream.prefer_zone and findings.config.discovery.zone is None and findings.complete("discovery"):
        hint = "say where this gateway is: discovery: {zone: …}"
        findings.add("E022", "prefer_zone needs the gateway's own zone", (*loc, "prefer_zone"), hint=hint)
    if upstream.probe_alpn and upstream.tls is None and findings.complete(*loc):
        hint = "set tls; in the clear there is no ALPN to probe"
        findings.add("E022", "probe_alpn needs TLS to the upstream", (*loc, "probe_alpn"), hint=hint)
    if discover is None:
        return
    if upstream.endpoints:
        hint = "keep 'endpoints' or 'discover'; a file provider can list addresses and health"
        findings.add(
            "E022", "endpoints are listed or discovered, not both", (*loc, "discover"), at_key=True, hint=hint
        )
    provider = findings.config.discovery.provider(discover.provider)
    if provider is None:
        if findings.complete("discovery"):
            known = ("consul", "etcd", "dns", "kubernetes")
            names = tuple(dict.fromkeys((*(one.name for one in findings.config.discovery.providers), *known)))
            findings.add(
                "E040",
                f"unknown provider '{discover.provider}'",
                (*loc, "discover", "provider"),
                found=discover.provider,
                allowed=names,
                nearest=nearest(discover.provider, names),
            )
        return
    if provider.dns is not None and not discover.service.startswith("_") and discover.port is None:
        hint = "add port, or ask for an SRV record: _service._tcp.example.com"
        findings.add("E022", "A and AAAA records have no port", (*loc, "discover"), hint=hint)
    if discover.tag is not None and provider.consul is None:
        findings.add("E022", "only Consul has tags", (*loc, "discover", "tag"), hint="leave it out")


def _check_ranking(findings: Findings, listener: Listener, loc: Loc) -> None:
    settings = listener.alpn_ranking
    if settings is None:
        return
    served = tuple(protocol.alpn for protocol in listener.protocols)
    if findings.complete(*loc[:-1], "protocols"):
        for name in settings.scores:
            if name not in served:
                message = f"'{name}' is not among the listener's protocols"
                closest = nearest(name, served)
                findings.add("E044", message, (*loc, "scores", name), found=name, allowed=served, nearest=closest)
    known = {one.name: one for one in findings.config.upstreams}
    for at, name in enumerate(settings.upstreams or ()):
        if name not in known and findings.complete("upstreams"):
            names = tuple(sorted(known))
            closest = nearest(name, names)
            where = (*loc, "upstreams", at)
            findings.add("E040", f"unknown upstream '{name}'", where, found=name, allowed=names, nearest=closest)
    behind = {route.upstream for route in listener.routes} | {one.relay for one in listener.protocols}
    if settings.upstreams is not None:
        behind |= set(settings.upstreams)
    judged = [one for name, one in known.items() if name in behind]
    if (
        judged
        and findings.complete()
        and not any(one.discover or one.health_check or one.probe_alpn for one in judged)
    ):
        hint = "let an upstream be discovered, or give it a health_check"
        message = f"the order of '{listener.name}' never changes: nothing is learned of its upstreams"
        findings.add("W014", message, loc, at_key=True, hint=hint)
