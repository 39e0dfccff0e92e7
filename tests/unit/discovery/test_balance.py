"""From health to shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitu.discovery.balance import Share, shares
from mitu.discovery.instance import Evidence, Health, Instance
from mitu.discovery.tracked import View

GOOD, POOR, BAD = Health.HEALTHY, Health.DEGRADED, Health.UNAVAILABLE


def view(number: int, health: Health, weight: int = 1, zone: str | None = None) -> View:
    one = Instance(f"i{number}", f"10.0.0.{number}:80", weight, zone=zone)
    return View(one, (Evidence(health, "test"),), None)


def used(*states: Health | tuple[Health, str], panic: float = 0.5, zone: str | None = None) -> list[int]:
    """The numbers of those that get something."""
    pairs = [state if isinstance(state, tuple) else (state, None) for state in states]
    views = [view(number, health, zone=place) for number, (health, place) in enumerate(pairs)]
    found = shares(views, panic_threshold=panic, zone=zone)
    return [number for number, one in enumerate(views) if found[one.instance.address].used]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((GOOD, GOOD, GOOD), [0, 1, 2]),
        ((GOOD, GOOD, BAD), [0, 1]),
        ((GOOD, GOOD, POOR), [0, 1]),
        ((GOOD, BAD), [0]),
        ((GOOD, POOR, POOR), [0, 1, 2]),
        ((GOOD, BAD, BAD), [0, 1, 2]),
        ((POOR, POOR, BAD), [0, 1]),
        ((BAD, BAD), [0, 1]),
        ((), []),
    ],
)
def test_healthy_ones_are_used_while_they_are_enough(states: tuple[Health, ...], expected: list[int]) -> None:
    assert used(*states) == expected


@pytest.mark.parametrize(
    ("states", "expected"), [((GOOD, BAD, BAD, BAD), [0]), ((POOR, BAD, BAD), [0]), ((BAD, BAD), [])]
)
def test_without_a_threshold_nobody_who_is_unavailable_is_used(
    states: tuple[Health, ...], expected: list[int]
) -> None:
    assert used(*states, panic=0.0) == expected


def test_its_own_zone_is_preferred_while_enough_of_it_is_healthy() -> None:
    here, there = "a", "b"
    everywhere = [(GOOD, here), (GOOD, here), (GOOD, there)]
    assert used(*everywhere, zone=here) == [0, 1]
    assert used(*everywhere, zone="c") == [0, 1, 2], "nobody is there"
    assert used((BAD, here), (GOOD, here), (GOOD, there), zone=here) == [1]
    assert used((BAD, here), (BAD, here), (GOOD, here), (GOOD, there), (GOOD, there), zone=here) == [2, 3, 4]


def test_a_zone_that_bears_nothing_is_not_preferred() -> None:
    here, there = view(1, GOOD, 0, "a"), view(2, GOOD, 5, "b")
    found = shares([here, there], panic_threshold=0.5, zone="a")
    assert found == {here.instance.address: Share(0, used=False), there.instance.address: Share(5, used=True)}


def test_shares_are_the_instances_weights_and_bounded() -> None:
    heavy, light = view(1, GOOD, 900), view(2, GOOD, 7)
    twice = View(Instance("again", heavy.instance.address, 900), heavy.evidence, None)
    found = shares([heavy, light, twice], panic_threshold=0.5)
    assert found == {heavy.instance.address: Share(1000, used=True), light.instance.address: Share(7, used=True)}


def test_who_is_not_used_keeps_a_weight() -> None:
    well, bad = view(1, GOOD, 3), view(2, BAD, 4)
    beside = View(Instance("beside", well.instance.address, 5), bad.evidence, None)
    found = shares([well, bad, beside], panic_threshold=0.0)
    assert found == {well.instance.address: Share(3, used=True), bad.instance.address: Share(4, used=False)}


@given(
    st.lists(st.tuples(st.sampled_from(Health), st.integers(0, 5)), max_size=8),
    st.floats(0.0, 1.0),
    st.none() | st.sampled_from("ab"),
)
def test_somebody_is_used_if_anybody_is_well(states: list[tuple[Health, int]], panic: float, zone: str | None) -> None:
    views = [view(number, health, weight, "ab"[number % 2]) for number, (health, weight) in enumerate(states)]
    found = shares(views, panic_threshold=panic, zone=zone)
    assert found.keys() == {one.instance.address for one in views}
    if any(weight and health is GOOD for health, weight in states):
        assert any(share.used for share in found.values())
        assert zone is not None or all(
            found[one.instance.address].used for one in views if one.health is GOOD and one.instance.weight
        ), "each of the healthy ones"
