"""Certificate files that change under a running gateway: good ones are served, bad ones never."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import connect, context
from support.gateway import Gateway, configuration, health, listener
from support.net import eventually

from .conftest import EDGE_NAMES, Start


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    """A pair of its own, for the test to spoil."""
    return place(authority.issue("first", EDGE_NAMES), tmp_path)


@pytest.fixture
def running(gateway: Start, pair: Pair) -> Gateway:
    return gateway(configuration([listener(pair, routes=[health()])]))


def place(new: Pair, folder: Path) -> Pair:
    """Copy `new` over the files in use, key first, as careless scripts do: in place, one after the other."""
    pair = Pair(folder / "edge.crt", folder / "edge.key")
    shutil.copyfile(new.key, pair.key)
    shutil.copyfile(new.certificate, pair.certificate)
    return pair


def served(gateway: Gateway, authority: Authority) -> bytes:
    with connect(gateway.address(), context(authority.certificate)) as stream:
        certificate = stream.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def problem(gateway: Gateway) -> str:
    """What `status` says is wrong with the configuration on disk; empty when nothing is."""
    return str(gateway.status()["reloads"]["last_error"] or "")


def test_a_renewed_pair_is_served(running: Gateway, authority: Authority, pair: Pair) -> None:
    before = served(running, authority)
    assert before == der(pair)
    new = authority.issue("second", EDGE_NAMES, key="rsa")
    place(new, pair.certificate.parent)
    assert eventually(lambda: served(running, authority) == der(new))
    assert eventually(lambda: problem(running) == "")


def test_a_pair_behind_a_swapped_link_is_served(gateway: Start, authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: a link to a folder, replaced whole."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        place(authority.issue(name, EDGE_NAMES), folder)
    link = tmp_path / "current"
    link.symlink_to("one")
    pair = Pair(link / "edge.crt", link / "edge.key")
    running = gateway(configuration([listener(pair, routes=[health()])]))
    first = der(pair)
    assert served(running, authority) == first
    aside = tmp_path / "aside"
    aside.symlink_to("two")
    aside.replace(link)
    assert eventually(lambda: served(running, authority) != first)
    assert served(running, authority) == der(pair)


def half_written(pair: Pair, authority: Authority) -> None:
    text = pair.certificate.read_bytes()
    pair.certificate.write_bytes(text[: len(text) // 2])


def empty(pair: Pair, authority: Authority) -> None:
    pair.certificate.write_bytes(b"")


def removed(pair: Pair, authority: Authority) -> None:
    pair.key.unlink()


def mismatched(pair: Pair, authority: Authority) -> None:
    shutil.copyfile(authority.issue("unrelated", EDGE_NAMES).key, pair.key)


def unreadable(pair: Pair, authority: Authority) -> None:
    pair.key.write_bytes(os.urandom(300))


@pytest.mark.parametrize("spoil", [half_written, empty, removed, mismatched, unreadable])
def test_a_bad_pair_leaves_the_last_good_one(
    running: Gateway, authority: Authority, pair: Pair, spoil: object
) -> None:
    good = der(pair)
    assert callable(spoil)
    spoil(pair, authority)
    told = eventually(lambda: problem(running))
    assert "edge." in told, told
    assert served(running, authority) == good
    # Asked for explicitly, the reload fails and says why; the connection above was served all the same.
    code, text = running.reload()
    assert code != 0
    assert "edge." in text, text
    assert served(running, authority) == good
    # And it heals by itself once the files are whole again.
    new = authority.issue("healed", EDGE_NAMES)
    place(new, pair.certificate.parent)
    assert eventually(lambda: served(running, authority) == der(new))
    assert eventually(lambda: problem(running) == "")
    assert "PRIVATE KEY" not in running.program.log
