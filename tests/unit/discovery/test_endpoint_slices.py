"""Which instances are taken from EndpointSlices, and at which port."""

from __future__ import annotations

from typing import Any

import pytest

from mitu.discovery.endpoint_slices import snapshot
from mitu.discovery.instance import Health, Instance
from mitu.discovery.kubernetes_objects import EndpointSlice, parse
from mitu.discovery.provider import ProviderError
from support.kubernetes import endpoint, endpoint_slice, port

HTTP = [port(8080, "http")]


def instances(*slices: dict[str, Any], at: str | None = None) -> list[Instance]:
    read = [parse(EndpointSlice, _stored(one), "the slice") for one in slices]
    return list(snapshot(read, at).instances)


def _stored(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "metadata": {**one["metadata"], "resourceVersion": "1"}}


@pytest.mark.parametrize(
    ("conditions", "health", "reason"),
    [
        ({"ready": None}, Health.HEALTHY, ""),
        ({"ready": True}, Health.HEALTHY, ""),
        # publishNotReadyAddresses
        ({"ready": True, "serving": False, "terminating": True}, Health.HEALTHY, ""),
        ({"ready": False}, Health.UNAVAILABLE, "not ready"),
        ({"ready": False, "serving": True}, Health.UNAVAILABLE, "not ready"),
        ({"ready": False, "serving": True, "terminating": True}, Health.DEGRADED, "terminating"),
        ({"ready": False, "serving": None, "terminating": True}, Health.DEGRADED, "terminating"),
        ({"ready": False, "serving": False, "terminating": True}, Health.UNAVAILABLE, "terminating"),
    ],
)
def test_health(conditions: dict[str, bool | None], health: Health, reason: str) -> None:
    (one,) = instances(endpoint_slice("a", [{**endpoint("10.0.0.1", "pod"), "conditions": conditions}], HTTP))
    assert (one.health, one.reason) == (health, reason)


@pytest.mark.parametrize(
    ("ports", "at", "number"),
    [
        ([port(8080)], None, 8080),
        ([port(8080, "anything")], None, 8080),
        ([port(9090, "metrics"), port(8080, "http")], None, 8080),
        ([port(9090, "metrics"), port(8443, "grpc")], None, 8443),
        ([port(8080, "http"), port(53, "dns", protocol="UDP")], None, 8080),
        ([port(9090, "metrics"), port(8080, "http")], "metrics", 9090),
        ([port(9090, "metrics"), port(8080, "http")], "9090", 9090),
        # A name goes before a number.
        ([port(80, "x"), port(8080, "80")], "80", 8080),
    ],
)
def test_port(ports: list[dict[str, Any]], at: str | None, number: int) -> None:
    (one,) = instances(endpoint_slice("a", [endpoint("10.0.0.1")], ports), at=at)
    assert one.address == f"10.0.0.1:{number}"


@pytest.mark.parametrize(
    ("ports", "at", "words"),
    [
        (
            [port(8080, "http"), port(8443, "https")],
            None,
            "say with 'port' which one is meant; it has http (8080), ht",
        ),
        ([port(1, "a"), port(2, "b")], None, "it has a (1), b (2)"),
        ([port(8080, "http")], "web", "it has no TCP port 'web'; it has http (8080)"),
        ([port(8080, "http")], "80", "it has no TCP port '80'; it has http (8080)"),
        ([port(53, "dns", protocol="UDP")], "dns", "its EndpointSlices list no TCP port"),
        ([{"name": "all"}], None, "its EndpointSlices list no TCP port"),
        ([], None, "its EndpointSlices list no TCP port"),
    ],
)
def test_port_that_is_unclear(ports: list[dict[str, Any]], at: str | None, words: str) -> None:
    with pytest.raises(ProviderError) as caught:
        instances(endpoint_slice("a", [endpoint("10.0.0.1")], ports), at=at)
    assert words in str(caught.value)


