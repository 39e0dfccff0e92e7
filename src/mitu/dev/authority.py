"""A certificate authority of this machine's own: made once, kept in one folder, its key for its owner only.

authority = Authority.open(default_folder())
pair = authority.server(["app.localhost"])     # made, kept, and made anew before it expires
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from mitu.dev import DevError, names

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=397)
"""Some clients refuse longer ones, whoever signed them."""
RENEW_BEFORE = timedelta(days=30)

_SKEW = timedelta(hours=1)
_COMMON_NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key on disk."""

    certificate: Path
    key: Path

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    def load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Both, if they belong together; else ValueError, or OSError when they cannot be read."""
        leaf, key = self.leaf, load_pem_private_key(self.key.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != leaf.public_key():
            raise ValueError(f"{self.key.name} is not the key of {self.certificate.name}")
        return leaf, key

    def write(self, leaf: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(self.key, private, 0o600)
        _write(self.certificate, leaf.public_bytes(Encoding.PEM), 0o644)


def default_folder() -> Path:
    """`mitu/dev` in `$XDG_DATA_HOME`, or in `~/.local/share`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "mitu" / "dev"


class Authority:
    """The authority in `folder`. `certificate` is what clients have to trust."""

    def __init__(self, folder: Path, root: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._root = root
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority in `folder`, made now where there is none. DevError when it cannot be made or used."""
        pair = Pair(folder / "ca.crt", folder / "ca.key")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(folder):
                missing = [file.name for file in (pair.certificate, pair.key) if not file.exists()]
                if len(missing) == 1:
                    # A new one would silently take the place of the one that browsers trust.
                    raise ValueError(f"{missing[0]} is missing")
                if missing:
                    pair.write(*_new_root())
                root, key = pair.load()
        except OSError as error:
            told = (error.strerror or str(error)).lower()
            raise DevError(f"no local authority can be kept in {folder}: {told}; set XDG_DATA_HOME") from error
        except ValueError as error:
            raise DevError(f"the authority in {folder} is damaged ({error}); {_ANEW}") from error
        if root.not_valid_after_utc < datetime.now(UTC) + LEAF_LIFE:
            raise DevError(f"the authority in {folder} ends on {root.not_valid_after_utc:%Y-%m-%d}; {_ANEW}")
        return cls(folder, root, key)

    @property
    def name(self) -> str:
        """As stores list it: the common name, and the beginning of the fingerprint."""
        common = self._root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return f"{common!s} {self.fingerprint[:8]}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, lower-case hex."""
        return self._root.fingerprint(hashes.SHA256()).hex()

    def server(self, extra: Iterable[str] = (), *, file: str | None = None) -> Pair:
        """A certificate for localhost, the loopback addresses and `extra` names: the one on disk until it is near its
        end. `file`: what it is called; otherwise its names tell. WantedError when a name may be somebody else's.
        """
        wanted = names.complete(extra)
        return self._keep(file or _file_name(wanted), wanted, "localhost", ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, identity: str, extra: Iterable[str] = (), *, file: str | None = None) -> Pair:
        """A certificate for the client called `identity`, with `extra` DNS names, addresses or URIs."""
        return self._keep(file or identity, tuple(extra), identity, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _keep(self, file: str, wanted: tuple[str, ...], common_name: str, usage: ObjectIdentifier) -> Pair:
        pair = Pair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        with _locked(self.folder):
            if not self._is_current(pair, wanted):
                key = ec.generate_private_key(ec.SECP256R1())
                pair.write(self._sign(key.public_key(), wanted, common_name, usage), key)
        return pair

    def _is_current(self, pair: Pair, wanted: tuple[str, ...]) -> bool:
        try:
            leaf, _ = pair.load()
            leaf.verify_directly_issued_by(self._root)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        return leaf.not_valid_after_utc - datetime.now(UTC) > RENEW_BEFORE and _alternatives(leaf) == [
            _alternative(name) for name in wanted
        ]

    def _sign(
        self, key: ec.EllipticCurvePublicKey, wanted: tuple[str, ...], common_name: str, usage: ObjectIdentifier
    ) -> x509.Certificate:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(_subject(common_name), self._root.subject, key, LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer, critical=False)
        )
        if wanted:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in wanted])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())


_ANEW = "remove that folder to begin anew, after 'mitu dev --untrust' if it was trusted"


def _new_root() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"mitu dev CA of {_user()}@{socket.gethostname()}")
    root = (
        _builder(subject, subject, key.public_key(), AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(names.constraints(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return root, key


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # A container's user need not have a name.


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life - _SKEW)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_COMMON_NAME_MAX])])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _alternatives(leaf: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _file_name(wanted: tuple[str, ...]) -> str:
    """`localhost`, or for more names the first of those with a digest of all: one file for each set of names."""
    extra = wanted[len(names.ALWAYS) :]
    if not extra:
        return "localhost"
    readable = extra[0].replace("*", "_").replace(":", "_")[:100]
    return f"{readable}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others in between."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:  # noqa: PTH123
        stream.write(content)
    aside.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes things in `folder`; the lock ends with its process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
