"""Asks name servers, and remembers what they say for as long as they say that it holds."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

from mitu.config.discovery import DnsProvider
from mitu.config.types import split_host_port
from mitu.discovery.provider import ProviderError

LATE = 1.1
"""Answers are asked for again up to this much later than they may be, so that a fleet does not ask at one time."""

_TRY = 2.0
_AT_ONCE = 16

Question = tuple[dns.name.Name, dns.rdatatype.RdataType]


@dataclass(frozen=True, slots=True)
class _Answer:
    records: tuple[dns.rdata.Rdata, ...]
    until: float


class Lookup:
    """Answers to questions, in rounds: each round asks only for what has run out since the one before.

    It remembers what the last round asked for, and nothing else. ProviderError when there is no answer: SERVFAIL,
    REFUSED, silence, a referral. That a name or its records do not exist is an answer.
    """

    def __init__(self, resolver: dns.asyncresolver.Resolver, settings: DnsProvider) -> None:
        self._resolver = resolver
        # The system's search list and `ndots` belong to the system's servers.
        self._search = not settings.servers
        self._low = settings.min_ttl.total_seconds()
        self._high = settings.max_ttl.total_seconds()
        self._known: dict[Question, _Answer] = {}
        self._used: dict[Question, _Answer] = {}
        self._late = 1.0
        self._free = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    async def open(cls, settings: DnsProvider) -> Lookup:
        """With the servers of `settings`, or the system's. ProviderError when there are none."""
        if settings.servers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = await _servers(settings.servers)
        else:
            try:
                resolver = await asyncio.to_thread(dns.asyncresolver.Resolver)
            except (dns.exception.DNSException, OSError, ValueError) as error:
                hint = "list name servers in the provider's 'servers'"
                raise ProviderError(f"the system names no DNS servers ({_lower(error)}); {hint}") from error
        resolver.lifetime = settings.timeout.total_seconds()
        # So that each server has its turn, and a lone one a second turn, should a packet be lost.
        resolver.timeout = min(_TRY, resolver.lifetime / (len(resolver.nameservers) + 1))
        return cls(resolver, settings)

    def begin(self) -> None:
        """A new round."""
        self._known, self._used = self._used, {}
        self._late = random.uniform(1, LATE)  # noqa: S311 - not a secret

    def rest(self) -> float:
        """Seconds until the first answer of this round runs out."""
        return max(0.0, min(one.until for one in self._used.values()) - asyncio.get_running_loop().time())

    async def ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> tuple[dns.rdata.Rdata, ...]:
        """The records of `name`; none, where the answer is that there are none."""
        answer = self._known.get((name, kind))
        if answer is None or answer.until <= asyncio.get_running_loop().time():
            async with self._free:
                answer = await self._query(name, kind)
        self._used[name, kind] = answer
        return answer.records

    async def _query(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> _Answer:
        backend = dns.asyncbackend.get_backend("asyncio")
        try:
            found = await self._resolver.resolve(
                name, kind, search=self._search, backend=backend, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN as error:
            # One for each name of the search list, and the first that runs out may be the one that comes to be.
            responses: dict[dns.name.Name, dns.message.QueryMessage] = error.kwargs["responses"]
            denials = [self._of(response) for response in responses.values()]
            return _Answer((), min(one.until for one in denials))
        except dns.exception.DNSException as error:
            raise ProviderError(f"no answer for {name} {kind.name}: {_lower(error)}") from error
        return self._of(found.response)

    def _of(self, response: dns.message.QueryMessage) -> _Answer:
        chain = response.resolve_chaining()
        if chain.answer is not None:
            if chain.answer.rdtype == dns.rdatatype.SRV:
                self._remember(response.additional)
            return _Answer(tuple(chain.answer), self._until(chain.minimum_ttl))
        denied = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
        if not denied and not _final(response, aliased=bool(chain.cnames)):
            advice = "ask a recursive name server, or the one that has the zone"
            raise ProviderError(f"the answer for {response.question[0]} only refers to other servers: {advice}")
        # RFC 2308, sections 3 and 5: a denial holds as long as its SOA says, and no time at all without one.
        return _Answer((), self._until(chain.minimum_ttl if denied else 0))

    def _remember(self, additional: Iterable[dns.rrset.RRset]) -> None:
        """Addresses of SRV targets. What had no room there is asked for."""
        for rrset in additional:
            if rrset.rdclass == dns.rdataclass.IN:
                self._known[rrset.name, rrset.rdtype] = _Answer(tuple(rrset), self._until(rrset.ttl))

    def _until(self, ttl: float) -> float:
        """When an answer that has just come is to be asked for again, in the loop's time."""
        latest = min(max(ttl, self._low), self._high / LATE) * self._late
        return asyncio.get_running_loop().time() + max(latest, self._low)


def _final(response: dns.message.QueryMessage, *, aliased: bool) -> bool:
    """Whether an answer without records and SOA means that there are none; else it is a referral (RFC 2308, 2.2).

    A recursive server has followed aliases to their end; one that only has zones stops where its own end.
    """
    if any(rrset.rdtype == dns.rdatatype.NS for rrset in response.authority):
        return False
    recursive = bool(response.flags & dns.flags.RA)
    return recursive or (bool(response.flags & dns.flags.AA) and not aliased)


async def _servers(names: Iterable[str]) -> list[dns.nameserver.Nameserver]:
    """All addresses of those that have any. ProviderError when none has."""
    servers: list[dns.nameserver.Nameserver] = []
    problems: list[str] = []
    for name in names:
        host, port = split_host_port(name) or (name, 53)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            problems.append(f"the name server {name} has no address: {_lower(error.strerror)}")
        else:
            servers += [dns.nameserver.Do53Nameserver(str(address[0]), port) for *_, address in found]
    if not servers:
        raise ProviderError("; ".join(problems))
    return servers


def _lower(error: object) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
