"""Cross checks of one listener: every protocol has a handler, and its TLS settings hold together."""

from __future__ import annotations

from typing import Any

from mitu.config.diagnostic import Loc, nearest
from mitu.config.listeners import H3, HTTP_PROTOCOLS, Listener, Protocol
from mitu.config.policy import Policy, merge
from mitu.config.tls import HYBRID, TLS12_SUITES, TLS13_SUITES
from mitu.config.types import shown
from mitu.config.validate import Findings

# The ALPN table of the data plane keeps the offered protocols as bits of one word.
MAX_PROTOCOLS = 64
# Version, its suites, and which bound to move to which version when none of them is wanted.
FAMILIES = (("1.2", TLS12_SUITES, "min_version", "1.3"), ("1.3", TLS13_SUITES, "max_version", "1.2"))


def check_listener(findings: Findings, listener: Listener, loc: Loc) -> None:
    _check_protocols(findings, listener, loc)
    _check_http(findings, listener, loc)
    _check_no_alpn(findings, listener, loc)
    _check_sites(findings, listener, loc)
    _check_tls(findings, listener, loc)


def _check_protocols(findings: Findings, listener: Listener, loc: Loc) -> None:
    if not listener.protocols and findings.complete(*loc):
        findings.add("E023", f"listener '{listener.name}' serves no protocol", (*loc, "protocols"))
    if len(listener.protocols) > MAX_PROTOCOLS:
        findings.add("E016", f"more than {MAX_PROTOCOLS} protocols", (*loc, "protocols"))
    seen: set[str] = set()
    for at, protocol in enumerate(listener.protocols):
        where = (*loc, "protocols", at)
        if protocol.alpn in seen:
            findings.add("E043", f"'{protocol.alpn}' is listed twice", where, hint="an offer has one handler")
        seen.add(protocol.alpn)
        _check_handler(findings, protocol, where)


def _check_handler(findings: Findings, protocol: Protocol, where: Loc) -> None:
    if protocol.alpn == H3 and not protocol.is_http:
        hint = "leave relay and handler away: its requests go to the routes"
        findings.add("E049", "h3 is served in QUIC, which has no stream of bytes to hand on", where, hint=hint)
    elif protocol.relay is not None and protocol.handler is not None:
        findings.add("E050", f"'{protocol.alpn}' has both a relay and a handler", where, hint="keep one of them")
    elif protocol.relay is None and protocol.handler is None and protocol.alpn not in HTTP_PROTOCOLS:
        if not findings.complete(*where):
            return
        aliases = {"http": "http/1.1", "http1": "http/1.1", "http1.1": "http/1.1", "http2": "h2", "http/2": "h2"}
        aliases |= {"http3": H3, "http/3": H3, "quic": H3}
        closest = aliases.get(protocol.alpn.lower()) or nearest(protocol.alpn, HTTP_PROTOCOLS)
        hint = "name the upstream with 'relay', or a Python function with 'handler'"
        findings.add(
            "E047", f"nothing handles {shown(protocol.alpn)}", where, found=protocol.alpn, nearest=closest, hint=hint
        )


def _check_http(findings: Findings, listener: Listener, loc: Loc) -> None:
    """Routes and HTTP protocols come together or not at all."""
    http = [at for at, protocol in enumerate(listener.protocols) if protocol.is_http]
    if http and not listener.routes and findings.complete(*loc, "routes"):
        names = " and ".join(f"'{listener.protocols[at].alpn}'" for at in http)
        hint = "add routes, or a relay to the protocol"
        findings.add(
            "E045", f"{names} offered, but there are no routes to answer", (*loc, "protocols", http[0]), hint=hint
        )
    if listener.routes and listener.protocols and not http and findings.complete(*loc, "protocols"):
        hint = "add h2 and http/1.1 to 'protocols', or drop the routes"
        findings.add(
            "E046",
            "there are routes, but no HTTP protocol that leads to them",
            (*loc, "routes"),
            at_key=True,
            hint=hint,
        )


def _check_no_alpn(findings: Findings, listener: Listener, loc: Loc) -> None:
    names = [protocol.alpn for protocol in listener.protocols if not protocol.is_quic]
    if listener.no_alpn in (None, "refuse", *names) or not findings.complete(*loc, "protocols"):
        return
    allowed = (*dict.fromkeys(names), "refuse")
    findings.add(
        "E044",
        f"no_alpn names '{listener.no_alpn}', which is not among the protocols on TCP",
        (*loc, "no_alpn"),
        found=listener.no_alpn,
        allowed=allowed,
        nearest=nearest(str(listener.no_alpn), allowed),
    )


