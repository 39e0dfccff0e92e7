"""What Consul's answer on the health of a service says of its instances.

https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service: a list of entries, each a
node, a service that runs there, and the checks of both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from mitu.config.types import SocketName
from mitu.discovery import metadata
from mitu.discovery.instance import Health, Instance
from mitu.discovery.provider import ProviderError

T = TypeVar("T")
Json = Mapping[str, Any]

_LONGEST_LINE = 200
"""Characters."""

_MAINTENANCE = "maintenance"
_STATUS = {
    "passing": Health.HEALTHY,
    "warning": Health.DEGRADED,
    "critical": Health.UNAVAILABLE,
    _MAINTENANCE: Health.UNAVAILABLE,
}
_ADDRESS: TypeAdapter[str] = TypeAdapter(SocketName)


@dataclass(frozen=True, slots=True)
class Found:
    """`left_out`: the identifiers of instances that nobody could connect to, each with the reason."""

    instances: tuple[Instance, ...]
    left_out: tuple[str, ...]


class _LeftOutError(Exception):
    """Why an entry is no instance."""


def read(body: bytes | bytearray, tag: str | None) -> Found:
    """The instances in an answer, those with `tag` if that is given. ProviderError when it is not of Consul's form."""
    entries = [(_field(one, "Node", dict), _field(one, "Service", dict), one) for one in _entries(body)]
    if tag is not None:
        entries = [one for one in entries if tag in _field(one[1], "Tags", list)]
    # Consul's are unique on a node alone, and by default the name of the service, on every node.
    times = Counter(_field(service, "ID", str) for _, service, _ in entries)
    instances, left_out = [], []
    for node, service, entry in entries:
        id, on = _field(service, "ID", str), _field(node, "Node", str)
        name = f"{id}@{on}" if times[id] > 1 else id
        try:
            instances.append(_instance(_key(on, id), name, node, service, _field(entry, "Checks", list)))
        except _LeftOutError as error:
            left_out.append(one_line(f"'{name}' {error}"))
    return Found(tuple(instances), tuple(left_out))


def _key(node: str, id: str) -> str:
    """The same whatever else is there: an instance that changed its own would be a new one, of which nothing is
    known."""
    return f"{quote(node, safe='') if '/' in node or '%' in node else node}/{id}"


def one_line(text: str) -> str:
    """The first line that says something: printable, and not long."""
    line = text.strip().partition("\n")[0][: _LONGEST_LINE + 1].rstrip()
    if not line.isprintable():
        line = "".join(char if char.isprintable() else " " for char in line)
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"


def _entries(body: bytes | bytearray) -> list[Any]:
    try:
        entries = json.loads(body)
        if b"\\ud" in body or b"\\uD" in body:
            # Half a character (a lone surrogate) can be written in JSON, and nowhere that it would go from here.
            json.dumps(entries, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ProviderError("an answer that is not JSON") from None
    if not isinstance(entries, list):
        raise ProviderError("an answer that is not a list")
    return entries


def _instance(id: str, name: str, node: Json, service: Json, checks: list[Any]) -> Instance:
    health, reason = _health(checks)
    meta = _texts(service, "Meta")
    tags = [tag for tag in _field(service, "Tags", list) if isinstance(tag, str)]
    weights = _field(service, "Weights", dict)
    return Instance(
        id=id,
        address=_address(
            _field(service, "Address", str) or _field(node, "Address", str), _field(service, "Port", int)
        ),
        weight=metadata.weight(_field(weights, "Warning" if health is Health.DEGRADED else "Passing", int, 1)),
        protocols=metadata.protocols(meta, tags),
        health=health,
        reason=reason,
        zone=meta.get("zone") or _texts(node, "Meta").get("zone") or None,
        metadata=meta,
        name=name,
    )


def _address(host: str, port: int) -> str:
    if not port:
        raise _LeftOutError("has no port")
    try:
        return _checked(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except ValidationError:
        raise _LeftOutError("has an address that nobody can connect to") from None


@lru_cache(maxsize=1 << 14)
def _checked(address: str) -> str:
    # Of all that is asked of an instance this costs most, and the answer is the same each time.
    return _ADDRESS.validate_python(address)


def _health(checks: Iterable[Any]) -> tuple[Health, str]:
    """Of the worst check, the node's own among them; of equally bad ones, maintenance says more than its effects."""
    worst, health, rank = None, Health.HEALTHY, (0, False)
    for check in checks:
        status = _field(check, "Status", str)
        if status == "passing":
            continue
        # A status that Consul may have one day says that something is wrong.
        now = _STATUS.get(status, Health.UNAVAILABLE)
        if (now, _maintained(check)) > rank:
            worst, health, rank = check, now, (now, _maintained(check))
    if worst is None:
        return health, ""
    if rank[1]:
        of = "the instance" if _field(worst, "ServiceID", str) else "the node"
        return health, _with(f"{of} is in maintenance", _field(worst, "Notes", str))
    name = _field(worst, "Name", str) or _field(worst, "CheckID", str)
    return health, _with(f"{one_line(name)} is {one_line(worst['Status'])}", _field(worst, "Output", str))


def _maintained(check: Json) -> bool:
    id = _field(check, "CheckID", str)
    return id == "_node_maintenance" or id.startswith("_service_maintenance:") or check["Status"] == _MAINTENANCE


def _with(fact: str, note: str) -> str:
    said = one_line(note)
    return f"{fact}: {said}" if said else fact


def _texts(of: Json, name: str) -> dict[str, str]:
    found: dict[str, str] = _field(of, name, dict)
    if not all(isinstance(value, str) for value in found.values()):
        raise ProviderError(f"an answer with a bad '{name}'")
    return found


def _field(of: Any, name: str, kind: type[T], otherwise: T | None = None) -> T:
    """Empty, or `otherwise`, when it is null or left out, as Go does with what is empty."""
    if not isinstance(of, dict):
        raise ProviderError(f"an answer with no place for '{name}'")
    found = of.get(name)
    if found is None:
        return kind() if otherwise is None else otherwise
    if not isinstance(found, kind):
        raise ProviderError(f"an answer with a bad '{name}'")
    return found
