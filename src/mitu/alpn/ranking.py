"""How protocols are ranked: by what those who speak them are worth now.

An instance is worth a protocol's score by its health: `base` while it is healthy, and `base` with something taken off
while it is degraded or unavailable; 0, if it does not speak the protocol. A protocol is worth the mean of that over
the instances behind it, by their weight: what a client can expect of an instance that it happens to meet. Equal ones
keep the configured order.

So that nothing is taken for granted or denied without being known:

- An instance that says nothing of its protocols counts as speaking all that it stands behind.
- A protocol that no instance speaks is not offered, nor is a relayed one without any instance.
- A protocol without anything known of it is worth its `base`; one of the routes without instances, what it is worth
  while they are unavailable: the gateway itself answers, with 503.
- If nothing would be offered, the configured order stays in force; if nothing over TCP, that of the protocols there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mitu.config.listeners import H3
from mitu.discovery.instance import Health


@dataclass(frozen=True, slots=True)
class Score:
    """What a protocol is worth: `base`, and what is added to it (0 or less) by health."""

    base: int
    degraded: int
    unavailable: int

    def at(self, health: Health) -> int:
        return self.base + (0, self.degraded, self.unavailable)[health]


SCORES = {"h3": Score(12, -3, -7), "h2": Score(10, -2, -5), "http/1.1": Score(6, -1, -3)}
"""h2 and http/1.1 as published with the system that mitu follows; h3 goes before h2 while it is healthy only."""

OTHERS = Score(4, -1, -2)


@dataclass(frozen=True, slots=True)
class Voice:
    """What one instance adds to the ranking."""

    id: str
    """For people: unique among those behind a protocol."""
    weight: int
    health: Health
    protocols: frozenset[str] | None
    """None: it is not known."""

    def speaks(self, protocol: str) -> bool:
        return self.protocols is None or protocol in self.protocols


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind a protocol, as far as it is known."""

    voices: tuple[Voice, ...] = ()
    known: bool = False
    """Whether somebody has said who they are; else there may be any."""
    relayed: bool = False
    """Without an instance there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A protocol's place, and why."""

    protocol: str
    worth: Fraction | None
    """None: it is not offered."""
    why: str

    @property
    def offered(self) -> bool:
        return self.worth is not None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The outcome."""

    order: tuple[str, ...]
    """What is offered, most preferred first."""
    standings: tuple[Standing, ...]
    """Of all protocols: those that are offered in their order, then the others."""
    configured: bool = False
    """Whether the configured order is in force, because nothing would be offered otherwise, or nothing over TCP."""


def rank(protocols: Sequence[str], behind: Mapping[str, Behind], scores: Mapping[str, Score]) -> Ranking:
    """`protocols`: those that are allowed, in the configured order."""
    standings = [_standing(name, behind.get(name, Behind()), scores.get(name, OTHERS)) for name in protocols]
    # Sorting is stable: equal ones stay in the configured order.
    ordered = sorted(standings, key=lambda one: (one.worth is None, -(one.worth or 0)))
    order = tuple(one.protocol for one in ordered if one.offered)
    over_tcp = tuple(name for name in protocols if name != H3)
    if over_tcp and any(name != H3 for name in order):
        return Ranking(order, tuple(ordered))
    # Nobody could come, not even to hear of h3.
    return Ranking((*order, *over_tcp) or tuple(protocols), tuple(ordered), configured=bool(over_tcp) or not order)


def _standing(protocol: str, behind: Behind, score: Score) -> Standing:
    if not behind.known:
        return Standing(protocol, Fraction(score.base), "nothing is known of what stands behind it")
    if not behind.voices and behind.relayed:
        return Standing(protocol, None, "there is no instance")
    if not behind.voices:
        worst = Fraction(score.at(Health.UNAVAILABLE))
        return Standing(protocol, worst, "there is no instance: the gateway answers 503")
    # A weight of 0 is no voice, unless nobody has any other.
    voices = [one for one in behind.voices if one.weight] or list(behind.voices)
    speaking = [one for one in voices if one.speaks(protocol)]
    if not speaking:
        return Standing(protocol, None, f"{_count(len(voices))} there, and none speaks it")
    total = sum(max(one.weight, 1) for one in voices)
    by_health = {health: score.at(health) for health in Health}
    worth = sum(max(one.weight, 1) * by_health[one.health] for one in speaking)
    return Standing(protocol, Fraction(worth, total), _why(speaking, voices))


def _why(speaking: Sequence[Voice], voices: Sequence[Voice]) -> str:
    parts = [f"{len(speaking)} of {_count(len(voices))} speak it"]
    for health in (Health.DEGRADED, Health.UNAVAILABLE):
        found = [one.id for one in speaking if one.health is health]
        if found:
            named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            parts.append(f"{len(found)} {health.word} ({named})")
    return "; ".join(parts)


def _count(number: int) -> str:
    return f"{number} instance{'' if number == 1 else 's'}"
