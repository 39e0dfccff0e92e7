"""The data plane's own check: it has the last word, on regular expressions above all."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from mitu.config.compile_routes import route_names
from mitu.config.diagnostic import Diagnostic, Loc
from mitu.config.model import Config
from mitu.config.policy import merge
from mitu.config.validate import Findings

_REFUSALS = 50


def ask(document: dict[str, Any], secrets: dict[str, bytes], config: Config) -> list[Diagnostic]:
    """What the data plane refuses. It stops at its first error, so each route it names is dropped and it is asked
    again. A warning when it cannot be asked at all."""
    findings = Findings(config)
    try:
        from mitu import _native
    except ImportError as error:
        hint = "install mitu, or build it: maturin develop"
        findings.add("W009", f"not checked by the data plane: {error}", (), hint=hint)
        return findings.found
    _check_providers(findings, [name for name, _ in _native.crypto_providers()])
    if findings.found:
        return findings.found
    document = copy.deepcopy(document)
    for _ in range(_REFUSALS):
        try:
            _native.validate(json.dumps(document), secrets)
        except _native.NativeError as error:
            # Rust's regex errors draw the pattern with carets over several lines; the last one tells.
            message = re.sub(r"regex parse error: .* error: ", "", " ".join(str(error).split()))
            findings.add("E090", f"the data plane refuses it: {message}", _where(message, config))
            if not _drop_route(document, message):
                break
        else:
            break
    return findings.found


def _check_providers(findings: Findings, built: list[str]) -> None:
    """Where a provider is named that this build lacks. Other builds of the same version may have it."""
    named: dict[Loc, str] = {}
    for at, listener in enumerate(findings.config.listeners):
        for index, protocol in enumerate(listener.protocols):
            own: Loc = () if protocol.tls.provider is None else ("protocols", index)
            named["listeners", at, *own, "tls", "provider"] = merge(listener.tls, protocol.tls).provider
    for loc, provider in named.items():
        if provider not in built:
            message = f"provider '{provider}' is not in this build of mitu"
            findings.add("E091", message, loc, found=provider, allowed=tuple(built))


def _drop_route(document: dict[str, Any], message: str) -> bool:
    listener, route = _named("listener", message), _named("route", message)
    for one in document["listeners"]:
        for at, candidate in enumerate(one["routes"]):
            if one["name"] == listener and candidate["name"] == route:
                del one["routes"][at]
                return True
    return False


def _where(message: str, config: Config) -> Loc:
    """The place in the configuration that the data plane's words are about, as near as its names tell."""
    name = _named("listener", message)
    for at, listener in enumerate(config.listeners):
        if listener.name != name:
            continue
        names, route = route_names(listener.routes), _named("route", message)
        if route in names:
            return ("listeners", at, "routes", names.index(route))
        alpns, alpn = [one.alpn for one in listener.protocols], _named("protocol", message)
        return ("listeners", at, "protocols", alpns.index(alpn)) if alpn in alpns else ("listeners", at)
    upstreams, name = [one.name for one in config.upstreams], _named("upstream", message)
    return ("upstreams", upstreams.index(name)) if name in upstreams else ()


def _named(what: str, message: str) -> str | None:
    """The name after `what`, up to the quote that ends it: names may hold quotes, but not `': `."""
    match = re.search(rf"\b{what} '(.*?)'(?=: |$| )", message)
    return match[1] if match else None
