"""What the clients of a server name get: the listener's ALPN settings with a site's over them."""

from __future__ import annotations

from dataclasses import dataclass

from mitu.config.listeners import Listener, SiteSettings

REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class AlpnPolicy:
    """`protocols`: those that are allowed, most preferred first; `no_alpn`: one of the listener's, or `refuse`."""

    mode: str
    protocols: tuple[str, ...]
    no_alpn: str
    ranking: str | None = None
    """Under which name their order is learned; None: it stays."""


def alpn_policy(listener: Listener, site: SiteSettings | None = None) -> AlpnPolicy:
    """What is in force for `site`; None: for everybody else."""
    own = site or SiteSettings(names=())
    mode = own.alpn_mode or listener.alpn_mode
    names = tuple(one.alpn for one in listener.protocols)
    protocols = names if own.protocols is None else tuple(name for name in names if name in own.protocols)
    if own.alpn_order is not None:
        protocols = tuple(name for name in own.alpn_order if name in names)
    no_alpn = own.no_alpn or effective_no_alpn(listener)
    served = mode == "observe" or (mode == "lenient" and no_alpn in protocols)
    return AlpnPolicy(mode, protocols, no_alpn if served else REFUSE, ranking_name(listener, site))


def ranking_name(listener: Listener, site: SiteSettings | None = None) -> str | None:
    """What the ranking of a site's protocols is called; None: they are not ranked."""
    if listener.alpn_ranking is None or (site is not None and site.alpn_order is not None):
        return None
    return listener.name if site is None else f"{listener.name}/{site.names[0]}"


def effective_no_alpn(listener: Listener) -> str:
    """The protocol of clients without ALPN, or `refuse`, where neither a site nor its mode says otherwise."""
    if listener.no_alpn is not None:
        return listener.no_alpn
    served = any(one.alpn == "http/1.1" and one.is_http for one in listener.protocols)
    return "http/1.1" if served else REFUSE
