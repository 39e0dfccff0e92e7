"""Whom the load is for: an address of this machine, unless the user says that the target is theirs."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from mitu.bench import BenchError, WantedError
from mitu.config.types import split_host_port

_PORTS = {"https": 443, "http": 80, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Target:
    """`address`: what `host` resolved to, with the port. `own`: a gateway made for this run."""

    scheme: str
    host: str
    port: int
    path: str
    address: str
    own: bool = False

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path if self.scheme != 'mqtts' else ''}"

    @property
    def tls(self) -> bool:
        return self.scheme != "http"


def target(given: str, *, allow_remote: bool = False) -> Target:
    """`https://host:port/path`, `http://…`, `mqtts://host:port`, `host:port`. WantedError when it is none of these.

    BenchError when it leads to another machine and `allow_remote` is not said, or when its name does not resolve.
    """
    text = given.strip()
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError as error:
        raise WantedError(f"'{given}' is not a target: {error}") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise WantedError(f"'{given}': {scheme}:// is not known here; write https://, http:// or mqtts://")
    where = parts.netloc if split_host_port(parts.netloc) else f"{parts.netloc}:{_PORTS[scheme]}"
    host_port = split_host_port(where)
    if "@" in where or host_port is None or not all(host_port):
        raise WantedError(f"'{given}' is not a target; write https://localhost:8443/path or localhost:8443")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise WantedError(f"'{given}': the path has characters that must be percent-encoded")
    host, port = host_port
    addresses = _resolve(host, port)
    if not allow_remote and (away := [one for one in addresses if not ip_address(one).is_loopback]):
        raise BenchError(
            f"{host} is not this machine ({away[0]}), and load that its owner does not expect is an attack"
            "\n  = if it is yours, and everything between here and there is too: --i-own-the-target"
        )
    named = f"[{host}]" if ":" in host else host
    first = addresses[0]
    return Target(scheme, named, port, path, f"[{first}]:{port}" if ":" in first else f"{first}:{port}")


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"cannot resolve {host}: {reason.lower()}\n  = give an address instead") from error
    return [str(one[4][0]).partition("%")[0] for one in found]


def check_listening(to: Target) -> None:
    """BenchError when nobody accepts there: better than a run of nothing but refusals."""
    host, port = split_host_port(to.address) or ("", 0)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BenchError(
            f"cannot connect to {to.address}: {reason}"
            "\n  = start the server first, or leave TARGET out to put the load on a gateway made for it"
        ) from error