def test_slices_without_endpoints_have_no_say_on_the_port() -> None:
    """The controller leaves an empty one, without ports."""
    empty = {**endpoint_slice("b", [], []), "endpoints": None, "ports": None}
    assert instances(empty) == []
    assert instances(empty, at="http") == []
    assert len(instances(endpoint_slice("a", [endpoint("10.0.0.1")], HTTP), empty, at="http")) == 1


def test_pods_that_differ_in_their_ports() -> None:
    old = endpoint_slice("old", [endpoint("10.0.0.1", "old")], [port(8080, "http")])
    new = endpoint_slice("new", [endpoint("10.0.0.2", "new")], [port(80, "http"), port(9090, "metrics")])
    assert [one.address for one in instances(old, new)] == ["10.0.0.2:80", "10.0.0.1:8080"]
    assert [one.id for one in instances(old, new, at="metrics")] == ["new"]


def test_one_pod_in_several_slices() -> None:
    """Of two families, and twice in one while it is moved to another slice."""
    v4 = endpoint_slice("v4", [endpoint("10.0.0.1", "pod")], HTTP)
    v6 = endpoint_slice("v6", [endpoint("2001:db8::1", "pod")], HTTP, family="IPv6")
    moved = endpoint_slice("moved", [endpoint("10.0.0.1", "pod", ready=False)], HTTP)
    for slices in ([v4, v6, moved], [moved, v6, v4], [v6, moved, v4]):
        (one,) = instances(*slices)
        assert (one.id, one.address, one.health) == ("pod", "10.0.0.1:8080", Health.HEALTHY)
    (only,) = instances(v6)
    assert only.address == "[2001:db8::1]:8080"


def test_every_address_of_an_endpoint() -> None:
    several = {**endpoint("10.0.0.1", "pod", zone="eu-1a"), "addresses": ["10.0.0.1", "10.0.0.2"]}
    plain = endpoint("10.0.0.3")
    found = instances(endpoint_slice("a", [several, plain], HTTP))
    assert {one.id: (one.address, one.zone) for one in found} == {
        "pod": ("10.0.0.1:8080", "eu-1a"),
        "10.0.0.2:8080": ("10.0.0.2:8080", "eu-1a"),
        "10.0.0.3:8080": ("10.0.0.3:8080", None),
    }


@pytest.mark.parametrize(
    ("app_protocol", "annotations", "spoken"),
    [
        (None, {}, None),
        ("http", {}, ("http/1.1",)),
        ("kubernetes.io/ws", {}, ("http/1.1",)),
        ("kubernetes.io/h2c", {}, ("h2",)),
        ("h2", {}, ("h2",)),
        ("grpc", {}, ("h2",)),
        ("mqtt", {}, ("mqtt",)),
        ("https", {}, None),
        ("example.com/own", {}, None),
        (None, {"mitu.dev/alpn-supported": "h2,http/1.1"}, ("h2", "http/1.1")),
        ("mqtt", {"alpn.supported": "h2"}, ("h2",)),
    ],
)
def test_protocols(app_protocol: str | None, annotations: dict[str, str], spoken: tuple[str, ...] | None) -> None:
    more = {} if app_protocol is None else {"appProtocol": app_protocol}
    (one,) = instances(
        endpoint_slice("a", [endpoint("10.0.0.1")], [port(8080, "http", **more)], annotations=annotations)
    )
    assert one.protocols == spoken


def test_names_in_place_of_addresses() -> None:
    (one,) = instances(endpoint_slice("a", [endpoint("db.example.com")], HTTP, family="FQDN"))
    assert one.address == "db.example.com:8080"


@pytest.mark.parametrize(
    ("address", "family"),
    [("10.0.0.1", "IPv6"), ("2001:db8::1", "IPv4"), ("10.0.0.1:80", "IPv4"), ("a/b", "FQDN"), ("10.0.0.1", "Other")],
)
def test_addresses_that_are_none(address: str, family: str) -> None:
    with pytest.raises(ProviderError, match="the EndpointSlice 'a' has an address that is none"):
        instances(endpoint_slice("a", [endpoint(address)], HTTP, family=family))
