"""Who is who among the instances in Consul's answers."""

from __future__ import annotations

import json

from mitu.discovery.consul_entries import read
from mitu.discovery.instance import Instance, Snapshot


def known(*placed: tuple[str, str]) -> tuple[Instance, ...]:
    """The instances in an answer that has these IDs on these nodes."""
    entries = [
        {"Node": {"Node": node, "Address": f"10.0.0.{number}"}, "Service": {"ID": id, "Port": 80}}
        for number, (node, id) in enumerate(placed, 1)
    ]
    found = read(json.dumps(entries).encode(), None)
    assert not found.left_out
    return Snapshot.of(found.instances).instances


def test_an_instance_stays_the_same_whatever_else_comes() -> None:
    (alone,) = known(("n1", "api"))
    same, other = known(("n1", "api"), ("n2", "api"))
    assert (alone.id, alone.name) == ("n1/api", "api")
    assert same == alone, "its name is what others make of it, and no part of it"
    assert (same.name, other.name) == ("api@n1", "api@n2")


def test_no_two_instances_are_one() -> None:
    odd = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("a", ""), ("n" * 400, "x"), ("n" * 400, "y"), ("a", "\x1b")]
    found = known(*odd, ("a", "\x1c"))
    assert len(found) == len(odd) + 1
    assert all(text.isprintable() and len(text) <= 300 for one in found for text in (one.id, one.name))


def test_one_without_an_identifier_is_one_still() -> None:
    found = read(b'[{"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": {"Port": 80}}]', None)
    assert [one.id for one in found.instances] == ["n/"]
