"""Self-signed certificates for the servers, one for each key type."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

KeyType = Literal["p256", "p384", "rsa2048"]


@dataclass(frozen=True)
class Certificate:
    """PEM files; `bundle` is chain and key in one, as HAProxy wants them."""

    chain: Path
    key: Path
    bundle: Path


def make(folder: Path, key_type: KeyType) -> Certificate:
    """A fresh certificate for `localhost`, written to `folder`."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if key_type == "rsa2048":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        key = ec.generate_private_key(ec.SECP256R1() if key_type == "p256" else ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA384() if key_type == "p384" else hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = Certificate(folder / f"{key_type}.crt", folder / f"{key_type}.key", folder / f"{key_type}.pem")
    for path, content in ((made.chain, chain), (made.key, private), (made.bundle, chain + private)):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return made
