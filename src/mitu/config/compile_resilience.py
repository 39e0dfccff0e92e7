"""An upstream's ways with failing, new and busy endpoints in the form the data plane reads."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mitu.config.resilience import RETRIED_STATUSES

if TYPE_CHECKING:
    from mitu.config.resilience import OutlierDetection, Retries
    from mitu.config.upstreams import Upstream


def compile_resilience(upstream: Upstream) -> dict[str, Any]:
    detection, limits = upstream.outlier_detection, upstream.limits
    return {
        "outlier_detection": _outlier_detection(detection) if detection.enabled else None,
        "slow_start_ms": None if upstream.slow_start is None else _milliseconds(upstream.slow_start),
        "limits": {"connections": limits.connections, "pending": limits.pending, "requests": limits.requests},
        "retries": _retries(upstream.retries),
        "hedge_after_ms": None if upstream.hedge_after is None else _milliseconds(upstream.hedge_after),
    }


def _outlier_detection(detection: OutlierDetection) -> dict[str, Any]:
    return {
        "consecutive_failures": detection.consecutive_failures,
        "statuses": list(detection.statuses),
        "ejection_ms": _milliseconds(detection.ejection),
        "max_ejection_ms": _milliseconds(detection.max_ejection),
        "max_ejected": detection.max_ejected,
    }


def _retries(retries: Retries) -> dict[str, Any]:
    return {
        "attempts": retries.attempts,
        "budget": retries.budget,
        "min_per_second": retries.min_per_second,
        "connect": "connect" in retries.on,
        "reset": "reset" in retries.on,
        "refused_stream": "refused_stream" in retries.on,
        "statuses": [int(one) for one in retries.on if one in RETRIED_STATUSES],
    }


def _milliseconds(value: timedelta) -> int:
    return round(value / timedelta(milliseconds=1))
