"""Whose word counts for which protocol: the upstreams that a listener leads to, for each server name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mitu.alpn.ranking import SCORES, Score
from mitu.config.alpn_policy import alpn_policy, ranking_name
from mitu.config.certificates import covered
from mitu.config.listeners import AlpnRanking, Listener, SiteSettings
from mitu.config.sites import settings_of


@dataclass(frozen=True, slots=True)
class Ranked:
    """Protocols that are ranked together: those of a listener, or of some of its server names."""

    name: str
    listener: str
    server_names: tuple[str, ...]
    """Empty: all that have no settings of their own."""
    protocols: tuple[str, ...]
    """In the configured order."""
    upstreams: dict[str, tuple[str, ...]]
    """By protocol: who stands behind it."""
    relayed: frozenset[str]
    scores: dict[str, Score]
    hold: float
    """Seconds."""


def ranked(listener: Listener) -> Iterator[Ranked]:
    """What is ranked on a listener; nothing, unless it says so."""
    settings = listener.alpn_ranking
    if settings is None:
        return
    sites: list[SiteSettings | None] = [None, *listener.sites]
    for site in sites:
        name = ranking_name(listener, site)
        if name is not None:
            yield _ranked(name, listener, settings, site)


def _ranked(name: str, listener: Listener, settings: AlpnRanking, site: SiteSettings | None) -> Ranked:
    names = () if site is None else site.names
    routes = settings.upstreams if settings.upstreams is not None else _behind_routes(listener, site)
    upstreams: dict[str, tuple[str, ...]] = {}
    for protocol in listener.protocols:
        if protocol.is_http:
            upstreams[protocol.alpn] = routes
        else:
            upstreams[protocol.alpn] = () if protocol.relay is None else (protocol.relay,)
    return Ranked(
        name=name,
        listener=listener.name,
        server_names=names,
        protocols=alpn_policy(listener, site).protocols,
        upstreams=upstreams,
        relayed=frozenset(one.alpn for one in listener.protocols if not one.is_http),
        scores=SCORES | {alpn: Score(**one.model_dump()) for alpn, one in settings.scores.items()},
        hold=settings.hold.total_seconds(),
    )


def _behind_routes(listener: Listener, site: SiteSettings | None) -> tuple[str, ...]:
    """The upstreams of all routes that a request for one of a site's names can come to; None: for any other name."""
    found = []
    for route in listener.routes:
        hosts = route.match.all_hosts
        concerned = not hosts or any(_concerns(listener, host, site) for host in hosts)
        if route.upstream is not None and concerned:
            found.append(route.upstream)
    return tuple(dict.fromkeys(found))


def _concerns(listener: Listener, host: str, site: SiteSettings | None) -> bool:
    """Whether a client that asks for `host`, or for a name that it covers, can be the site's."""
    own = settings_of(host, [one.names for one in listener.sites])
    if (None if own is None else listener.sites[own]) is site:
        return True
    return site is not None and any(covered(name, (host,)) for name in site.names)
