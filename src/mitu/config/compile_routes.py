"""The routes' part of the runtime configuration."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from mitu.config.routes import (
    DEFAULT_TIMEOUT,
    Compress,
    Filter,
    HeaderCondition,
    HeaderOps,
    Match,
    RateLimit,
    Route,
)


def compile_routes(routes: Sequence[Route], source_prefix: dict[str, int]) -> list[dict[str, Any]]:
    """`source_prefix`: bits of an address, by kind of address, that tell one source from another."""
    names = route_names(routes)
    return [
        {
            "name": name,
            "match": _match(route.match),
            "filters": [_filter(one) for one in route.filters],
            "rate_limits": [_rate_limit(one, source_prefix) for one in route.rate_limits],
            "request_body_bytes": route.limits.request_body_size,
            "response_body_bytes": route.limits.response_body_size,
            "early_data": route.early_data,
            "compress": _compress(route.compress),
            "action": _action(route),
        }
        for name, route in zip(names, routes, strict=True)
    ]


def route_names(routes: Sequence[Route]) -> list[str]:
    """Given names, and for the others what they match (`GET example.com/api/*`), each name once."""
    taken = {route.name for route in routes if route.name is not None}
    names = []
    for route in routes:
        name = route.name
        if name is None:
            name = base = _generated(route.match)
            number = 2
            while name in taken:
                name = f"{base} #{number}"
                number += 1
            taken.add(name)
        names.append(name)
    return names


def _generated(match: Match) -> str:
    path = match.path or match.path_prefix or match.path_regex or "/"
    if match.path_regex is not None:
        path = f"~{match.path_regex}"
    elif match.path is None:
        path = f"{path.rstrip('/')}/*"
    methods = ",".join(match.all_methods)
    text = f"{methods} {','.join(match.all_hosts)}{path}".strip()
    return text if len(text) <= 100 else f"{text[:99]}…"


def _match(match: Match) -> dict[str, Any]:
    path = None
    for kind, value in (("exact", match.path), ("prefix", match.path_prefix), ("regex", match.path_regex)):
        if value is not None:
            path = {"kind": kind, "value": value}
    return {
        "hosts": list(match.all_hosts),
        "path": path,
        "methods": list(match.all_methods),
        "headers": [{"name": name, "value": _condition(one)} for name, one in match.headers.items()],
    }


def _condition(one: HeaderCondition) -> dict[str, Any]:
    if one.present is not None:
        return {"kind": "present" if one.present else "absent"}
    if one.regex is not None:
        return {"kind": "regex", "value": one.regex}
    return {"kind": "exact", "value": one.exact}


def _filter(one: Filter) -> dict[str, Any]:
    if one.request_headers is not None:
        return {"kind": "request_headers", **_ops(one.request_headers)}
    if one.response_headers is not None:
        return {"kind": "response_headers", **_ops(one.response_headers)}
    if one.rewrite is not None and one.rewrite.prefix is not None:
        return {"kind": "rewrite_prefix", "to": one.rewrite.prefix}
    if one.rewrite is not None:
        return {"kind": "rewrite_regex", "pattern": one.rewrite.regex, "to": one.rewrite.to}
    if one.host is not None:
        return {"kind": "host", "to": one.host}
    return {"kind": "grpc_web"}


def _ops(ops: HeaderOps) -> dict[str, Any]:
    return {
        "remove": list(ops.remove),
        "set": [list(pair) for pair in ops.set.items()],
        "add": [list(pair) for pair in ops.add.items()],
    }


def _compress(compress: Compress | None) -> dict[str, Any] | None:
    if compress is None:
        return None
    return {
        "encodings": list(compress.encodings),
        "min_bytes": compress.min_size,
        "types": list(compress.types),
    }


def _rate_limit(limit: RateLimit, source_prefix: dict[str, int]) -> dict[str, Any]:
    seconds, number = (1, limit.per_second) if limit.per_second is not None else (60, limit.per_minute or 1)
    key: dict[str, Any] = {"kind": limit.key.on}
    if limit.key.header is not None:
        key = {"kind": "header", "value": limit.key.header}
    elif limit.key.on == "source":
        key["value"] = source_prefix
    return {"key": key, "every_ns": round(seconds * 1e9 / number), "burst": limit.burst or number}


def _action(route: Route) -> dict[str, Any]:
    if route.respond is not None:
        headers = [[name, value] for name, value in route.respond.headers.items()]
        if route.respond.content_type is not None:
            headers.insert(0, ["content-type", route.respond.content_type])
        return {
            "kind": "respond",
            "status": route.respond.status,
            "headers": headers,
            "body": route.respond.body,
        }
    if route.redirect is not None:
        redirect = route.redirect
        return {
            "kind": "redirect",
            "status": redirect.status,
            "scheme": redirect.scheme,
            "host": redirect.host,
            "path": redirect.path,
        }
    return {
        "kind": "upstream",
        "upstream": route.upstream,
        "timeout_ms": _milliseconds(route.timeout or DEFAULT_TIMEOUT),
        "try_timeout_ms": None if route.try_timeout is None else _milliseconds(route.try_timeout),
    }


def _milliseconds(value: timedelta) -> int:
    return round(value / timedelta(milliseconds=1))
