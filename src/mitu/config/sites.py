"""Which certificates each server name gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mitu.config.certificates import covered
from mitu.config.types import ip_address


@dataclass(frozen=True, slots=True)
class Candidate:
    """A certificate with the names that it is served for."""

    id: str
    key_type: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Names that share their certificates, one for each kind of key."""

    names: tuple[str, ...]
    certificates: tuple[str, ...]


def derive_sites(candidates: Sequence[Candidate]) -> tuple[Site, ...]:
    """Sites in the order of the certificates; the first one is the first certificate's.

    A name gets the certificates that list it, then those whose wildcard covers it for kinds of keys (RSA, ECDSA)
    still missing: a client that cannot use the exact certificate is still served.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(name for one in candidates for name in one.names):
        groups.setdefault(_certificates(name, candidates), []).append(name)
    return tuple(Site(tuple(names), certificates) for certificates, names in groups.items())


def _certificates(name: str, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    chosen: dict[str, str] = {}
    for one in candidates:
        if name in one.names:
            chosen.setdefault(one.key_type, one.id)
    for one in candidates:
        if ip_address(name) is None and covered(name, one.names):
            chosen.setdefault(one.key_type, one.id)
    return tuple(chosen.values())
