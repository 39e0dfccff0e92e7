"""Which instances get traffic, and how much: from what is known of them to the weights that the data plane goes by."""

from __future__ import annotations

from collections.abc import Sequence

from mitu.discovery.instance import Health
from mitu.discovery.tracked import View


def weights(views: Sequence[View], *, panic_threshold: float, zone: str | None = None) -> dict[str, int]:
    """By address: each one's weight, 0 for those that are not to be used now.

    `zone`: prefer the instances there. `panic_threshold`: the share of the weight that has to be healthy for healthy
    ones to be enough; else degraded ones help, and if that is not enough either, all of them: a load that nobody can
    take is better spread over everybody than over the few that still look well. At 0 nobody who is unavailable is
    used.
    """
    chosen = _usable(views, panic_threshold)
    if zone is not None:
        local = [one for one in views if one.instance.zone == zone]
        usable = [one for one in local if one.health is Health.HEALTHY]
        # Its own zone is no use if what is left of it would have to bear everything.
        if _weight(usable) and _weight(usable) >= panic_threshold * _weight(local):
            chosen = usable
    kept = {id(one) for one in chosen}
    found: dict[str, int] = {}
    for one in views:
        weight = one.instance.weight if id(one) in kept else 0
        found[one.instance.address] = min(1000, found.get(one.instance.address, 0) + weight)
    return found


def _usable(views: Sequence[View], panic_threshold: float) -> Sequence[View]:
    healthy = [one for one in views if one.health is Health.HEALTHY]
    working = [one for one in views if one.health is not Health.UNAVAILABLE]
    enough = panic_threshold * _weight(views)
    for tier in (healthy, working):
        if _weight(tier) and _weight(tier) >= enough:
            return tier
    return views if panic_threshold else working


def _weight(views: Sequence[View]) -> int:
    return sum(one.instance.weight for one in views)
