"""Which Host headers name the loopback interface."""

from __future__ import annotations

import pytest

from mitu.admin.guard import is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1", "127.0.0.1:9901", "127.255.0.3", "[::1]", "[::1]:9901", "::1"]
)
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":80",
        "localhost.",
        "LOCALHOST.attacker.test",
        "attacker.test",
        "127.0.0.1.attacker.test",
        "127.0.0.1@attacker.test",
        "0.0.0.0",  # noqa: S104 - to be refused
        "0",
        "127.1",
        "2130706433",
        "[::]",
        "[::ffff:192.0.2.1]",
        "192.0.2.1",
        "127.0.0.1, attacker.test",
        "127.0.0.1:80:80",
    ],
)
def test_anywhere_else(host: str) -> None:
    assert not is_loopback(host)
