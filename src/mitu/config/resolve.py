"""The resolved form of a configuration: what is in force, with every default and derived value filled in.

It is a configuration again: reading it back gives the same runtime configuration.
"""

from __future__ import annotations

import re
from typing import Any

from mitu.config.alpn_policy import alpn_policy, effective_no_alpn
from mitu.config.compile_routes import route_names
from mitu.config.listeners import Listener, Protocol
from mitu.config.model import Config
from mitu.config.policy import effective
from mitu.config.routes import DEFAULT_TIMEOUT
from mitu.config.source import secret_name
from mitu.config.types import format_duration

REDACTED = "(redacted)"


def resolved(config: Config) -> dict[str, Any]:
    """Plain values for YAML or JSON. Secrets, and what came from variables that hold secrets, are redacted."""
    form: dict[str, Any] = config.model_dump(mode="json")
    form["admin"]["socket"] = str(config.admin.socket_path)
    for listener, one in zip(config.listeners, form["listeners"], strict=True):
        _listener(listener, one)
    redactions = () if config.document is None else config.document.redactions
    cleaned = _clean(form, redactions, False)
    return cleaned if isinstance(cleaned, dict) else {}


def _listener(listener: Listener, form: dict[str, Any]) -> None:
    form["no_alpn"] = effective_no_alpn(listener)
    for site, one in zip(listener.sites, form["sites"], strict=True):
        policy = alpn_policy(listener, site)
        protocols = None if site.alpn_order is not None else list(policy.protocols)
        one |= {"alpn_mode": policy.mode, "protocols": protocols, "no_alpn": policy.no_alpn}
    for protocol, one in zip(listener.protocols, form["protocols"], strict=True):
        one["tls"] = _policy(listener, protocol)
    for name, route, one in zip(route_names(listener.routes), listener.routes, form["routes"], strict=True):
        one["name"] = name
        if route.upstream is not None and route.timeout is None:
            one["timeout"] = format_duration(DEFAULT_TIMEOUT)
        one["match"] = {key: value for key, value in one["match"].items() if value}


def _policy(listener: Listener, protocol: Protocol) -> dict[str, Any]:
    policy = effective(listener.tls, protocol)
    return {
        # Named, so that what is not said below comes from the policy and not from the listener.
        "policy": protocol.tls.policy or listener.tls.policy or "intermediate",
        "min_version": policy.min_version,
        "max_version": policy.max_version,
        "cipher_suites": list(policy.cipher_suites) or None,
        "groups": list(policy.groups) or None,
        "post_quantum": policy.post_quantum,
        "client_auth": policy.client_auth,
        "client_ca": None if policy.client_ca is None else str(policy.client_ca),
        "tickets": policy.tickets,
        "provider": policy.provider,
    }


def _clean(value: Any, redactions: tuple[tuple[str, str], ...], secret: bool) -> Any:
    """Without what is unset, and without secrets."""
    if isinstance(value, dict):
        items = {key: one for key, one in value.items() if one is not None}
        return {
            key: _clean(one, redactions, key != "file" and (secret or secret_name(key))) for key, one in items.items()
        }
    if isinstance(value, list):
        return [_clean(one, redactions, secret) for one in value]
    if not isinstance(value, str):
        return value
    if secret:
        return REDACTED
    text = _escape(value)
    for found, name in redactions:
        text = text.replace(_escape(found), f"${{{name}}}")
    return text


def _escape(text: str) -> str:
    """`text` so that it reads back as it is: without a dollar sign that would begin a variable."""
    return re.sub(r"\$(?=[${])", "$$", text)
