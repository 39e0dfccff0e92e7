"""What the local authority vouches for: names that no public site has, and private addresses.

The names are the authority's constraints, too (RFC 5280 §4.2.1.10), so that whoever steals its key can still not pose
as anybody's bank.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from cryptography import x509

from mitu.config.types import is_host_name
from mitu.dev import WantedError

ALWAYS = ("localhost", "127.0.0.1", "::1")
# RFC 6761 and RFC 8375, `.local` of mDNS (RFC 6762), and `.internal`, which ICANN has set aside for private use.
DOMAINS = ("localhost", "test", "local", "internal", "home.arpa")
NETWORKS = tuple(
    ip_network(one)
    for one in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


def complete(extra: Iterable[str]) -> tuple[str, ...]:
    """The names that are in every certificate, and `extra` in one spelling, each once. WantedError when one of them
    is not for the local authority to vouch for."""
    return tuple(dict.fromkeys((*ALWAYS, *map(_checked, extra))))


def _checked(given: str) -> str:
    name = given.strip().lower().strip("[]")
    try:
        address = ip_address(name)
    except ValueError:
        return _checked_name(given, name)
    if not any(address in network for network in NETWORKS):
        raise WantedError(f"{address} is not a private address, and only a public authority can vouch for it")
    return str(address)


def _checked_name(given: str, name: str) -> str:
    bare = name.removeprefix("*.")
    if not is_host_name(bare):
        advice = "leave scheme, port and path out" if set(name) & set(":/") else "names look like app.localhost"
        raise WantedError(f"'{given}' is not a host name; {advice}")
    if not any(bare == domain or bare.endswith(f".{domain}") for domain in DOMAINS):
        told = ", ".join(f".{domain}" for domain in DOMAINS)
        hint = f"; did you mean '{name}.localhost'?" if "." not in name else ""
        raise WantedError(f"'{name}' may be somebody's public name; the local authority vouches for {told} only{hint}")
    if bare != name and bare in DOMAINS:
        raise WantedError(f"clients refuse the wildcard '{name}'; one more label in it will do, as in '*.app.{bare}'")
    return name


def constraints() -> x509.NameConstraints:
    """The constraints in the authority's certificate. Addresses are not among them: BoringSSL, and so every gRPC
    client, refuses certificates with addresses below an authority that is constrained in them."""
    return x509.NameConstraints([x509.DNSName(domain) for domain in DOMAINS], None)