def _check_sites(findings: Findings, listener: Listener, loc: Loc) -> None:
    """Every server name is settled once, with protocols that there are."""
    served = tuple(protocol.alpn for protocol in listener.protocols)
    on_tcp = tuple(protocol.alpn for protocol in listener.protocols if not protocol.is_quic)
    seen: set[str] = set()
    for at, site in enumerate(listener.sites):
        where = (*loc, "sites", at)
        if not site.names and findings.complete(*where):
            findings.add("E023", "these settings are for no server name", (*where, "names"))
        for index, name in enumerate(site.names):
            if name in seen:
                findings.add("E041", f"'{name}' has settings already", (*where, "names", index))
            seen.add(name)
        if not findings.complete(*loc, "protocols") or not findings.complete(*where):
            continue
        if site.alpn_order is not None and site.protocols is not None:
            hint = "alpn_order says both which protocols there are and in which order; leave 'protocols' out"
            findings.add("E022", "protocols and alpn_order exclude each other", (*where, "alpn_order"), hint=hint)
        for key, listed in (("protocols", site.protocols), ("alpn_order", site.alpn_order)):
            _check_listed(findings, listed, served, (*where, key))
        mode = site.alpn_mode or listener.alpn_mode
        if site.no_alpn in (None, "refuse"):
            continue
        if mode == "strict":
            hint = "clients without ALPN are refused; leave no_alpn out, or set alpn_mode to lenient"
            findings.add("E022", f"no_alpn is '{site.no_alpn}', but alpn_mode is strict", where, hint=hint)
            continue
        allowed_here = site.alpn_order or site.protocols or served
        possible = [name for name in on_tcp if mode == "observe" or name in allowed_here]
        if site.no_alpn not in possible:
            message = f"no_alpn names '{site.no_alpn}', which is not among the site's protocols on TCP"
            allowed = (*dict.fromkeys(possible), "refuse")
            closest = nearest(str(site.no_alpn), allowed)
            findings.add("E044", message, (*where, "no_alpn"), found=site.no_alpn, allowed=allowed, nearest=closest)


def _check_listed(findings: Findings, names: tuple[str, ...] | None, served: tuple[str, ...], loc: Loc) -> None:
    """Protocols that a site names are the listener's."""
    if names == ():
        findings.add("E023", "an empty list allows nothing", loc, hint="leave it out for all")
    for index, name in enumerate(names or ()):
        if name not in served:
            message = f"'{name}' is not among the listener's protocols"
            closest = nearest(name, served)
            findings.add("E044", message, (*loc, index), found=name, allowed=served, nearest=closest)
        elif loc[-1] == "alpn_order" and names is not None and name in names[:index]:
            findings.add("E048", f"'{name}' is listed twice", (*loc, index))


def _check_tls(findings: Findings, listener: Listener, loc: Loc) -> None:
    tls = listener.tls
    if not tls.certificates and findings.complete(*loc, "tls", "certificates"):
        findings.add("E023", "TLS needs at least one certificate", (*loc, "tls", "certificates"))
    if tls.certificates == () and not findings.complete(*loc, "tls"):
        return
    policies: list[tuple[Loc, Policy, str | None]] = [((*loc, "tls"), merge(tls, None), tls.post_quantum)]
    policies += [
        ((*loc, "protocols", at, "tls"), merge(tls, protocol.tls), protocol.tls.post_quantum)
        for at, protocol in enumerate(listener.protocols)
        if protocol.tls.model_fields_set
    ]
    told: set[tuple[str, str]] = set()

    def say(code: str, message: str, where: Loc, **rest: Any) -> None:
        # What a protocol inherits from the listener is said once, at the listener.
        if (code, message) not in told:
            findings.add(code, message, where, **rest)
        told.add((code, message))

    for at, protocol in enumerate(listener.protocols):
        if protocol.is_quic and merge(tls, protocol.tls).max_version < "1.3" and findings.complete(*loc, "tls"):
            hint = "allow TLS 1.3 for it: {alpn: h3, tls: {policy: modern}}"
            findings.add("E049", "h3 needs TLS 1.3", (*loc, "protocols", at), hint=hint)
    for where, policy, post_quantum in policies:
        if policy.min_version > policy.max_version:
            say("E032", f"min_version {policy.min_version} is above max_version {policy.max_version}", where)
        else:
            for version, family, bound, other in FAMILIES:
                served = policy.min_version <= version <= policy.max_version
                whole = findings.complete(*where) and findings.complete(*loc, "tls")
                if (
                    whole
                    and served
                    and policy.cipher_suites
                    and not any(suite in family for suite in policy.cipher_suites)
                ):
                    hint = f'add one, or set {bound}: "{other}"'
                    say(
                        "E033",
                        f"none of the cipher suites is for TLS {version}",
                        where,
                        allowed=tuple(family),
                        hint=hint,
                    )
        if policy.client_auth != "none" and policy.client_ca is None and findings.complete(*where):
            hint = "set client_ca to the PEM file of the authorities that sign the clients' certificates"
            say("E052", f"client_auth is '{policy.client_auth}', but there is no client_ca", where, hint=hint)
        if contradiction := _contradiction(policy, post_quantum):
            say("E036", contradiction, where)
    used = any(policy.client_auth != "none" for _, policy, _ in policies)
    if tls.client_ca is not None and not used and findings.complete(*loc):
        hint = "set client_auth to optional or required"
        findings.add(
            "W003",
            "client_ca has no effect: no protocol asks for a client certificate",
            (*loc, "tls", "client_ca"),
            hint=hint,
        )


def _contradiction(policy: Policy, own: str | None) -> str | None:
    """What keeps `post_quantum` from having its effect. `own`: as it is set here, and not inherited.

    A protocol without TLS 1.3 may well inherit `prefer` from its listener.
    """
    listed = HYBRID in policy.groups
    if policy.post_quantum == "prefer" and policy.groups and not listed:
        return f"post_quantum is 'prefer', but {HYBRID} is not among the groups"
    if policy.post_quantum == "off" and listed:
        return f"post_quantum is 'off', but {HYBRID} is among the groups"
    if own == "prefer" and policy.max_version == "1.2":
        return "post_quantum is 'prefer', but max_version is 1.2, which cannot do it"
    return None
