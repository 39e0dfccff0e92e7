"""What is known of upstreams and rankings, as `mitu discover`, `mitu alpn explain` and the admin API tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mitu.alpn.decisions import Decision
from mitu.alpn.ranking import Ranking
from mitu.alpn.sources import Ranked
from mitu.discovery.balance import Share
from mitu.discovery.instance import Health
from mitu.discovery.tracked import Tracked, View


def service(tracked: Tracked, views: Sequence[View], shares: Mapping[str, Share]) -> dict[str, Any]:
    """One upstream with its instances. `shares`: those in force, by address."""
    discover, state = tracked.upstream.discover, tracked.state
    return {
        "upstream": tracked.name,
        "provider": None if discover is None else discover.provider,
        "service": None if discover is None else discover.service,
        "known_at": state.at,
        "stale": state.stale,
        "error": state.error,
        "instances": [_instance(view, shares[view.instance.address]) for view in views],
    }


def _instance(view: View, share: Share) -> dict[str, Any]:
    one = view.instance
    return {
        "id": one.id,
        "name": one.name,
        "address": one.address,
        "weight": one.weight,
        "used": share.used,
        "health": view.health.word,
        "reason": view.reason,
        "zone": one.zone,
        "protocols": None if view.protocols is None else list(view.protocols),
        "protocols_from": view.protocols_from,
        "evidence": [
            {"health": word.health.word, "source": word.source, "reason": word.reason} for word in view.evidence
        ],
    }


def ranking(one: Ranked, found: Ranking, decisions: Sequence[Decision]) -> dict[str, Any]:
    """One ranking: its order now, where each protocol stands and why, and its last changes."""
    return {
        "ranking": one.name,
        "listener": one.listener,
        "server_names": list(one.server_names),
        "configured": list(one.protocols),
        "order": list(found.order),
        "fallback": found.configured,
        "protocols": [
            {
                "alpn": standing.protocol,
                "score": None if standing.worth is None else round(float(standing.worth), 3),
                "offered": standing.protocol in found.order,
                "why": standing.why,
                "upstreams": list(one.upstreams.get(standing.protocol, ())),
            }
            for standing in found.standings
        ],
        "decisions": [decision.as_json() for decision in decisions],
    }


def metrics(services: Sequence[tuple[Tracked, Sequence[View]]], changes: int) -> str:
    """In Prometheus text format."""
    lines = [
        "# HELP mitu_discovery_instances Instances that are known of an upstream, by health.",
        "# TYPE mitu_discovery_instances gauge",
    ]
    for tracked, views in services:
        for health in Health:
            number = sum(view.health is health for view in views)
            lines.append(f'mitu_discovery_instances{{upstream="{tracked.name}",health="{health.word}"}} {number}')
    lines += [
        "# HELP mitu_discovery_stale Whether what is known of an upstream may be out of date: its registry is silent.",
        "# TYPE mitu_discovery_stale gauge",
        *(f'mitu_discovery_stale{{upstream="{one.name}"}} {int(one.state.stale)}' for one, _ in services),
        "# HELP mitu_alpn_order_changes_total Orders of protocols that came into force without a reload.",
        "# TYPE mitu_alpn_order_changes_total counter",
        f"mitu_alpn_order_changes_total {changes}",
    ]
    return "\n".join(lines) + "\n"
