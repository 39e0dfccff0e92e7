"""What real traffic shows: endpoints that the data plane has ejected, and that do not speak h2 though they could."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mitu.discovery.instance import Evidence, Health

_CAUSES = 3


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one upstream, by address."""

    ejected: Mapping[str, Evidence] = field(default_factory=dict)
    chose_http11: frozenset[str] = frozenset()
    """Those that chose http/1.1 at their last TLS connection."""


def seen(endpoints: str) -> dict[str, Traffic]:
    """By upstream. `endpoints`: what the data plane says of all (JSON)."""
    upstreams: Mapping[str, list[dict[str, Any]]] = json.loads(endpoints)
    return {
        name: Traffic(
            {one["address"]: _ejected(one) for one in found if one["ejected"] is not None},
            frozenset(one["address"] for one in found if one["alpn"] == "http/1.1"),
        )
        for name, found in upstreams.items()
    }


def _ejected(endpoint: dict[str, Any]) -> Evidence:
    causes = ", ".join(dict.fromkeys(endpoint["causes"][-_CAUSES:])) or "failures"
    return Evidence(Health.UNAVAILABLE, "traffic", f"ejected after {causes}")
