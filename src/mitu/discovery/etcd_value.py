"""What a value in etcd says of an instance: its address alone, or a JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mitu.config.types import SocketName
from mitu.discovery import metadata
from mitu.discovery.instance import HEALTH_WORDS, Health, Instance

_LONGEST = 64 << 10
"""Bytes of one value."""

_LONGEST_REASON = 200
"""Characters."""

_ADDRESS: TypeAdapter[str] = TypeAdapter(SocketName)


class UnreadableError(ValueError):
    """Why a value is no instance. Repeats nothing of the value, which may be anybody's secret in a wrong place."""


def instance(name: str, value: bytes) -> Instance:
    """The instance `name`, whose value is `host:port` or a JSON object, etcd's own naming form (`Op`, `Addr`) too.

    UnreadableError when it is nothing of these.
    """
    if len(value) > _LONGEST:
        raise UnreadableError(f"more than {_LONGEST} bytes")
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise UnreadableError("not UTF-8") from None
    if not text.startswith("{"):
        return Instance(name, _checked(text, "neither host:port nor a JSON object"))
    said = _object(text)
    if said.get("Op") == 1:
        raise UnreadableError("'Op' says that it is deleted")
    more = _metadata(said.get("metadata", said.get("Metadata")))
    health, reason = _health(said)
    return Instance(
        id=name,
        address=_checked(_written(said), "its address is not host:port"),
        weight=_weight(said.get("weight")),
        protocols=_protocols(said.get("protocols"), more),
        health=health,
        reason=reason,
        zone=_text(said, "zone"),
        metadata=more,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(text)
        # Half a character (a lone surrogate) can be written in JSON, and nowhere that it would go from here.
        json.dumps(said, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise UnreadableError("not a JSON object") from None
    return said


def _written(said: Mapping[str, Any]) -> object:
    for key in ("address", "Addr"):
        if key in said:
            return said[key]
    host, port = said.get("host"), said.get("port")
    if host is None or port is None:
        raise UnreadableError("neither 'address' nor 'host' and 'port' in it")
    return f"[{host}]:{port}" if ":" in str(host) and not str(host).startswith("[") else f"{host}:{port}"


def _checked(address: object, otherwise: str) -> str:
    try:
        return _ADDRESS.validate_python(address)
    except ValidationError:
        raise UnreadableError(otherwise) from None


def _weight(said: object) -> int:
    if isinstance(said, bool) or not isinstance(said, int | str | None):
        raise UnreadableError("'weight' is not a whole number")
    return metadata.weight(said)


def _health(said: Mapping[str, Any]) -> tuple[Health, str]:
    status = (_text(said, "status") or "passing").lower()
    health = HEALTH_WORDS.get(status)
    if health is None:
        raise UnreadableError(f"'status' is none of {', '.join(HEALTH_WORDS)}")
    if health is Health.HEALTHY:
        return health, ""
    return health, (_text(said, "reason") or status)[:_LONGEST_REASON]


def _protocols(said: object, more: Mapping[str, str]) -> tuple[str, ...] | None:
    if said is None:
        return metadata.protocols(more)
    if isinstance(said, str):
        return metadata.parse(said)
    if isinstance(said, list) and all(isinstance(one, str) for one in said):
        return metadata.parse(",".join(said))
    raise UnreadableError("'protocols' is not a list of names")


def _metadata(said: object) -> dict[str, str]:
    """Values that are not text as JSON; nothing where it is no mapping, which etcd's naming form allows."""
    if not isinstance(said, dict):
        return {}
    return {key: one if isinstance(one, str) else json.dumps(one) for key, one in said.items()}


def _text(said: Mapping[str, Any], key: str) -> str | None:
    one = said.get(key)
    if not isinstance(one, str | None):
        raise UnreadableError(f"'{key}' is not text")
    return one
