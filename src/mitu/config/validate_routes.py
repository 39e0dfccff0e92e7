"""Cross checks of a listener's routes: names, filters that fit, and routes that no request can reach."""

from __future__ import annotations

import re
from datetime import timedelta

from mitu.config.diagnostic import Loc
from mitu.config.listeners import Listener
from mitu.config.policy import effective
from mitu.config.routes import DEFAULT_TIMEOUT, Filter, HeaderOps, Match, Route
from mitu.config.types import shown
from mitu.config.validate import Findings, unique

# RFC 9110, section 9.2.1; TRACE is not served at all.
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))

# Framing and hop-by-hop headers (RFC 9110 §7.6.1, §8.6), as in `crates/mitu-proxy/src/filter/headers.rs`.
OWNED_HEADERS = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def check_routes(findings: Findings, listener: Listener, loc: Loc) -> None:
    unique(findings, [route.name for route in listener.routes], (*loc, "routes"), "route")
    for at, route in enumerate(listener.routes):
        where = (*loc, "routes", at)
        for index, one in enumerate(route.filters):
            _check_filter(findings, route, one, (*where, "filters", index))
        _check_respond(findings, route, where)
        _check_redirect(findings, listener.routes[:at], route, where)
        if route.timeout is not None and route.upstream is None:
            hint = "only a route to an upstream waits"
            findings.add("E062", "a timeout on a route without an upstream", (*where, "timeout"), hint=hint)
        if route.try_timeout is not None:
            _check_try_timeout(findings, route, route.try_timeout, where)
        _check_limits(findings, listener, route, where)
        _check_early_data(findings, listener, route, where)
        earlier = next((one for one in range(at) if covers(listener.routes[one].match, route.match)), None)
        if earlier is not None:
            first = findings.cut.original((*loc, "routes", earlier))[-1] if findings.cut else earlier
            hint = "put the more specific route first"
            message = f"unreachable: routes[{first}] takes every request that this one matches"
            findings.add("W001", message, (*where, "match"), hint=hint)


def _check_try_timeout(findings: Findings, route: Route, limit: timedelta, where: Loc) -> None:
    if route.upstream is None:
        hint = "only a route to an upstream waits"
        findings.add("E062", "a timeout for tries on a route without an upstream", (*where, "try_timeout"), hint=hint)
    elif limit >= (route.timeout or DEFAULT_TIMEOUT):
        hint = "it is the time for one of several tries, which 'timeout' is for all of"
        findings.add("E022", "try_timeout is no less than timeout", (*where, "try_timeout"), hint=hint)


def _check_limits(findings: Findings, listener: Listener, route: Route, where: Loc) -> None:
    if route.limits.response_body_size is not None and route.upstream is None:
        findings.add(
            "E062",
            "a bound on responses on a route without an upstream",
            (*where, "limits", "response_body_size"),
            hint="the route's own answer is as long as it is written",
        )
    if route.compress is not None and route.upstream is None:
        hint = "only what an upstream answers is compressed"
        findings.add("E062", "compression on a route without an upstream", (*where, "compress"), hint=hint)
    asked = any(effective(listener.tls, one).client_auth != "none" for one in listener.protocols if one.is_http)
    for at, limit in enumerate(route.rate_limits):
        loc = (*where, "rate_limits", at)
        if limit in route.rate_limits[:at]:
            findings.add("E048", "a rate limit is listed twice", loc, hint="remove it")
        if limit.key.on == "client_certificate" and not asked:
            message = "no client of this listener is asked for a certificate"
            findings.add("E085", message, (*loc, "key"), hint="set tls.client_auth, or take the key 'source'")


def _check_early_data(findings: Findings, listener: Listener, route: Route, where: Loc) -> None:
    if not route.early_data:
        return
    policies = [effective(listener.tls, one) for one in listener.protocols if one.is_http]
    if not any(one.tickets and one.max_version == "1.3" for one in policies):
        hint = "set tls.tickets to 1 and tls.max_version to 1.3, or drop early_data"
        message = "early data, but no client of this listener resumes in TLS 1.3"
        findings.add("W013", message, (*where, "early_data"), hint=hint)
    elif route.match.all_methods and not SAFE_METHODS & set(route.match.all_methods):
        methods = ", ".join(route.match.all_methods)
        hint = f"only {', '.join(sorted(SAFE_METHODS))} are served early: drop early_data"
        findings.add("W013", f"early data, but only for {methods}", (*where, "early_data"), hint=hint)


