"""Which instances get traffic, and how much: from what is known of them to the shares that the data plane goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mitu.discovery.instance import Health
from mitu.discovery.tracked import View


class Share(NamedTuple):
    """Of an address. One that is not used has a weight too: it is what keys of a hash return to it by."""

    weight: int
    used: bool


def shares(views: Sequence[View], *, panic_threshold: float, zone: str | None = None) -> dict[str, Share]:
    """Each one's, by address.

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
    used = _by_address(chosen)
    return {
        address: Share(used.get(address, weight), bool(used.get(address)))
        for address, weight in _by_address(views).items()
    }


def _by_address(views: Sequence[View]) -> dict[str, int]:
    """Several instances at one address have one weight between them."""
    found: dict[str, int] = {}
    for one in views:
        found[one.instance.address] = min(1000, found.get(one.instance.address, 0) + one.instance.weight)
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
