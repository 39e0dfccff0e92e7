"""What holds an order against flapping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitu.alpn.steady import Steady
from mitu.discovery.instance import Health

GOOD, POOR, BAD = Health.HEALTHY, Health.DEGRADED, Health.UNAVAILABLE


def test_worse_counts_at_once_and_better_after_a_while() -> None:
    steady = Steady(5.0)
    assert steady.update({"a": GOOD}, 0.0) == ({"a": GOOD}, None)
    assert steady.update({"a": BAD}, 1.0) == ({"a": BAD}, None)
    assert steady.update({"a": GOOD}, 2.0) == ({"a": BAD}, 6.0), "to be looked at again then"
    assert steady.update({"a": GOOD}, 6.0) == ({"a": GOOD}, None)


def test_what_was_bad_for_longer_is_believed_at_once() -> None:
    steady = Steady(5.0)
    steady.update({"a": GOOD}, 0.0)
    steady.update({"a": BAD}, 1.0)
    assert steady.update({"a": GOOD}, 60.0) == ({"a": GOOD}, None)


def test_one_that_goes_to_and_fro_stays_on_the_bad_side() -> None:
    steady = Steady(5.0)
    steady.update({"a": GOOD}, 0.0)
    found = [steady.update({"a": BAD if second % 2 else GOOD}, float(second))[0]["a"] for second in range(1, 60)]
    assert set(found) == {BAD}


def test_one_that_comes_in_bad_shape_was_not_seen_to_become_worse() -> None:
    steady = Steady(5.0)
    steady.update({"a": BAD}, 0.0)
    assert steady.update({"a": GOOD}, 0.1) == ({"a": GOOD}, None)


def test_one_that_goes_and_comes_back_goes_to_and_fro() -> None:
    steady = Steady(5.0)
    steady.update({"a": GOOD}, 0.0)
    steady.update({}, 1.0)
    steady.update({}, 1.5)
    assert steady.update({"a": GOOD}, 2.0) == ({"a": BAD}, 6.0)
    assert steady.update({"a": GOOD}, 6.0) == ({"a": GOOD}, None)


def test_what_has_gone_for_longer_is_forgotten() -> None:
    steady = Steady(5.0)
    steady.update({"a": GOOD, "b": GOOD}, 0.0)
    steady.update({"b": GOOD}, 1.0)
    steady.update({"b": GOOD}, 6.0)
    assert steady.update({"a": GOOD, "b": GOOD}, 6.1)[0] == {"a": GOOD, "b": GOOD}


def test_a_copy_goes_its_own_way() -> None:
    steady = Steady(5.0)
    steady.update({"a": GOOD}, 0.0)
    steady.update({"a": BAD}, 1.0)
    shorter = steady.copy(2.0)
    shorter.update({}, 2.0)
    assert steady.update({"a": GOOD}, 4.0) == ({"a": BAD}, 6.0)
    assert steady.copy(2.0).update({"a": GOOD}, 4.0) == ({"a": GOOD}, None)


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.sampled_from(Health)), max_size=40), st.floats(0.0, 10.0))
def test_it_is_never_better_than_the_truth_and_changes_for_the_better_no_oftener_than_it_holds(
    steps: list[tuple[float, Health]], hold: float
) -> None:
    steady, now, before, seen = Steady(hold), 0.0, GOOD, GOOD
    last_worse: float | None = None
    steady.update({"a": GOOD}, now)
    for pause, health in steps:
        now += pause
        held = steady.update({"a": health}, now)[0]["a"]
        assert held >= health
        if held < before:
            assert last_worse is None or now >= last_worse + hold
        if health > seen:
            last_worse = now
        before, seen = held, health
