"""Which certificates each server name gets."""

from __future__ import annotations

import pytest

from mitu.config.certificates import covered
from mitu.config.sites import Candidate, Site, dear_certificates, default_site, derive_sites


def test_names_that_share_certificates_share_a_site() -> None:
    sites = derive_sites(
        [Candidate("ec", "ecdsa-p256", ("a.test", "b.test")), Candidate("rsa", "rsa", ("a.test", "b.test"))]
    )
    assert sites == (Site(("a.test", "b.test"), ("ec", "rsa")),)


def test_a_wildcard_fills_in_for_missing_kinds_of_keys_only() -> None:
    sites = derive_sites(
        [
            Candidate("wild-ec", "ecdsa-p256", ("*.a.test",)),
            Candidate("wild-rsa", "rsa", ("*.a.test",)),
            Candidate("exact", "ecdsa-p256", ("www.a.test", "a.test")),
        ]
    )
    assert sites == (
        Site(("*.a.test",), ("wild-ec", "wild-rsa")),
        Site(("www.a.test",), ("exact", "wild-rsa")),
        Site(("a.test",), ("exact",)),
    )


def test_the_first_site_is_the_first_certificates() -> None:
    sites = derive_sites([Candidate("one", "rsa", ("z.test",)), Candidate("two", "rsa", ("a.test",))])
    assert sites[0] == Site(("z.test",), ("one",))


def test_no_name_stands_in_two_sites() -> None:
    sites = derive_sites(
        [Candidate("one", "rsa", ("a.test", "b.test")), Candidate("two", "rsa", ("b.test", "c.test"))]
    )
    assert sites == (Site(("a.test", "b.test"), ("one",)), Site(("c.test",), ("two",)))


def test_names_with_settings_have_sites_of_their_own() -> None:
    certificates = [Candidate("one", "rsa", ("a.test", "*.b.test")), Candidate("two", "rsa", ("x.c.test", "y.c.test"))]
    sites = derive_sites(certificates, [("www.b.test", "unknown.test"), ("*.c.test",), ("y.c.test", "a.test")])
    assert sites == (
        Site(("a.test",), ("one",), 2),
        Site(("*.b.test",), ("one",)),
        Site(("x.c.test",), ("two",), 1),
        Site(("y.c.test",), ("two",), 2),
        Site(("www.b.test",), ("one",), 0),
    )


def test_unknown_names_get_the_first_certificate_and_nobodys_settings() -> None:
    plain = (Site(("a.test",), ("one",)), Site(("b.test",), ("two",)))
    assert default_site(plain) == (plain, 0)
    beside = (Site(("a.test",), ("one",), 0), Site(("*.a.test",), ("one",)))
    assert default_site(beside) == (beside, 1)
    settled = (Site(("a.test",), ("one",), 0), Site(("b.test",), ("two",)))
    assert default_site(settled) == ((*settled, Site((), ("one",))), 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.test", True),
        ("x.b.test", True),
        ("b.test", False),
        ("y.x.b.test", False),
        ("*.b.test", True),
        ("10.0.0.1", True),
    ],
)
def test_covered(name: str, expected: bool) -> None:
    assert covered(name, ("a.test", "*.b.test", "10.0.0.1")) is expected


@pytest.mark.parametrize(
    ("kinds", "dear"),
    [
        (("rsa",), {"rsa"}),
        (("ecdsa-p384",), {"ecdsa-p384"}),
        (("rsa", "ecdsa-p384"), {"ecdsa-p384"}),
        (("rsa", "ecdsa-p256"), set()),
        (("ecdsa-p384", "ed25519"), set()),
        (("ecdsa-p521", "rsa"), set()),
    ],
)
def test_a_dear_certificate_is_told_where_it_is_the_cheapest(kinds: tuple[str, ...], dear: set[str]) -> None:
    candidates = [Candidate(kind, kind, ("a.test",)) for kind in kinds]
    assert set(dear_certificates(derive_sites(candidates), candidates)) == dear


def test_a_dear_certificate_is_told_for_a_part_of_its_names() -> None:
    candidates = [Candidate("wild", "rsa", ("*.a.test",)), Candidate("exact", "ecdsa-p256", ("www.a.test",))]
    assert dear_certificates(derive_sites(candidates), candidates) == {"wild": "rsa"}