def _check_filter(findings: Findings, route: Route, one: Filter, where: Loc) -> None:
    if one.rewrite is not None and one.rewrite.prefix is not None and route.match.path_prefix is None:
        hint = "match by path_prefix, or rewrite by regex"
        findings.add(
            "E053",
            "a prefix is rewritten, but the route does not match by one",
            (*where, "rewrite", "prefix"),
            hint=hint,
        )
    for kind, ops in (("request_headers", one.request_headers), ("response_headers", one.response_headers)):
        if ops is not None:
            _check_owned(findings, ops, (*where, kind))


def _check_owned(findings: Findings, ops: HeaderOps, where: Loc) -> None:
    changes = [(name, (*where, "remove", at)) for at, name in enumerate(ops.remove)]
    changes += [(name, (*where, "set", name)) for name in ops.set]
    changes += [(name, (*where, "add", name)) for name in ops.add]
    for name, loc in changes:
        if name in OWNED_HEADERS:
            hint = "use the filter {host: …}" if name == "host" else "drop it"
            findings.add("E063", f"the header '{name}' belongs to the gateway", loc, at_key=True, hint=hint)


def _check_respond(findings: Findings, route: Route, where: Loc) -> None:
    respond = route.respond
    if respond is None:
        return
    if respond.content_type is not None and "content-type" in respond.headers:
        findings.add(
            "E022",
            "content_type and the header 'content-type' exclude each other",
            (*where, "respond", "content_type"),
        )
    if respond.body and respond.status in (204, 205, 304):
        findings.add("E034", f"a response with status {respond.status} has no body", (*where, "respond", "body"))
    for name in respond.headers:
        if name in OWNED_HEADERS:
            findings.add(
                "E063",
                f"the header '{name}' belongs to the gateway",
                (*where, "respond", "headers", name),
                hint="drop it",
            )


def _check_redirect(findings: Findings, earlier: tuple[Route, ...], route: Route, where: Loc) -> None:
    redirect = route.redirect
    if redirect is None or redirect.host is not None or redirect.scheme == "http":
        return
    # Every listener speaks TLS, so `scheme: https` changes nothing.
    target = redirect.path.split("?")[0] if redirect.path is not None else None
    if target is None:
        hint = "give it a host or a path; every listener is https already"
        findings.add("E064", "the redirect leads to where the request came from", (*where, "redirect"), hint=hint)
    elif _takes(route.match, target) and not any(_takes(one.match, target) for one in earlier):
        hint = f"put a route for {shown(target)} in front"
        findings.add(
            "E064",
            f"the route matches its own redirect's target {shown(target)}: a loop",
            (*where, "redirect", "path"),
            hint=hint,
        )


def _takes(match: Match, path: str) -> bool:
    """Whether a request for `path` can match, whatever else it holds."""
    if match.path is not None:
        return match.path == path
    if match.path_prefix is not None:
        return under(path, match.path_prefix)
    if match.path_regex is not None:
        try:
            return re.fullmatch(match.path_regex, path) is not None
        except re.error:
            return False
    return True


def under(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or below it, in whole segments."""
    rest = path.removeprefix(prefix)
    return path.startswith(prefix) and (rest == "" or rest.startswith("/") or prefix.endswith("/"))


def covers(first: Match, second: Match) -> bool:
    """Whether `first` takes every request that `second` takes. False when that cannot be told."""
    if first.all_hosts and not second.all_hosts:
        return False
    if not all(
        any(_covers_host(one, other) for one in first.all_hosts) for other in second.all_hosts if first.all_hosts
    ):
        return False
    if first.all_methods and not (second.all_methods and set(second.all_methods) <= set(first.all_methods)):
        return False
    if any(second.headers.get(name) != condition for name, condition in first.headers.items()):
        return False
    return _covers_path(first, second)


def _covers_host(pattern: str, other: str) -> bool:
    if pattern == other:
        return True
    return pattern.startswith("*.") and not other.startswith("*.") and other.partition(".")[2] == pattern[2:]


def _covers_path(first: Match, second: Match) -> bool:
    if first.path is not None:
        return second.path == first.path
    if first.path_regex is not None:
        return second.path_regex == first.path_regex
    if first.path_prefix is None or first.path_prefix == "/":
        return True
    other = second.path if second.path is not None else second.path_prefix
    return other is not None and under(other, first.path_prefix)
