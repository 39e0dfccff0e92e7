"""The pure parts of `mitu bench`: quantities, targets, conditions, charts."""

from __future__ import annotations

import pytest

from mitu.bench import BenchError, WantedError, charts, plan, units
from mitu.bench.conditions import METRICS, Condition
from mitu.bench.target import target


@pytest.mark.parametrize(("text", "seconds"), [("250us", 250e-6), ("1.5s", 1.5), ("2m", 120.0), ("0ms", 0.0)])
def test_durations(text: str, seconds: float) -> None:
    assert units.seconds(text, "--x") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "-1s", "1e3s", "s", "1 hour"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(WantedError, match="--x"):
        units.seconds(text, "--x")


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0 µs"), (0.0123, "12.3 µs"), (0.5, "500 µs"), (1.0, "1.00 ms"), (99.94, "99.9 ms"), (2500.0, "2.50 s")],
)
def test_milliseconds_for_people(value: float, told: str) -> None:
    assert units.milliseconds(value) == told


def test_rates_and_shares() -> None:
    assert units.span("500", "--x") == (500.0, 500.0)
    assert units.span("0..2000", "--x") == (0.0, 2000.0)
    assert units.share("30%", "--x") == units.share("0.3", "--x") == 0.3
    for text in ("0", "0..0", "5..", "..5", "a..b"):
        with pytest.raises(WantedError):
            units.span(text, "--x")


@pytest.mark.parametrize(
    ("given", "url", "address"),
    [
        ("https://127.0.0.1:8443/a?b=c", "https://127.0.0.1:8443/a?b=c", "127.0.0.1:8443"),
        ("127.0.0.1", "https://127.0.0.1:443/", "127.0.0.1:443"),
        ("http://127.9.9.9", "http://127.9.9.9:80/", "127.9.9.9:80"),
        ("mqtts://[::1]", "mqtts://[::1]:8883", "[::1]:8883"),
    ],
)
def test_targets(given: str, url: str, address: str) -> None:
    found = target(given)
    assert (found.url, found.address) == (url, address)


@pytest.mark.parametrize("given", ["", "ftp://localhost", "https://a@localhost", "localhost:0", "localhost:1/a b"])
def test_what_is_no_target(given: str) -> None:
    with pytest.raises(WantedError):
        target(given)


@pytest.mark.parametrize("given", ["192.0.2.1", "https://[2001:db8::1]:443", "0.0.0.0:443"])
def test_other_machines_are_refused(given: str) -> None:
    with pytest.raises(BenchError, match="--i-own-the-target"):
        target(given)
    assert target(given, allow_remote=True).scheme == "https"


def test_alpn_lists() -> None:
    assert plan.alpn_lists(["h2,http/1.1"]) == ((("h2", "http/1.1"), 1),)
    assert plan.alpn_lists(["h2=7", "none=3"]) == ((("h2",), 7), ((), 3))
    for text in ("h2,", "=1", "h2=0", "h2=-1", "x" * 256):
        with pytest.raises(WantedError):
            plan.alpn_lists([text])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p99>50ms", 50.0),
        ("handshake.p99.9 >= 1s", 1000.0),
        ("error-rate>1%", 0.01),
        ("rate<5", 5.0),
        ("failed!=0", 0.0),
    ],
)
def test_conditions(text: str, value: float) -> None:
    assert Condition.parse(text).value == pytest.approx(value)


def test_every_metric_takes_one_kind_of_unit() -> None:
    for metric in METRICS:
        taken = []
        for unit in ("ms", "%", "/s", ""):
            try:
                taken.append(Condition.parse(f"{metric}>1{unit}").metric)
            except WantedError:
                continue
        # A bare number will do for a share and a rate as well.
        assert taken in ([metric], [metric, metric])


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("p9>1ms", "did you mean 'p9"),
        ("handshak.p99>1ms", "did you mean 'handshake.p99'?"),
        ("eror-rate>1%", "did you mean 'error-rate'?"),
        ("zzz>1ms", "known: p99"),
        ("p99>50", "write p99>50ms"),
        ("completed>5%", "write completed>5"),
        ("p99=50ms", "is not a condition"),
    ],
)
def test_wrong_conditions_are_answered_with_a_right_one(text: str, advice: str) -> None:
    with pytest.raises(WantedError) as told:
        Condition.parse(text)
    assert advice in str(told.value)


def test_axes() -> None:
    axis = charts.linear(1930.0, str)
    assert list(axis.ticks) == [0, 500, 1000, 1500, 2000]
    assert (axis.place(0), axis.place(2000), axis.place(9999)) == (0.0, 1.0, 1.0)
    decades = charts.logarithmic(0.3, 700.0, str)
    assert list(decades.ticks) == pytest.approx([0.1, 1, 10, 100, 1000])
    assert decades.place(10) == pytest.approx(0.5)
    percent = charts.percentiles(99.9)
    assert percent.place(99) == pytest.approx(2 / 3)
    assert [percent.label(tick) for tick in percent.ticks] == ["0%", "50%", "90%", "99%", "99.9%"]


def test_a_chart_breaks_where_nothing_was_measured() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.0)]
    drawn = charts.chart("<t>", charts.linear(3, str), charts.linear(2, str), [charts.Line("a&b", "a", points)])
    assert drawn.count("<polyline") == 2
    assert "&lt;t&gt;" in drawn and "a&amp;b" in drawn and "<t>" not in drawn
