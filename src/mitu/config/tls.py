"""TLS settings: of a listener, of one of its protocols, and towards an upstream."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from mitu.config.base import Model
from mitu.config.types import Bool, ConfigPath, HostPattern, IntRange, fail, one_of, shown, text_of

Version = Literal["1.2", "1.3"]
Policy = Literal["modern", "intermediate"]
ClientAuth = Literal["none", "optional", "required"]
Provider = Literal["aws-lc", "boringssl", "aws-lc-fips"]
PostQuantum = Literal["prefer", "allow", "off"]

# IANA name: OpenSSL's name. Every one is an AEAD with forward secrecy, so none is on HTTP/2's list of prohibited
# suites (RFC 9113, appendix A).
TLS13_SUITES = {
    "TLS_AES_128_GCM_SHA256": "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384": "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256": "TLS_CHACHA20_POLY1305_SHA256",
}
TLS12_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
SUITES = TLS13_SUITES | TLS12_SUITES
HYBRID = "X25519MLKEM768"
GROUPS = (HYBRID, "X25519", "secp256r1", "secp384r1")
_SUITE_ALIASES = {openssl.lower(): iana for iana, openssl in SUITES.items()}
_GROUP_ALIASES = {
    "p-256": "secp256r1",
    "prime256v1": "secp256r1",
    "p-384": "secp384r1",
    "curve25519": "X25519",
}
_WEAK = ("_CBC", "-CBC", "RC4", "3DES", "NULL", "EXPORT", "MD5", "TLS_RSA_WITH", "_SHA256_CBC")


def _version(value: object) -> object:
    # YAML reads an unquoted 1.2 as a number.
    text = {1.2: "1.2", 1.3: "1.3"}.get(value) if isinstance(value, float) else value
    if text not in ("1.2", "1.3"):
        old = str(value).lower().removeprefix("tls").strip("v ") in ("1", "1.0", "1.1")
        hint = "TLS 1.1 and older are not served (RFC 8996)" if old else None
        fail("E015", f"{shown(value)} is not a TLS version", allowed=("1.2", "1.3"), hint=hint)
    return text


def _suite(value: object) -> str:
    text = text_of(value)
    if text not in SUITES and any(mark in text.upper() for mark in _WEAK):
        hint = "without forward secrecy or authenticated encryption it is not served (RFC 9113, appendix A)"
        fail("E030", f"cipher suite {shown(text)} is not served", allowed=SUITES, hint=hint)
    return one_of(text, SUITES, "E030", "cipher suite", _SUITE_ALIASES)


def _group(value: object) -> str:
    return one_of(value, GROUPS, "E031", "key exchange group", _GROUP_ALIASES)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        fail("E023", "an empty list allows nothing", hint="leave it out for the default")
    for value in values:
        if values.count(value) > 1:
            fail("E048", f"'{value}' is listed twice")
    return values


TlsVersion = Annotated[Version, BeforeValidator(_version), WithJsonSchema({"enum": ["1.2", "1.3", 1.2, 1.3]})]
Suite = Annotated[str, BeforeValidator(_suite), WithJsonSchema({"type": "string", "enum": list(SUITES)})]
Group = Annotated[str, BeforeValidator(_group), WithJsonSchema({"type": "string", "enum": list(GROUPS)})]
Suites = Annotated[tuple[Suite, ...], AfterValidator(_distinct)]
Groups = Annotated[tuple[Group, ...], AfterValidator(_distinct)]


class Certificate(Model):
    """A certificate chain and its private key."""

    certificate: ConfigPath = Field(description="PEM file with the chain, leaf first.")
    key: ConfigPath = Field(description="PEM file with the private key (PKCS#8, PKCS#1 or SEC1), not encrypted.")
    names: tuple[HostPattern, ...] | None = Field(
        default=None, description="Server names it is served for; the names in the certificate when left out."
    )


_POST_QUANTUM = (
    "When keys are exchanged in X25519MLKEM768, which a quantum computer does not break. `prefer`: with every client"
    " that knows it, at the price of a round trip where it has not sent its key; `allow`: where it has; `off`: never."
)


class TlsSettings(Model):
    """What a listener sets for all its protocols, and a protocol may set for itself."""

    policy: Policy | None = Field(
        default=None,
        description="`modern`: TLS 1.3 only; `intermediate`: TLS 1.2 and 1.3 (Mozilla's server side TLS). A protocol's"
        " policy replaces the listener's versions, suites and groups.",
    )
    min_version: TlsVersion | None = Field(default=None, description="Oldest TLS version; the policy's when left out.")
    max_version: TlsVersion | None = Field(default=None, description="Newest TLS version; the policy's when left out.")
    cipher_suites: Suites | None = Field(
        default=None,
        description="IANA names, most preferred first; when left out, all that the versions allow, cheapest on this"
        " CPU first.",
    )
    groups: Groups | None = Field(
        default=None,
        description="Key exchange groups, most preferred first among those that the client has sent a key for; when"
        " left out, all of them, the cheapest first.",
    )
    post_quantum: PostQuantum | None = Field(default=None, description=_POST_QUANTUM)
    client_auth: ClientAuth | None = Field(
        default=None, description="Whether clients are asked for a certificate (`optional`) and must have one."
    )
    client_ca: ConfigPath | None = Field(
        default=None, description="PEM file with the certificate authorities that client certificates must chain to."
    )
    tickets: Annotated[int, IntRange(0, 16)] | None = Field(
        default=None, description="TLS 1.3 tickets sent after each handshake; 0 turns resumption off."
    )
    provider: Provider | None = Field(
        default=None, description="The library that does the cryptography, which this build of mitu must have."
    )


class ListenerTls(TlsSettings):
    """TLS of a listener."""

    policy: Policy | None = Field(
        default="intermediate",
        description="`modern`: TLS 1.3 only; `intermediate`: TLS 1.2 and 1.3 (Mozilla's server side TLS). Explicit"
        " settings beside it override it.",
    )
    post_quantum: PostQuantum | None = Field(default="allow", description=_POST_QUANTUM)
    client_auth: ClientAuth | None = Field(
        default="none", description="Whether clients are asked for a certificate (`optional`) and must have one."
    )
    tickets: Annotated[int, IntRange(0, 16)] | None = Field(
        default=1, description="TLS 1.3 tickets sent after each handshake; 0 turns resumption off."
    )
    provider: Provider | None = Field(
        default="aws-lc", description="The library that does the cryptography, which this build of mitu must have."
    )
    certificates: tuple[Certificate, ...] = Field(
        description="Chains and keys; ECDSA and RSA for the same names stand side by side."
    )
    unknown_name: Literal["default", "refuse"] = Field(
        default="default",
        description="A client with an unknown or without a server name: the first certificate, or an alert.",
    )


class UpstreamTls(Model):
    """TLS towards an upstream; `true` stands for all defaults."""

    server_name: HostPattern | None = Field(
        default=None, description="Sent as SNI and verified; the endpoint's host when left out."
    )
    ca: ConfigPath | None = Field(
        default=None,
        description="PEM file with the authorities trusted for this upstream; the system's when left out.",
    )
    certificate: ConfigPath | None = Field(
        default=None, description="PEM file with the chain that the gateway identifies itself with."
    )
    key: ConfigPath | None = Field(default=None, description="PEM file with the key of `certificate`.")
    verify: Bool = Field(default=True, description="False accepts any certificate: for tests only.")
