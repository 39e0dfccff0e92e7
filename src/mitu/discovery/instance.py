"""What a registry says of a service: its instances, each with its health and the protocols that it speaks."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum


class Health(IntEnum):
    """How an instance is. Greater is worse."""

    HEALTHY = 0
    DEGRADED = 1
    UNAVAILABLE = 2

    @property
    def word(self) -> str:
        return self.name.lower()


HEALTH_WORDS = {
    "passing": Health.HEALTHY,
    "healthy": Health.HEALTHY,
    "warning": Health.DEGRADED,
    "degraded": Health.DEGRADED,
    "critical": Health.UNAVAILABLE,
    "unavailable": Health.UNAVAILABLE,
}
"""How people write it: in words of their own, and in Consul's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One word on an instance's health: whose it is, and why."""

    health: Health
    source: str
    """`consul`, `check`, `traffic`, …"""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.reason else self.source


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance, as a registry has it."""

    id: str
    """Unique within its service, and the same from one snapshot to the next."""
    address: str
    """`host:port` or `[v6]:port`."""
    weight: int = 1
    """Its share among the instances, 0 to 1000."""
    protocols: tuple[str, ...] | None = None
    """ALPN names that it says it speaks; None: it says nothing."""
    health: Health = Health.HEALTHY
    reason: str = ""
    """Why it is not healthy."""
    zone: str | None = None
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    name: str = field(default="", compare=False)
    """What people call it: short, and what else is there may change it. `id` when left out."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.id)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All instances of a service at one time."""

    instances: tuple[Instance, ...]

    @classmethod
    def of(cls, instances: Iterable[Instance]) -> Snapshot:
        """In the order of their identifiers; of several with one identifier the last. What they say is made fit to be
        shown."""
        known = {one.id: one for one in map(_shown, instances)}
        return cls(tuple(known[key] for key in sorted(known)))

    def name(self, id: str) -> str:
        """What people call the instance `id`; that itself for one that is not there."""
        at = bisect_left(self.instances, id, key=lambda one: one.id)
        return next((one.name for one in self.instances[at : at + 1] if one.id == id), id)


_LONGEST = 300
"""Characters of a text that is shown."""
_DIGEST = 12


def printable(text: str, most: int = _LONGEST) -> str:
    """`text` without what moves a terminal's cursor, or worse: anybody who may register something has written it."""
    if text.isprintable() and len(text) <= most:
        return text
    return "".join(char if char.isprintable() else "?" for char in text[:most])


def _shown(one: Instance) -> Instance:
    texts = (one.id, one.name, one.reason, one.zone or "", *(one.protocols or ()))
    if all(printable(text) is text for text in texts):
        return one
    protocols = None if one.protocols is None else tuple(name for name in one.protocols if name.isprintable())
    zone = None if one.zone is None else printable(one.zone)
    return replace(
        one, id=_key(one.id), name=printable(one.name), reason=printable(one.reason), zone=zone, protocols=protocols
    )


def _key(id: str) -> str:
    """Fit to be shown too, and still another one for each: what is taken out of it must not make two instances one."""
    shown = printable(id)
    if shown is id:
        return id
    digest = hashlib.sha256(id.encode(errors="backslashreplace")).hexdigest()[:_DIGEST]
    return f"{shown[: _LONGEST - _DIGEST - 1]}#{digest}"
