"""Certificate and key files: read once, checked for everything that would fail a handshake later."""

from __future__ import annotations

import ipaddress
import re
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mitu.config.diagnostic import Loc
from mitu.config.types import is_host_name
from mitu.config.validate import Findings

EXPIRY_WARNING = timedelta(days=14)
MAX_PEM_BYTES = 4 << 20
MIN_RSA_BITS = 2048

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384", "secp521r1": "ecdsa-p521"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A chain with its key, as read. `names`: lower-case names and addresses in the leaf."""

    chain: bytes
    key: bytes = field(repr=False)
    key_type: str
    names: tuple[str, ...]


@dataclass
class Inspector:
    """Reads PEM files for `findings`, each at most once, and remembers which."""

    findings: Findings
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    files: dict[Path, bytes | None] = field(default_factory=dict, repr=False)

    def read(self, path: Path, loc: Loc) -> bytes | None:
        """The file's bytes; an error and None when it cannot be read."""
        if path not in self.files:
            self.files[path] = self._read(path, loc)
        elif self.files[path] is None:
            return None
        return self.files[path]

    def _read(self, path: Path, loc: Loc) -> bytes | None:
        try:
            if not path.is_file():
                reason = "it is not a file" if path.exists() else "it does not exist"
                self.findings.add("E070", f"cannot read '{path.name}': {reason}", loc, hint=f"looked for {path}")
                return None
            with path.open("rb") as stream:
                data = stream.read(MAX_PEM_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            self.findings.add("E070", f"cannot read '{path.name}': {reason}", loc, hint=f"looked for {path}")
            return None
        if len(data) > MAX_PEM_BYTES:
            self.findings.add("E070", f"'{path.name}' is larger than {MAX_PEM_BYTES >> 20} MiB", loc)
            return None
        return data

    def pair(self, certificate: Path, key: Path, loc: Loc, *, serving: bool = True) -> Pair | None:
        """The chain and key at `loc`; None when they cannot be used. `serving`: towards clients, by server name."""
        chain = self._chain(certificate, (*loc, "certificate"))
        public = self._key(key, (*loc, "key"))
        if not chain or public is None:
            return None
        leaf = chain[0]
        if not self._same_key(leaf, public):
            hint = self._swapped(chain, public) or "make sure that both files come from the same request"
            self.findings.add("E072", f"'{key.name}' is not the key of '{certificate.name}'", (*loc, "key"), hint=hint)
            return None
        for certificate_ in chain:
            if not self._signature_is_sound(certificate_, (*loc, "certificate")):
                return None
        self._check_dates(leaf, certificate, (*loc, "certificate"))
        self._check_order(chain, (*loc, "certificate"))
        key_type = _key_type(public)
        raw, raw_key = self.files[certificate], self.files[key]
        if key_type is None or raw is None or raw_key is None:
            return None
        names = names_of(leaf)
        if serving and not names:
            self.findings.add(
                "E080",
                f"'{certificate.name}' names no server",
                (*loc, "certificate"),
                hint="clients look at the subject alternative names only (RFC 9525); issue it with them",
            )
            return None
        return Pair(raw, raw_key, key_type, names)

    def authorities(self, path: Path, loc: Loc) -> bytes | None:
        """A bundle of trusted roots."""
        chain = self._chain(path, loc)
        if not chain:
            return None
        for certificate in chain:
            if not _is_authority(certificate):
                subject = certificate.subject.rfc4514_string()
                hint = "give the certificate of the authority, not one that it issued"
                self.findings.add("E079", f"'{subject}' in '{path.name}' is no certificate authority", loc, hint=hint)
                return None
            if certificate.not_valid_after_utc <= self.now:
                expired = certificate.not_valid_after_utc.date()
                self.findings.add("W008", f"an authority in '{path.name}' expired on {expired}", loc)
        return self.files[path]

    def _chain(self, path: Path, loc: Loc) -> list[x509.Certificate]:
        data = self.read(path, loc)
        if data is None:
            return []
        blocks = _CERTIFICATE.findall(data)
        if not blocks:
            what = "a private key" if b"PRIVATE KEY-----" in data else "no PEM certificate"
            hint = "the files may be swapped" if b"PRIVATE KEY-----" in data else _der_hint(data, "x509")
            self.findings.add("E071", f"'{path.name}' holds {what}", loc, hint=hint)
            return []
        if data.count(b"-----BEGIN CERTIFICATE-----") > len(blocks):
            self.findings.add("E071", f"the last certificate in '{path.name}' is cut short", loc, hint="is it whole?")
            return []
        chain = []
        for number, block in enumerate(blocks, 1):
            try:
                certificate = x509.load_pem_x509_certificate(block)
                certificate.public_key()
                chain.append(certificate)
            except (ValueError, UnsupportedAlgorithm):
                message = f"certificate {number} in '{path.name}' cannot be read"
                self.findings.add("E071", message, loc, hint="is it whole?")
                return []
        return chain

    def _key(self, path: Path, loc: Loc) -> PublicKey | None:
        data = self.read(path, loc)
        if data is None:
            return None
        if b"ENCRYPTED" in data and b"PRIVATE KEY-----" in data:
            how = f"openssl pkey -in {path.name} -out plain.key; then chmod 600 plain.key"
            self.findings.add("E073", f"'{path.name}' is encrypted with a passphrase", loc, hint=how)
            return None
        if b"PRIVATE KEY-----" not in data:
            what = "a certificate" if _CERTIFICATE.search(data) else "no PEM private key"
            hint = "the files may be swapped" if _CERTIFICATE.search(data) else _der_hint(data, "pkey")
            self.findings.add("E071", f"'{path.name}' holds {what}", loc, hint=hint)
            return None
        try:
            public = load_pem_private_key(data, password=None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The parser's own words could quote the file.
            self.findings.add("E071", f"the private key in '{path.name}' cannot be read", loc, hint="is it whole?")
            return None
        self.check_mode(path, loc)
        return self._strong(public, path, loc)

    def _strong(self, public: object, path: Path, loc: Loc) -> PublicKey | None:
        if isinstance(public, rsa.RSAPublicKey) and public.key_size < MIN_RSA_BITS:
            hint = "make an ECDSA P-256 key, or RSA of 2048 bits"
            self.findings.add("E076", f"'{path.name}' is an RSA key of {public.key_size} bits", loc, hint=hint)
            return None
        if not isinstance(public, PublicKey) or _key_type(public) is None:
            allowed = ("ECDSA P-256, P-384, P-521", "Ed25519", "RSA from 2048 bits")
            self.findings.add("E081", f"'{path.name}' is a kind of key that TLS here cannot use", loc, allowed=allowed)
            return None
        return public

    def check_mode(self, path: Path, loc: Loc) -> None:
        """A warning when others can read what is to be secret."""
        mode = path.stat().st_mode
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            self.findings.add("W006", f"every user can read '{path.name}'", loc, hint=f"chmod 600 {path.name}")

    def _check_dates(self, leaf: x509.Certificate, path: Path, loc: Loc) -> None:
        start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if end <= self.now:
            self.findings.add("E074", f"'{path.name}' expired on {end:%Y-%m-%d %H:%M} UTC", loc, hint="renew it")
        elif start > self.now:
            hint = "check this machine's clock"
            self.findings.add("E075", f"'{path.name}' is valid from {start:%Y-%m-%d %H:%M} UTC on", loc, hint=hint)
        elif end - self.now < EXPIRY_WARNING:
            days = (end - self.now).days
            when = f"in {days} days" if days != 1 else "in 1 day"
            self.findings.add("W004", f"'{path.name}' expires {when}", loc, hint="renew it")

    def _check_order(self, chain: list[x509.Certificate], loc: Loc) -> None:
        for at, (lower, upper) in enumerate(pairwise(chain), 1):
            try:
                lower.verify_directly_issued_by(upper)
            except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                hint = "leaf first, then each one's issuer"
                self.findings.add(
                    "E078", f"certificate {at + 1} of the chain did not issue certificate {at}", loc, hint=hint
                )
                return

    def _signature_is_sound(self, certificate: x509.Certificate, loc: Loc) -> bool:
        algorithm = certificate.signature_hash_algorithm
        self_signed = certificate.issuer == certificate.subject
        if algorithm is not None and algorithm.name in ("sha1", "md5") and not self_signed:
            name = certificate.subject.rfc4514_string()
            self.findings.add(
                "E077", f"'{name}' is signed with {algorithm.name.upper()}", loc, hint="have it reissued"
            )
            return False
        return True

    def _same_key(self, certificate: x509.Certificate, public: PublicKey) -> bool:
        return _spki(certificate.public_key()) == _spki(public)

    def _swapped(self, chain: list[x509.Certificate], public: PublicKey) -> str | None:
        if any(self._same_key(one, public) for one in chain[1:]):
            return "it is the key of a later certificate in the file: put the leaf first"
        return None


def _spki(key: object) -> bytes:
    encoded = getattr(key, "public_bytes", None)
    return encoded(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) if encoded is not None else b""


def _key_type(public: PublicKey) -> str | None:
    if isinstance(public, rsa.RSAPublicKey):
        return "rsa"
    if isinstance(public, ec.EllipticCurvePublicKey):
        return _CURVES.get(public.curve.name)
    return "ed25519"


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        # Certificates of version 1 know no extensions; as roots they are still trusted.
        return certificate.version is x509.Version.v1
    except ValueError:
        return False


def _der_hint(data: bytes, tool: Literal["x509", "pkey"]) -> str | None:
    return f"it looks like DER: openssl {tool} -inform der" if data[:2] in (b"\x30\x82", b"\x30\x81") else None


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses that a certificate is good for, in its own order."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    names: dict[str, None] = {}
    for name in extension.value:
        if isinstance(name, x509.DNSName) and is_host_name(name.value.lower().removeprefix("*.")):
            names[name.value.lower()] = None
        elif isinstance(name, x509.IPAddress) and isinstance(
            name.value, ipaddress.IPv4Address | ipaddress.IPv6Address
        ):
            names[str(name.value)] = None
    return tuple(names)


def covered(name: str, names: tuple[str, ...]) -> bool:
    """Whether a certificate for `names` is good for `name` (RFC 9525 §6.3)."""
    if name in names:
        return True
    first, _, rest = name.partition(".")
    return first != "*" and bool(rest) and f"*.{rest}" in names
