"""The instances that the EndpointSlices of a service tell of.

https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from mitu.config.types import is_host_name
from mitu.discovery.instance import Health, Instance, Snapshot
from mitu.discovery.kubernetes_objects import Conditions, EndpointSlice, Port
from mitu.discovery.metadata import protocols
from mitu.discovery.provider import ProviderError

SERVING_PORTS = ("http", "https", "h2", "h2c", "grpc", "mqtt", "mqtts")
"""Which port is meant where there are others beside it, such as `metrics`, and nothing is said."""

APP_PROTOCOLS = {
    "http": "http/1.1",
    "kubernetes.io/ws": "http/1.1",
    "kubernetes.io/wss": "http/1.1",
    "h2": "h2",
    "h2c": "h2",
    "http2": "h2",
    "grpc": "h2",
    "kubernetes.io/h2c": "h2",
    "mqtt": "mqtt",
}
"""ALPN names, which `appProtocol` cannot hold, of what people write there."""

_FAMILIES = {"IPv4": 0, "IPv6": 1, "FQDN": 2}


def snapshot(slices: Iterable[EndpointSlice], port: str | None) -> Snapshot:
    """All instances, at the port that is called `port` or has this number.

    An instance that is in several slices is taken once: of its address families IPv4, then as healthy as one of them
    says. ProviderError when it is unclear which port is meant, or no slice has it.
    """
    used = [one for one in slices if one.endpoints]
    name = _only_port(used) if port is None else port
    best: dict[str, tuple[tuple[int, Health], Instance]] = {}
    for one in used:
        found = _named(one, name)
        for instance in _instances(one, found) if found is not None else ():
            rank = (_FAMILIES[one.address_type], instance.health)
            if instance.id not in best or rank < best[instance.id][0]:
                best[instance.id] = (rank, instance)
    if used and all(_named(one, name) is None for one in used):
        raise ProviderError(f"it has no TCP port '{name}'; {_choices(used)}")
    return Snapshot.of(instance for _, instance in best.values())


def _usable(one: EndpointSlice) -> Iterator[Port]:
    """TCP is meant where nothing is said; a port without a number stands for all of them."""
    return (port for port in one.ports or () if port.protocol in (None, "TCP") and port.port is not None)


def _named(one: EndpointSlice, name: str) -> Port | None:
    """By its name, or else by its number."""
    ports = list(_usable(one))
    by_number = (port for port in ports if str(port.port) == name)
    return next((port for port in ports if (port.name or "") == name), next(by_number, None))


def _only_port(slices: list[EndpointSlice]) -> str:
    """The name of the only port, or of the only one among `SERVING_PORTS`."""
    names = {port.name or "" for one in slices for port in _usable(one)}
    for among in (names, names.intersection(SERVING_PORTS)):
        if len(among) == 1:
            return among.pop()
    if not slices:
        return ""
    raise ProviderError(f"say with 'port' which one is meant; {_choices(slices)}")


def _choices(slices: list[EndpointSlice]) -> str:
    ports = sorted({(port.port or 0, port.name or "") for one in slices for port in _usable(one)})
    words = [f"{name} ({number})" if name else str(number) for number, name in ports[:10]]
    return f"it has {', '.join(words)}" if words else "its EndpointSlices list no TCP port"


def _instances(one: EndpointSlice, port: Port) -> Iterator[Instance]:
    spoken = protocols(one.metadata.annotations or {})
    if spoken is None and port.app_protocol in APP_PROTOCOLS:
        spoken = (APP_PROTOCOLS[port.app_protocol],)
    for endpoint in one.endpoints or ():
        health, reason = _health(endpoint.conditions)
        target = endpoint.target.name if endpoint.target is not None else None
        for index, host in enumerate(endpoint.addresses):
            address = f"{_host(one, host)}:{port.port}"
            yield Instance(
                # Only one of a pod's addresses can go by its name.
                id=target if target and index == 0 else address,
                address=address,
                protocols=spoken,
                health=health,
                reason=reason,
                zone=endpoint.zone or None,
            )


def _health(conditions: Conditions) -> tuple[Health, str]:
    if conditions.ready is not False:
        return Health.HEALTHY, ""
    if not conditions.terminating:
        return Health.UNAVAILABLE, "not ready"
    return (Health.UNAVAILABLE if conditions.serving is False else Health.DEGRADED), "terminating"


def _host(one: EndpointSlice, text: str) -> str:
    """As it stands in an address. ProviderError when it is none of its slice's type."""
    if one.address_type == "FQDN" and is_host_name(text):
        return text
    if one.address_type in ("IPv4", "IPv6"):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            address = None
        if address is not None and one.address_type == f"IPv{address.version}":
            return f"[{address}]" if address.version == 6 else str(address)
    raise ProviderError(f"the EndpointSlice '{one.metadata.name}' has an address that is none")
