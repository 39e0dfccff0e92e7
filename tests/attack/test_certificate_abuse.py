"""Certificates that would be taken for others: names cut at a NUL, wildcards that reach too far, other purposes.

Once as an upstream's, which the gateway verifies, and once as a client's, whose names it passes on.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context, until_alert
from support.gateway import Settings, configuration, health, listener, to_app, upstream
from support.servers import mirror
from support.target import Site, Target, attacked

PACK = "tls abuse"
NAME = "a.example"


@dataclass(frozen=True)
class Claim:
    """A certificate for a server that is asked for as `asked`."""

    names: tuple[str, ...] = (NAME,)
    common_name: str = ""
    client: bool = False
    valid_for: timedelta = timedelta(days=1)
    stranger: bool = False
    asked: str = NAME


GOOD = {
    "its name": Claim(),
    "a wildcard": Claim(("*.example.test",), asked="a.example.test"),
    "in capitals": Claim(("A.EXAMPLE",)),
    "its address": Claim(("127.0.0.1",), asked="127.0.0.1"),
    "a name behind one with a NUL": Claim(("a.example\0.evil.test", NAME)),
}
BAD = {
    "a NUL behind": Claim(("a.example\0.evil.test",)),
    "a NUL in front": Claim(("\0a.example",)),
    "a NUL at the end": Claim(("a.example\0",)),
    "a line break": Claim(("a.example\n",)),
    "a space": Claim(("a.example ",)),
    "another name": Claim(("b.example",)),
    "a part": Claim(("a.exampl",)),
    "more": Claim(("a.example.evil.test",)),
    "a name below": Claim(("b.a.example",)),
    "a name above": Claim(("example",)),
    "a common name alone": Claim((), NAME),
    "a common name beside another": Claim(("b.example",), NAME),
    "a common name with a NUL": Claim(("b.example",), "a.example\0.evil.test"),
    "a wildcard for all": Claim(("*",)),
    "a wildcard for two labels": Claim(("*.test",), asked="a.b.test"),
    "a wildcard for no label": Claim(("*.a.example",)),
    "a wildcard within": Claim(("a*.example.test",), asked="ab.example.test"),
    "two wildcards": Claim(("*.*.test",), asked="a.b.test"),
    "a wildcard behind": Claim(("a.*",)),
    "an address as a name": Claim(("127.0.0.1.",), asked="127.0.0.1"),
    "another address": Claim(("127.0.0.2",), asked="127.0.0.1"),
    "a wildcard for an address": Claim(("*.0.0.1",), asked="127.0.0.1"),
    "a client's": Claim(client=True),
    "an old one": Claim(valid_for=timedelta(minutes=-5)),
    "somebody else's": Claim(stranger=True),
    "no names": Claim(()),
}
UPSTREAMS = {**GOOD, **BAD}

CLIENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "a NUL in a name": (("root\0.evil.test",), "device"),
    "a comma in a name": (("a.test,DNS:root",), "device"),
    "a line break in a name": (("a.test\r\nX-Admin: 1",), "device"),
    "a space in a name": (("a.test DNS:root",), "device"),
    "a percent sign in a name": (("a%2Ctest",), "device"),
    "a NUL in the common name": (("a.test",), "root\0evil"),
    "a comma in the common name": (("a.test",), "device,CN=root"),
    "a line break in the common name": (("a.test",), "device\r\nX-Admin: 1"),
    "letters beyond ASCII": (("a.test",), "Gerät\N{PILE OF POO}"),
}


def names(claims: dict[str, Any]) -> dict[str, str]:
    """A name for files and routes, by that of the case."""
    return {name: f"c{number}" for number, name in enumerate(claims)}


def serving(site: Site, strangers: Authority, file: str, claim: Claim) -> ssl.SSLContext:
    pair = (strangers if claim.stranger else site.authority).issue(
        file, claim.names, common_name=claim.common_name, client=claim.client, valid_for=claim.valid_for
    )
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(pair.certificate, pair.key)
    return made


def settings(site: Site) -> Settings:
    ca = str(site.authority.certificate)
    strangers = Authority(site.folder / "strangers", "Stranger CA")
    routes, upstreams = [health()], [upstream("app", site.serve(mirror).endpoint)]
    for name, file in names(UPSTREAMS).items():
        claim = UPSTREAMS[name]
        server = site.serve(mirror, tls=serving(site, strangers, file, claim))
        upstreams.append(upstream(file, server.endpoint, tls={"server_name": claim.asked, "ca": ca}))
        routes.append({"match": {"path": f"/{file}"}, "upstream": file})
    pair = site.authority.issue("edge", ("localhost",))
    asks = {"client_auth": "required", "client_ca": ca}
    return configuration(
        [
            listener(pair, routes=[*routes, to_app()]),
            listener(pair, name="identified", routes=[health(), to_app()], tls=asks),
        ],
        *upstreams,
    )


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked(settings) as target:
        yield target


def ask(target: Target, name: str) -> int:
    with Http1.open(target.addresses["edge"], target.ca) as client:
        return client.request(f"/{names(UPSTREAMS)[name]}").status


@pytest.mark.parametrize("name", GOOD)
def test_an_upstream_as_it_should_be(target: Target, name: str) -> None:
    with target.watched():
        assert ask(target, name) == 200


@pytest.mark.parametrize("name", BAD)
def test_an_upstream_that_poses(target: Target, name: str) -> None:
    upstream = names(UPSTREAMS)[name]
    failed = {"upstream": upstream, "reason": "tls_failed"}
    with target.watched():
        assert ask(target, name) == 502
        assert target.gateway.metric("mitu_upstream_connect_errors_total", **failed) >= 1


def identity(target: Target, file: str, **claims: Any) -> Pair:
    return target.authority.issue(file, client=True, **claims)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_whose_names_would_break_out(target: Target, name: str) -> None:
    """What the upstream reads is one value each, and says what the certificate does."""
    alternatives, common = CLIENTS[name]
    device = identity(target, f"device-{names(CLIENTS)[name]}", names=alternatives, common_name=common)
    with target.watched():
        tls = context(target.ca, identity=device)
        with connect(target.addresses["identified"], tls) as stream:
            headers = dict(json.loads(Http1(stream).request("/").body)["headers"])
        assert "x-admin" not in {header.lower() for header in headers}
        assert headers["x-client-verified"] == "SUCCESS"
        assert [unquote(one) for one in headers["x-client-cert-san"].split(",")] == [f"DNS:{alternatives[0]}"]
        subject = headers["x-client-cert-subject"]
        assert subject.isascii()
        assert subject.isprintable()
        # RFC 4514 escapes what is no separator.
        assert len(re.findall(r"(?<!\\),", unquote(subject))) == 1, "of organisation and common name"


ALERTS = {
    "a server's": ("unsupported certificate", "bad certificate"),
    "an old one": ("certificate expired",),
    "somebody else's": ("unknown ca",),
    "of a namesake": ("unknown ca", "decrypt error", "bad certificate"),
    "none": ("certificate required",),
}


@pytest.mark.parametrize("name", ALERTS)
def test_a_client_that_poses(target: Target, name: str, tmp_path: Path) -> None:
    match name:
        case "a server's":
            device: Pair | None = target.authority.issue("posing", ("device.test",))
        case "an old one":
            device = identity(target, "old", valid_for=timedelta(minutes=-5))
        case "somebody else's":
            device = Authority(tmp_path, "Stranger CA").issue("stranger", client=True)
        case "of a namesake":
            device = Authority(tmp_path).issue("namesake", client=True)
        case _:
            device = None
    with target.watched():
        alert = until_alert(target.addresses["identified"], context(target.ca, identity=device))
    assert alert in ALERTS[name]
