"""Which certificates and settings each server name gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mitu.config.certificates import covered
from mitu.config.types import ip_address

# What the data plane prefers, cheapest first (`KeyType` in crates/mitu-tls/src/certificate.rs).
_PREFERENCE = ("ecdsa-p256", "ed25519", "ecdsa-p384", "ecdsa-p521", "rsa")
DEAR = {
    "ecdsa-p384": "P-384 takes about 1.5 times the CPU of P-256",
    "rsa": "RSA-2048 takes about 6 times the CPU of P-256, longer keys more",
}
"""What a full handshake with a kind of key costs, as measured (docs/benchmarks.md)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A certificate with the names that it is served for."""

    id: str
    key_type: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Names that share their certificates, one for each kind of key, and their settings."""

    names: tuple[str, ...]
    certificates: tuple[str, ...]
    settings: int | None = None
    """Index of those that name them; None: the listener's."""


def derive_sites(candidates: Sequence[Candidate], settings: Sequence[tuple[str, ...]] = ()) -> tuple[Site, ...]:
    """Sites in the order of the certificates; the first one is the first certificate's. `settings`: the names of each.

    A name gets the certificates that list it, then those whose wildcard covers it for kinds of keys (RSA, ECDSA)
    still missing: a client that cannot use the exact certificate is still served. A name that only settings list has
    a site where a certificate covers it.
    """
    known = tuple(name for one in candidates for name in one.names)
    listed = (name for names in settings for name in names if covered(name, known))
    groups: dict[tuple[tuple[str, ...], int | None], list[str]] = {}
    for name in dict.fromkeys((*known, *listed)):
        groups.setdefault((_certificates(name, candidates), settings_of(name, settings)), []).append(name)
    return tuple(Site(tuple(names), certificates, own) for (certificates, own), names in groups.items())


def default_site(sites: tuple[Site, ...]) -> tuple[tuple[Site, ...], int]:
    """Where unknown names lead to: the first certificate, under the listener's settings. Added where there is none."""
    wanted = Site((), sites[0].certificates)
    for at, site in enumerate(sites):
        if (site.certificates, site.settings) == (wanted.certificates, None):
            return sites, at
    return (*sites, wanted), len(sites)


def settings_of(name: str, settings: Sequence[tuple[str, ...]]) -> int | None:
    """Which of `settings`, the names of each, are those of `name`; an exact one goes before a wildcard."""
    exact = [at for at, names in enumerate(settings) if name in names]
    wildcard = [at for at, names in enumerate(settings) if covered(name, names)]
    return next(iter((*exact, *wildcard)), None)


def _certificates(name: str, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    chosen: dict[str, str] = {}
    for one in candidates:
        if name in one.names:
            chosen.setdefault(one.key_type, one.id)
    for one in candidates:
        if ip_address(name) is None and covered(name, one.names):
            chosen.setdefault(one.key_type, one.id)
    return tuple(chosen.values())


def dear_certificates(sites: Sequence[Site], candidates: Sequence[Candidate]) -> dict[str, str]:
    """The kinds of the certificates that are dear and yet the cheapest which their site has, by identifier."""
    kinds = {one.id: one.key_type for one in candidates}
    cheapest = {min(site.certificates, key=lambda one: _PREFERENCE.index(kinds[one])) for site in sites}
    return {
        identifier: kinds[identifier] for identifier in kinds if identifier in cheapest and kinds[identifier] in DEAR
    }
