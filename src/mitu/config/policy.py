"""TLS policies: named ones, and how a protocol's settings go over its listener's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mitu.config.listeners import Protocol
from mitu.config.tls import TLS13_SUITES, ListenerTls, TlsSettings

# Mozilla's "Server Side TLS" 5.7. Intermediate's ECDHE suites are all those that exist here, so neither names any.
NAMED = {"modern": ("1.3", "1.3"), "intermediate": ("1.2", "1.3")}


@dataclass(frozen=True, slots=True)
class Policy:
    """What one protocol's handshakes obey. Empty `cipher_suites` and `groups`: the data plane's own order."""

    provider: str
    min_version: str
    max_version: str
    cipher_suites: tuple[str, ...]
    groups: tuple[str, ...]
    post_quantum: str
    client_auth: str
    client_ca: Path | None
    tickets: int


def merge(listener: ListenerTls, protocol: TlsSettings | None) -> Policy:
    """The listener's settings with a protocol's over them.

    A policy sets versions, suites and groups together; what is explicit beside it overrides it. So a policy named by
    the protocol puts aside the listener's explicit versions, suites and groups.
    """
    own = protocol or TlsSettings()
    under = TlsSettings() if own.policy is not None else listener
    low, high = NAMED[own.policy or listener.policy or "intermediate"]
    return Policy(
        provider=own.provider or listener.provider or "aws-lc",
        min_version=own.min_version or under.min_version or low,
        max_version=own.max_version or under.max_version or high,
        cipher_suites=_first(own.cipher_suites, under.cipher_suites),
        groups=_first(own.groups, under.groups),
        post_quantum=own.post_quantum or listener.post_quantum or "allow",
        client_auth=own.client_auth or listener.client_auth or "none",
        client_ca=own.client_ca or listener.client_ca,
        tickets=next(one for one in (own.tickets, listener.tickets, 1) if one is not None),
    )


def effective(listener: ListenerTls, protocol: Protocol) -> Policy:
    """What `protocol`'s handshakes obey: h3 has no version but TLS 1.3 (RFC 9001, section 4.2)."""
    policy = merge(listener, protocol.tls)
    if not protocol.is_quic:
        return policy
    suites = tuple(suite for suite in policy.cipher_suites if suite in TLS13_SUITES)
    return replace(policy, min_version="1.3", cipher_suites=suites)


def _first(*choices: tuple[str, ...] | None) -> tuple[str, ...]:
    return next((choice for choice in choices if choice is not None), ())
