"""Instances from DNS: SRV records (RFC 2782) for `_name._proto.domain`, else A and AAAA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator

import dns.exception
import dns.name
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
from dns.rdatatype import AAAA, SRV, A

from mitu.config.discovery import Discover, DnsProvider
from mitu.discovery.instance import Health, Instance, Snapshot
from mitu.discovery.lookup import Lookup
from mitu.discovery.provider import ProviderError

_HEAVIEST = 1000

Addresses = tuple[str, ...]
Record = dns.rdtypes.IN.SRV.SRV


class Dns:
    """Asks again when the first of a service's answers has run out.

    A name that does not exist, or has no such records, is a service without instances. As long as one of the questions
    has no answer there is no new state: half of a service is never taken for the whole.
    """

    kind = "dns"

    def __init__(self, settings: DnsProvider) -> None:
        self._settings = settings

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        name = _name(discover.service)
        services = discover.service.startswith("_")
        port = 0 if services else _port(discover)
        lookup = await Lookup.open(self._settings)
        told: Snapshot | None = None
        while True:
            lookup.begin()
            found = Snapshot.of(await _services(lookup, name) if services else await _hosts(lookup, name, port))
            if found != told:
                yield found
                told = found
            await asyncio.sleep(lookup.rest())

    async def close(self) -> None:
        """It holds nothing from one question to the next."""


async def _hosts(lookup: Lookup, name: dns.name.Name, port: int) -> list[Instance]:
    found = (await _addresses(lookup, [name]))[name]
    return [Instance(id=address, address=address) for address in (_joined(one, port) for one in found)]


async def _services(lookup: Lookup, name: dns.name.Name) -> list[Instance]:
    records = [one for one in await lookup.ask(name, SRV) if isinstance(one, Record) and one.port]
    # The root as a target: the service is decidedly not there.
    targets = {one.target for one in records} - {dns.name.root}
    addresses = {target: found for target, found in (await _addresses(lookup, targets)).items() if found}
    return list(_ranked([one for one in records if one.target in addresses], addresses))


def _ranked(records: list[Record], addresses: dict[dns.name.Name, Addresses]) -> Iterator[Instance]:
    """The best priority that has an address is healthy; the others stand by, to be used when it fails."""
    best = min((one.priority for one in records), default=0)
    heaviest = max((one.weight for one in records), default=0)
    # The best comes last, and so is the one that counts, should two targets have one address.
    for one in sorted(records, key=lambda record: record.priority, reverse=True):
        standby = one.priority > best
        for address in addresses[one.target]:
            yield Instance(
                id=_joined(address, one.port),
                address=_joined(address, one.port),
                weight=_weight(one.weight, heaviest),
                health=Health.DEGRADED if standby else Health.HEALTHY,
                reason=f"priority {one.priority}" if standby else "",
                metadata={"target": one.target.to_text(omit_final_dot=True)},
            )


def _weight(weight: int, heaviest: int) -> int:
    """Of 65,535 to 1000, keeping the shares where one does not fit. 0 is "a very small chance", so not none."""
    return max(1, round(weight * min(1.0, _HEAVIEST / max(heaviest, 1))))


async def _addresses(lookup: Lookup, names: Iterable[dns.name.Name]) -> dict[dns.name.Name, Addresses]:
    """IPv4 first. What one question lacks an answer to is ProviderError for all."""
    found: dict[dns.name.Name, tuple[asyncio.Task[Addresses], asyncio.Task[Addresses]]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for name in names:
                v4, v6 = _of_kind(lookup, name, A), _of_kind(lookup, name, AAAA)
                found[name] = (group.create_task(v4), group.create_task(v6))
    except ExceptionGroup as several:
        raise several.exceptions[0] from several.exceptions[0].__cause__
    return {name: (*v4.result(), *v6.result()) for name, (v4, v6) in found.items()}


async def _of_kind(lookup: Lookup, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> Addresses:
    records = await lookup.ask(name, kind)
    return tuple(one.address for one in records if isinstance(one, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA))


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _name(service: str) -> dns.name.Name:
    try:
        name = dns.name.from_text(service, None)
    except dns.exception.DNSException as error:
        raise ProviderError(f"'{service}' is not a domain name: {error}") from error
    if name in (dns.name.root, dns.name.empty):
        raise ProviderError(f"'{service}' is not a domain name: it has no label")
    return name


def _port(discover: Discover) -> int:
    text = discover.port
    if text is None:
        advice = f"set 'discover.port', or name SRV records, such as '_http._tcp.{discover.service}'"
        raise ProviderError(f"the addresses of '{discover.service}' come without a port: {advice}")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ProviderError(f"'{text}' is not a port that DNS has: 'discover.port' is a number from 1 to 65535")
    return int(text)
