"""What `mitu dev` serves, as a configuration: the one that it runs, and the one that it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from mitu.config.types import is_host_name, split_host_port
from mitu.dev import WantedError
from mitu.dev.authority import Pair

_SCHEME_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests are sent: a plain or TLS address of an HTTP server."""

    address: str
    tls: bool = False

    @property
    def url(self) -> str:
        if self.address.startswith("unix:"):
            return self.address
        return f"http{'s' if self.tls else ''}://{self.address}"

    def as_upstream(self) -> dict[str, Any]:
        upstream: dict[str, Any] = {"name": "app", "endpoints": [self.address]}
        if self.tls:
            # What another program on this machine signed for itself needs no verification to be who it is.
            upstream["tls"] = {"verify": False} if _is_local(self.address) else True
        return upstream


def target(given: str) -> Target:
    """`3000`, `:3000`, `host:3000`, `http://host:3000`, `https://host`, `unix:/path`; else WantedError."""
    text = given.strip()
    if text.startswith("unix:/"):
        return Target(text)
    scheme, rest = "http", text
    if "://" in text:
        parts = urlsplit(text)
        scheme, rest = parts.scheme.lower(), parts.netloc
        if scheme not in _SCHEME_PORTS:
            raise WantedError(f"'{given}' is not HTTP; --to takes http:// and https://")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise WantedError(f"'{given}' has a path; requests keep their own, so give the address alone: --to {rest}")
        if split_host_port(rest) is None:
            rest = f"{rest}:{_SCHEME_PORTS[scheme]}"
    if re.fullmatch(r":?[0-9]+", rest):
        # By name, since it may listen on ::1 alone, as many development servers do.
        rest = f"localhost:{rest.removeprefix(':')}"
    host_port = split_host_port(rest)
    if host_port is None or host_port[1] == 0 or not _is_host(host_port[0]):
        raise WantedError(f"'{given}' is not an address; write 3000, 127.0.0.1:3000 or http://127.0.0.1:3000")
    return Target(rest, scheme == "https")


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return is_host_name(text.lower())
    return True


def _is_local(address: str) -> bool:
    host = (split_host_port(address) or ("", 0))[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def configuration(pair: Pair, bind: str, to: Target | None, *, access_log: bool = False) -> dict[str, Any]:
    """A configuration file's content. Without `to` every request gets one fixed answer."""
    answer: dict[str, Any] = {"match": {"path_prefix": "/"}}
    if to is None:
        answer["respond"] = {"content_type": "text/plain", "body": "It works. Put an upstream here.\n"}
    else:
        answer["upstream"] = "app"
    listener = {
        "name": "dev",
        "bind": bind,
        "protocols": ["h2", "http/1.1"],
        "tls": {"certificates": [{"certificate": str(pair.certificate), "key": str(pair.key)}]},
        "routes": [answer],
    }
    found: dict[str, Any] = {"runtime": {"workers": 1}}
    if access_log:
        found["logging"] = {"access": {"path": "stdout"}}
    found["listeners"] = [listener]
    if to is not None:
        found["upstreams"] = [to.as_upstream()]
    return found
