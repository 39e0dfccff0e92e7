"""What `mitu dev --to` takes, and the configuration that comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import mitu
from mitu.dev import WantedError
from mitu.dev.authority import Authority
from mitu.dev.config import Target, configuration, target


@pytest.mark.parametrize(
    ("given", "address", "tls"),
    [
        ("3000", "localhost:3000", False),
        (":3000", "localhost:3000", False),
        ("127.0.0.1:3000", "127.0.0.1:3000", False),
        ("[::1]:3000", "[::1]:3000", False),
        ("http://localhost:5173/", "localhost:5173", False),
        ("HTTP://app", "app:80", False),
        ("https://app.internal", "app.internal:443", True),
        ("https://127.0.0.1:8444", "127.0.0.1:8444", True),
        ("unix:/run/app.sock", "unix:/run/app.sock", False),
    ],
)
def test_targets(given: str, address: str, tls: bool) -> None:
    assert target(given) == Target(address, tls)
    assert target(target(given).url) == target(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "not an address"),
        ("app", "not an address"),
        ("app:0", "not an address"),
        ("app:66000", "not an address"),
        ("a b:80", "not an address"),
        ("ftp://app:21", "not HTTP"),
        ("http://app:3000/api", "give the address alone: --to app:3000"),
        ("http://user@app:3000", "not an address"),
        ("unix:app.sock", "not an address"),
    ],
)
def test_what_is_no_target(given: str, told: str) -> None:
    with pytest.raises(WantedError, match=told):
        target(given)


@pytest.mark.parametrize("given", [None, "3000", "https://localhost:3000", "https://app.internal", "unix:/run/a.sock"])
def test_the_configuration_is_in_order(tmp_path: Path, given: str | None) -> None:
    pair = Authority.open(tmp_path).server()
    to = None if given is None else target(given)
    report = mitu.check(mitu.parse_config(configuration(pair, "127.0.0.1:0", to, access_log=True)))
    assert (report.errors, [one.code for one in report.warnings]) == (
        (),
        ["W005"] if given == "https://localhost:3000" else [],
    )


def test_only_this_machine_is_trusted_unseen() -> None:
    assert target("https://app.localhost:1").as_upstream()["tls"] == {"verify": False}
    assert target("https://[::1]:1").as_upstream()["tls"] == {"verify": False}
    assert target("https://10.0.0.1:1").as_upstream()["tls"] is True
