"""What one configuration follows, and what that comes to: endpoints with their shares, and orders of protocols."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mitu.alpn.ranking import Behind, Ranking, Voice, rank
from mitu.alpn.sources import Ranked
from mitu.alpn.steady import Steady
from mitu.config.listeners import H3
from mitu.config.model import Config
from mitu.discovery.balance import Share, shares
from mitu.discovery.following import Following
from mitu.discovery.instance import Health
from mitu.discovery.tracked import Tracked, View

Views = Mapping[str, list[View]]


@dataclass
class Plan:
    """`new`: those that no configuration before it has followed like that."""

    config: Config
    following: dict[str, Following]
    rankings: tuple[Ranked, ...]
    steady: dict[str, Steady]
    new: list[Following]

    def views(self) -> Views:
        """All that is known of the instances, by upstream."""
        return {name: one.tracked.views() for name, one in self.following.items()}

    def shares(self, tracked: Tracked, views: list[View]) -> dict[str, Share]:
        """What the data plane is to balance by, by address."""
        upstream = tracked.upstream
        zone = self.config.discovery.zone if upstream.prefer_zone else None
        return shares(views, panic_threshold=upstream.panic_threshold, zone=zone)

    def known(self, now: float) -> tuple[str, dict[str, Ranking], float | None]:
        """The document for the data plane, the rankings in it by name, and when to look again though nothing changes
        (None: never). Times are monotonic, in seconds."""
        views = self.views()
        ranked = {one.name: self._rank(one, views, now) for one in self.rankings}
        rankings = {name: ranking for name, (ranking, _) in ranked.items()}
        # Listed endpoints too, whatever was known of them before.
        balanced = {
            upstream.name: {one.address: Share(one.weight, used=True) for one in upstream.endpoints}
            for upstream in self.config.upstreams
        }
        balanced |= {name: self.shares(one.tracked, views[name]) for name, one in self.following.items()}
        endpoints = {
            name: [{"address": address, **share._asdict()} for address, share in found.items()]
            for name, found in balanced.items()
        }
        document = json.dumps({"endpoints": endpoints, "orders": {name: one.order for name, one in rankings.items()}})
        return document, rankings, min((again for _, again in ranked.values() if again is not None), default=None)

    def _rank(self, one: Ranked, views: Views, now: float) -> tuple[Ranking, float | None]:
        names = dict.fromkeys(name for names in one.upstreams.values() for name in names)
        seen = {(name, view.instance.id): view for name in names for view in views.get(name, ())}
        held, again = self.steady[one.name].update({key: view.health for key, view in seen.items()}, now)
        voices = {
            upstreams: (
                *(_voice(key[0], view, held[key]) for key, view in seen.items() if key[0] in upstreams),
                *(self._stranger(name) for name in upstreams if not self._knows(name)),
            )
            for upstreams in set(one.upstreams.values())
        }
        behind = {
            protocol: Behind(
                voices[upstreams],
                known=any(self._knows(name) for name in upstreams),
                relayed=protocol in one.relayed,
            )
            for protocol, upstreams in one.upstreams.items()
        }
        return rank(one.protocols, behind, one.scores), again

    def _knows(self, upstream: str) -> bool:
        """Whether there is a state of it to go by."""
        return upstream in self.following and self.following[upstream].tracked.state.snapshot is not None

    def _stranger(self, name: str) -> Voice:
        """An upstream of which nothing is learned, or not yet: nothing is held against it."""
        listed = [one for upstream in self.config.upstreams if upstream.name == name for one in upstream.endpoints]
        return Voice(name, sum(one.weight for one in listed) or 1, Health.HEALTHY, None)


def _voice(upstream: str, view: View, health: Health) -> Voice:
    protocols = None if view.protocols is None else frozenset(view.protocols)
    if protocols is not None and not view.declared:
        # What was found out was found out over TCP, where nobody can tell.
        protocols |= {H3}
    return Voice(f"{upstream}/{view.instance.name}", view.instance.weight, health, protocols)
