"""Certificates for the configurations under test, made afresh, with every fault that `check` must find."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)
"""The day on which the tests' certificates are looked at."""

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write the golden files anew from what is printed now")


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update", default=False))


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def issue(
    key: Key,
    *names: str,
    issuer: tuple[x509.Certificate, Key] | None = None,
    start: timedelta = timedelta(days=-3800),
    end: timedelta = timedelta(days=60),
    authority: bool = False,
    common_name: str = "edge",
) -> x509.Certificate:
    """A certificate for `names`, valid today and until after NOW, self-signed without an `issuer`."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + start)
        .not_valid_after(NOW + end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
        )
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem(*parts: x509.Certificate | Key) -> bytes:
    return b"".join(
        part.public_bytes(Encoding.PEM)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for part in parts
    )


def sha1_signed(key: Key, template: x509.Certificate) -> bytes:
    """`template` as if signed with SHA-1. Today's libraries sign nothing with it, so the algorithm is patched in."""
    ecdsa_sha256, ecdsa_sha1 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401")
    inner = template.tbs_certificate_bytes
    patched = _shrink(inner, ecdsa_sha256, ecdsa_sha1)
    signature = key.sign(patched, ec.ECDSA(hashes.SHA256())) if isinstance(key, ec.EllipticCurvePrivateKey) else b""
    algorithm = _der(0x30, ecdsa_sha1)
    whole = _der(0x30, patched + algorithm + _der(0x03, b"\0" + signature))
    text = base64.encodebytes(whole)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


def _shrink(sequence: bytes, old: bytes, new: bytes) -> bytes:
    """A DER sequence in which one AlgorithmIdentifier is replaced by a shorter one."""
    header = 4 if sequence[1] == 0x82 else 3 if sequence[1] == 0x81 else 2
    return _der(0x30, sequence[header:].replace(_der(0x30, old), _der(0x30, new)))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + content


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates, sound and not."""
    folder = tmp_path_factory.mktemp("pki")
    root_key, middle_key, key, other = ec_key(), ec_key(), ec_key(), ec_key()
    root = issue(root_key, authority=True, common_name="root")
    middle = issue(middle_key, authority=True, common_name="middle", issuer=(root, root_key))
    edge = issue(key, "edge.test", "*.edge.test", "127.0.0.1", issuer=(middle, middle_key))
    by_root = (root, root_key)
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that it is weak is to be found
    odd, twin, p384 = ec_key(ec.SECP256K1()), ec_key(), ec_key(ec.SECP384R1())
    rsa_key = rsa.generate_private_key(65537, 2048)

    def put(name: str, content: bytes, mode: int = 0o600) -> None:
        (folder / name).write_bytes(content)
        (folder / name).chmod(mode)

    def both(name: str, certificate: x509.Certificate, its_key: Key) -> None:
        put(f"{name}.crt", pem(certificate))
        put(f"{name}.key", pem(its_key))

    put("ca.crt", pem(root))
    put("edge.crt", pem(edge, middle))
    put("edge.key", pem(key))
    put("public.key", pem(key), 0o644)
    put("edge.der", edge.public_bytes(Encoding.DER))
    put("empty.key", b"")
    put("other.key", pem(other))
    put("broken.crt", pem(edge)[:200] + b"\n-----END CERTIFICATE-----\n")
    put("broken.key", pem(key)[:60] + b"\n-----END PRIVATE KEY-----\n")
    put("disordered.crt", pem(edge, root, middle))
    put("leaf-last.crt", pem(middle, edge))
    secret = BestAvailableEncryption(b"passphrase")
    put("encrypted.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    both("expired", issue(other, "old.test", issuer=by_root, end=timedelta(days=-1)), other)
    both("future", issue(other, "new.test", issuer=by_root, start=timedelta(days=1)), other)
    both("soon", issue(other, "soon.test", issuer=by_root, end=timedelta(days=3)), other)
    both("weak", issue(weak, "weak.test", issuer=by_root), weak)
    both("odd", issue(odd, "odd.test", issuer=by_root), odd)
    both("nameless", issue(other, issuer=by_root), other)
    both("twin", issue(twin, "edge.test", issuer=by_root), twin)
    both("p384", issue(p384, "p384.test", issuer=by_root), p384)
    both("rsa", issue(rsa_key, "*.edge.test", issuer=by_root), rsa_key)
    put("sha1.crt", sha1_signed(root_key, issue(other, "sha1.test", issuer=by_root)))
    put("sha1.key", pem(other))
    put("old-ca.crt", pem(issue(root_key, authority=True, common_name="old root", end=timedelta(days=-1))))
    put("token", b"0123456789abcdef0123456789abcdef\n")
    put("ticket", b"\xff" + bytes(range(32)) + b"\n")
    put("old-ticket", b"0123456789abcdef0123456789abcdef\n")
    put("shared-ticket", b"0123456789abcdef0123456789abcdef\n", 0o644)
    put("zero-ticket", bytes(64))
    return folder
