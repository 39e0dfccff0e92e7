"""A certificate authority for tests: leaves of every key type, written as PEM files."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KeyType = Literal["p256", "p384", "rsa"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    """A chain and its key on disk."""

    certificate: Path
    key: Path

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.certificate.read_bytes())[0]

    @property
    def serial(self) -> int:
        return self.leaf.serial_number

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf's DER, lower-case hex."""
        return self.leaf.fingerprint(hashes.SHA256()).hex()

    @property
    def spki(self) -> str:
        """Base64 of the SHA-256 of the public key, as `--ignore-certificate-errors-spki-list` wants it."""
        info = self.leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(hashlib.sha256(info).digest()).decode()

    def configured(self, **more: object) -> dict[str, object]:
        """As an item of `tls.certificates`."""
        return {"certificate": str(self.certificate), "key": str(self.key), **more}


def make_key(kind: KeyType) -> PrivateKey:
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1() if kind == "p256" else ec.SECP384R1())


def _alternative(name: str) -> x509.GeneralName:
    if name.startswith("spiffe://"):
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Authority:
    """A root that signs leaves into `folder`."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self._root = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(self._root.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file: str,
        names: tuple[str, ...] = (),
        *,
        key: KeyType = "p256",
        common_name: str = "",
        client: bool = False,
        valid_for: timedelta = timedelta(days=60),
    ) -> Pair:
        """Sign a leaf for `names` (DNS names, IP addresses, SPIFFE IDs); writes `file`.crt and `file`.key.

        It began to be valid an hour ago; a `valid_for` of zero or less makes one that has expired.
        """
        private = make_key(key)
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Fleet")]
        if common_name:
            subject.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        now = datetime.now(UTC)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._name)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + valid_for)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(authority, critical=False)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        leaf = builder.sign(self._key, hashes.SHA256())
        pair = Pair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        pem = serialization.Encoding.PEM
        # Written aside and renamed, so that whoever watches the files never sees half of one.
        for path, content in (
            (pair.key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())),
            (pair.certificate, leaf.public_bytes(pem)),
        ):
            aside = path.with_suffix(path.suffix + ".new")
            aside.write_bytes(content)
            aside.chmod(0o600)
            aside.replace(path)
        return pair


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
