"""The ranking is what its definition says, whatever is known of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitu.alpn.ranking import OTHERS, SCORES, Behind, Ranking, Score, Voice, rank
from mitu.discovery.instance import Health

NAMES = ("h3", "h2", "http/1.1", "mqtt", "private/1")
HTTP = ("h2", "http/1.1")
GOOD, POOR, BAD = Health.HEALTHY, Health.DEGRADED, Health.UNAVAILABLE

scores = st.builds(
    lambda base, degraded, unavailable: Score(base, -min(degraded, base), -min(degraded + unavailable, base)),
    st.integers(1, 20),
    st.integers(0, 20),
    st.integers(0, 20),
)
voices = st.lists(
    st.builds(
        Voice,
        st.uuids().map(str),
        st.integers(0, 10),
        st.sampled_from(Health),
        st.none() | st.frozensets(st.sampled_from(NAMES)),
    ),
    max_size=6,
).map(tuple)
behinds = st.builds(Behind, voices, known=st.booleans(), relayed=st.booleans())
situations = st.tuples(
    st.permutations(NAMES).flatmap(lambda names: st.integers(1, len(names)).map(lambda count: tuple(names[:count]))),
    st.dictionaries(st.sampled_from(NAMES), behinds),
    st.dictionaries(st.sampled_from(NAMES), scores),
)


def http(*instances: Voice) -> Ranking:
    return rank(HTTP, dict.fromkeys(HTTP, Behind(instances, known=True)), SCORES)


def voice(name: str, health: Health, protocols: Sequence[str] | None, weight: int = 1) -> Voice:
    return Voice(name, weight, health, None if protocols is None else frozenset(protocols))


def worth(ranking: Ranking, protocol: str) -> Fraction | None:
    return next(one.worth for one in ranking.standings if one.protocol == protocol)


@pytest.mark.parametrize(
    ("health", "h2", "http11"), [(GOOD, 10, 6), (POOR, 8, 5), (BAD, 5, 3)], ids=lambda value: str(value)
)
def test_one_instance_is_worth_what_the_table_says(health: Health, h2: int, http11: int) -> None:
    ranking = http(voice("a", health, HTTP))
    assert [worth(ranking, name) for name in HTTP] == [Fraction(h2), Fraction(http11)]
    assert ranking.order == HTTP


def test_an_unavailable_h2_falls_behind_a_healthy_http11() -> None:
    new, old = voice("new", BAD, ["h2"]), voice("old", GOOD, ["http/1.1"])
    assert http(new, old).order == ("http/1.1", "h2")
    assert http(replace(new, health=POOR), old).order == HTTP


def test_instances_count_by_their_weight() -> None:
    ranking = http(voice("new", GOOD, ["h2"], weight=3), voice("old", GOOD, ["http/1.1"]))
    assert (worth(ranking, "h2"), worth(ranking, "http/1.1")) == (Fraction(30, 4), Fraction(6, 4))


def test_what_is_said_of_nothing_counts_as_everything() -> None:
    assert http(voice("a", GOOD, None)).order == HTTP
    assert worth(http(voice("a", POOR, None)), "h2") == 8


def test_what_nobody_speaks_is_not_offered() -> None:
    ranking = http(voice("a", GOOD, ["http/1.1"]))
    assert ranking.order == ("http/1.1",)
    assert next(one for one in ranking.standings if not one.offered).why == "1 instance there, and none speaks it"


def test_a_relay_without_an_instance_is_not_offered_and_routes_are() -> None:
    behind = {"mqtt": Behind((), known=True, relayed=True), "h2": Behind((), known=True)}
    ranking = rank(("mqtt", "h2"), behind, SCORES)
    assert ranking.order == ("h2",)
    assert worth(ranking, "h2") == 5, "as if all were unavailable"


def test_if_nothing_is_left_the_configured_order_stays() -> None:
    ranking = http(voice("a", GOOD, ["mqtt"]))
    assert ranking.order == HTTP and ranking.configured


def test_h3_alone_leaves_the_protocols_over_tcp() -> None:
    names = ("h3", *HTTP)
    ranking = rank(names, dict.fromkeys(names, Behind((voice("a", GOOD, ["h3"]),), known=True)), SCORES)
    assert ranking.order == ("h3", "h2", "http/1.1") and ranking.configured, "or nobody could come to hear of h3"
    alone = rank(("h3",), {"h3": Behind((voice("a", GOOD, ["h3"]),), known=True)}, SCORES)
    assert alone.order == ("h3",) and not alone.configured


def test_of_what_nothing_is_known_it_is_worth_its_base() -> None:
    ranking = rank(("private/1", "http/1.1", "h2", "h3"), {}, SCORES)
    assert ranking.order == ("h3", "h2", "http/1.1", "private/1")
    assert worth(ranking, "private/1") == OTHERS.base


@given(situations, st.randoms(use_true_random=False))
def test_the_order_of_instances_makes_no_difference(
    situation: tuple[tuple[str, ...], dict[str, Behind], dict[str, Score]], random: object
) -> None:
    names, behind, known = situation
    shuffled = {}
    for name, one in behind.items():
        instances = list(one.voices)
        random.shuffle(instances)  # type: ignore[attr-defined]
        shuffled[name] = replace(one, voices=tuple(instances))
    assert rank(names, behind, known).order == rank(names, shuffled, known).order


@given(situations, st.data())
def test_a_protocol_never_gains_by_an_instance_becoming_worse(
    situation: tuple[tuple[str, ...], dict[str, Behind], dict[str, Score]], data: st.DataObject
) -> None:
    names, behind, known = situation
    candidates = [(name, at) for name, one in behind.items() for at in range(len(one.voices))]
    if not candidates:
        return
    name, at = data.draw(st.sampled_from(candidates))
    voices = list(behind[name].voices)
    worse = data.draw(st.sampled_from([health for health in Health if health >= voices[at].health]))
    voices[at] = replace(voices[at], health=worse)
    before, after = (
        rank(names, behind, known),
        rank(names, behind | {name: replace(behind[name], voices=tuple(voices))}, known),
    )
    if name in names:
        was, now = worth(before, name), worth(after, name)
        assert (was is None) == (now is None), "health alone takes nothing away"
        assert was is None or now is None or now <= was
        if name in before.order and not before.configured and not after.configured:
            assert after.order.index(name) >= before.order.index(name)


@given(situations)
def test_nothing_is_offered_that_nobody_speaks_and_nothing_twice(
    situation: tuple[tuple[str, ...], dict[str, Behind], dict[str, Score]],
) -> None:
    names, behind, known = situation
    ranking = rank(names, behind, known)
    assert sorted(one.protocol for one in ranking.standings) == sorted(names)
    assert ranking.order, "something is always offered"
    assert len(set(ranking.order)) == len(ranking.order)
    if ranking.configured:
        assert set(names) - {"h3"} <= set(ranking.order)
        return
    for name in ranking.order:
        one = behind.get(name, Behind())
        assert not (one.known and one.voices) or any(each.speaks(name) for each in one.voices)
    values = [worth(ranking, name) or Fraction(0) for name in ranking.order]
    assert values == sorted(values, reverse=True)
    ties = [
        (a, b)
        for a, b in zip(ranking.order, ranking.order[1:], strict=False)
        if worth(ranking, a) == worth(ranking, b)
    ]
    assert all(names.index(a) < names.index(b) for a, b in ties), "equal ones keep the configured order"
