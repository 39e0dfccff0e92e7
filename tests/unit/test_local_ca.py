"""The local authority of `mitu dev`: made once, kept to its owner, renewed, and no good for anybody else's names."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from mitu.dev import DevError, WantedError, authority
from mitu.dev.authority import Authority, Pair, default_folder
from mitu.dev.trust import by_this_system


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dev"


def verify(ca: Path, leaf: Path, *flags: str) -> str:
    """What `openssl verify` says of `leaf`, `OK` at the end when it is good."""
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca), *flags, str(leaf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestTheAuthority:
    def test_it_is_made_once(self, folder: Path) -> None:
        first = Authority.open(folder)
        assert Authority.open(folder).fingerprint == first.fingerprint
        assert first.fingerprint[:8] in first.name
        root = x509.load_pem_x509_certificate(first.certificate.read_bytes())
        assert root.subject == root.issuer
        assert timedelta(days=3649) < root.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=3650)
        key = root.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        for extension in (x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints):
            assert root.extensions.get_extension_for_class(extension).critical, extension

    def test_the_keys_are_their_owners(self, folder: Path) -> None:
        umask = os.umask(0)
        try:
            pair = Authority.open(folder).server()
        finally:
            os.umask(umask)
        assert mode(folder) == 0o700
        assert [mode(key) for key in (folder / "ca.key", pair.key)] == [0o600, 0o600]

    def test_processes_that_begin_together_make_one(self, folder: Path) -> None:
        program = (
            "import sys, pathlib; from mitu.dev.authority import Authority; "
            "made = Authority.open(pathlib.Path(sys.argv[1])); "
            "print(made.fingerprint, made.server(['app.test']).leaf.serial_number)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True, env=environment
            )
            for _ in range(4)
        ]
        told = {process.communicate(timeout=60)[0] for process in running}
        assert [process.returncode for process in running] == [0, 0, 0, 0]
        assert len(told) == 1

    def test_a_damaged_one_is_not_used(self, folder: Path) -> None:
        made = Authority.open(folder)
        (folder / "ca.key").write_bytes(made.server().key.read_bytes())
        with pytest.raises(DevError, match=r"damaged \(ca.key is not the key of ca.crt\); remove that folder"):
            Authority.open(folder)
        (folder / "ca.key").unlink()
        with pytest.raises(DevError, match=r"damaged \(ca.key is missing\)"):
            Authority.open(folder)
        assert not (folder / "ca.key").exists()

    def test_one_near_its_end_is_not_used(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(authority, "AUTHORITY_LIFE", timedelta(days=396))
        with pytest.raises(DevError, match="ends on 20"):
            Authority.open(folder)

    def test_where_it_cannot_be_kept(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(DevError, match="set XDG_DATA_HOME"):
            Authority.open(tmp_path / "file" / "dev")

    def test_where_it_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", "/data")
        assert default_folder() == Path("/data/mitu/dev")
        monkeypatch.delenv("XDG_DATA_HOME")
        monkeypatch.setenv("HOME", "/home/ann")
        assert default_folder() == Path("/home/ann/.local/share/mitu/dev")


class TestCertificates:
    def test_clients_accept_them(self, folder: Path) -> None:
        made = Authority.open(folder)
        pair = made.server(["App.Localhost", "192.168.1.5", "[FD00::1]", "*.shop.test"])
        for flag, good in (("-verify_hostname", "x.shop.test app.localhost localhost"), ("-verify_ip", "::1 fd00::1")):
            for name in good.split():
                assert verify(made.certificate, pair.certificate, flag, name).endswith("OK"), name
        assert "mismatch" in verify(made.certificate, pair.certificate, "-verify_hostname", "other.test")
        device = made.client("device-17", ["spiffe://fleet.test/device/17"])
        assert verify(made.certificate, device.certificate, "-purpose", "sslclient").endswith("OK")
        assert "purpose" in verify(made.certificate, device.certificate, "-purpose", "sslserver")

    def test_they_are_kept_for_the_same_names(self, folder: Path) -> None:
        made = Authority.open(folder)
        plain, named = made.server(), made.server(["app.test"])
        assert plain.certificate.name == "localhost.crt"
        assert plain != named
        assert Authority.open(folder).server() == plain
        serial = named.leaf.serial_number
        assert made.server(["APP.test", "localhost", "app.test"]).leaf.serial_number == serial
        assert made.server(["app.test", "b.test"]).leaf.serial_number != serial
        assert named.leaf.serial_number == serial

    def test_they_are_renewed_in_time(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Authority.open(folder)
        lives = {}
        for days in (29, 31):
            with monkeypatch.context() as patch:
                patch.setattr(authority, "LEAF_LIFE", timedelta(days=days))
                lives[days] = made.server(file=f"for-{days}").leaf.serial_number
        assert made.server(file="for-29").leaf.serial_number != lives[29]
        assert made.server(file="for-31").leaf.serial_number == lives[31]

    @pytest.mark.parametrize("damage", ["cut", "gone", "another key", "another authority"])
    def test_damaged_ones_are_made_anew(self, folder: Path, damage: str) -> None:
        made = Authority.open(folder)
        pair = made.server()
        before = pair.leaf.serial_number
        other = Authority.open(folder.with_name("other")).server()
        if damage == "cut":
            pair.certificate.write_bytes(pair.certificate.read_bytes()[:200])
        elif damage == "gone":
            pair.key.unlink()
        else:
            pair.key.write_bytes(other.key.read_bytes())
            if damage == "another authority":
                pair.certificate.write_bytes(other.certificate.read_bytes())
        assert made.server().leaf.serial_number not in (before, other.leaf.serial_number)
        assert verify(made.certificate, pair.certificate).endswith("OK")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.certificate, pair.key)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("example.com", "may be somebody's public name"),
            ("localhost.example.com", "may be somebody's public name"),
            ("mybox", "did you mean 'mybox.localhost'"),
            ("8.8.8.8", "not a private address"),
            ("2001:4860:4860::8888", "not a private address"),
            ("*.localhost", r"as in '\*.app.localhost'"),
            ("a.*.test", "not a host name"),
            ("https://app.localhost", "leave scheme, port and path out"),
            ("app.localhost:8443", "leave scheme, port and path out"),
            ("", "not a host name"),
            ("app .test", "not a host name"),
        ],
    )
    def test_names_that_are_not_ours(self, folder: Path, name: str, told: str) -> None:
        with pytest.raises(WantedError, match=told):
            Authority.open(folder).server([name])


@pytest.mark.parametrize(
    ("name", "good"), [("bank.example", False), ("localhost.bank.example", False), ("bank.test", True)]
)
def test_a_stolen_key_is_no_good_for_public_names(folder: Path, name: str, good: bool) -> None:
    made = Authority.open(folder)
    root = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    stolen = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(stolen, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([authority._alternative(name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(stolen.public_key()), critical=False)
        .sign(stolen, hashes.SHA256())
    )
    leaf = folder / "forged.crt"
    leaf.write_bytes(forged.public_bytes(Encoding.PEM))
    assert ("permitted subtree violation" in verify(made.certificate, leaf)) != good
    assert verify(made.certificate, leaf).endswith("OK") == good


def test_whether_this_system_trusts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Authority.open(folder)
    assert not by_this_system(made.server())
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    assert by_this_system(made.server())


def test_a_pair_that_does_not_belong_together(folder: Path) -> None:
    made = Authority.open(folder)
    with pytest.raises(ValueError, match="is not the key of"):
        Pair(made.certificate, made.server().key).load()
