"""Whose word counts for whom."""

from __future__ import annotations

from typing import Any

import pytest

from mitu.alpn.sources import ranked
from mitu.config.listeners import Listener


def listener(**settings: Any) -> Listener:
    defaults: dict[str, Any] = {
        "name": "edge",
        "bind": "127.0.0.1:0",
        "protocols": ["h2", "http/1.1", {"alpn": "mqtt", "relay": "broker"}, {"alpn": "raw", "handler": "m:serve"}],
        "alpn_ranking": {"hold": "2s", "scores": {"mqtt": {"base": 7, "degraded": -1, "unavailable": -6}}},
        "tls": {"certificates": []},
    }
    return Listener.model_validate(defaults | settings)


def to(upstream: str, *hosts: str) -> dict[str, Any]:
    return {"match": {"hosts": list(hosts)} if hosts else {}, "upstream": upstream}


SITES = [{"names": ["old.test", "older.test"]}, {"names": ["*.wild.test"]}]


@pytest.mark.parametrize(
    ("routes", "everybody", "old", "wild"),
    [
        ([to("all")], ["all"], ["all"], ["all"]),
        ([to("legacy", "old.test"), to("all")], ["all"], ["legacy", "all"], ["all"]),
        ([to("a", "a.wild.test"), to("b", "*.wild.test")], [], [], ["a", "b"]),
        ([to("other", "new.test")], ["other"], [], []),
        ([to("both", "old.test", "new.test")], ["both"], ["both"], []),
        ([to("any", "*.test")], ["any"], ["any"], []),
    ],
)
def test_a_route_counts_for_those_who_can_come_to_it(
    routes: list[dict[str, Any]], everybody: list[str], old: list[str], wild: list[str]
) -> None:
    found = {one.name: one for one in ranked(listener(routes=routes, sites=SITES))}
    assert list(found) == ["edge", "edge/old.test", "edge/*.wild.test"]
    assert [list(one.upstreams["h2"]) for one in found.values()] == [everybody, old, wild]
    assert all(one.upstreams["mqtt"] == ("broker",) and one.upstreams["raw"] == () for one in found.values())


def test_what_is_pinned_is_not_ranked_and_nothing_is_without_being_asked() -> None:
    pinned = {"names": ["old.test"], "alpn_order": ["http/1.1", "h2"]}
    assert [one.name for one in ranked(listener(routes=[to("a")], sites=[pinned]))] == ["edge"]
    assert list(ranked(listener(routes=[to("a")], alpn_ranking=None))) == []


def test_settings_arrive() -> None:
    (one,) = ranked(listener(routes=[to("a")], alpn_ranking={"upstreams": ["b"], "scores": {"mqtt": {"base": 7}}}))
    assert one.upstreams["h2"] == ("b",) and one.hold == 5.0
    assert (one.scores["mqtt"].base, one.scores["h2"].base) == (7, 10)
    assert one.relayed == {"mqtt", "raw"}
