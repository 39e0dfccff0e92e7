"""What each client gets in each situation: the table that `test_client_matrix.py` holds real clients to.

`python -m support.matrix`, from the folder `tests`, writes docs/internals/client-matrix.md from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from support import client_table
from support import real_clients as clients
from support.programs import WANTED, Wanted
from support.real_clients import Client

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "client-matrix.md"
TLS12, TLS13 = "TLSv1.2", "TLSv1.3"
SUITE, SUITE12 = "TLS_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
WGET, GNUTLS, JAVA = WANTED["wget"], WANTED["gnutls-cli"], WANTED["java"]

# How the clients that may miss an alert put it that they cannot write any more, or wait for an answer in vain.
CUT_OFF = (
    *("net::ERR_SOCKET_NOT_CONNECTED", "net::ERR_CONNECTION_"),
    *("java.io.IOException", "HttpTimeoutException: request timed out"),
    "http2: client conn could not be established",
)


@dataclass(frozen=True, slots=True)
class Works:
    """An answer. `cipher`: empty where the machine decides."""

    version: str
    alpn: str
    cipher: str = ""

    def __str__(self) -> str:
        return ", ".join(one for one in (self.version, self.alpn, self.cipher) if one)


@dataclass(frozen=True, slots=True)
class Fails:
    """No answer. `words`: what the client prints.

    `counted`: the gateway's reason; empty for a client that breaks off after a handshake in which nothing failed.
    `or_cut_off`: whether it may find the connection gone before it reads why.
    """

    words: str
    counted: str = ""
    or_cut_off: bool = False

    def __str__(self) -> str:
        return f"`{self.words}`{', or that the connection is gone' if self.or_cut_off else ''}"

    def said(self, text: str) -> bool:
        return self.words in text or (self.or_cut_off and any(words in text for words in CUT_OFF))


Cell = Works | Fails


@dataclass(frozen=True, slots=True)
class Situation:
    """One listener. `newest`: the only version, or the newest; `pinned`: whether it has one suite for each version."""

    name: str
    title: str
    why: str
    newest: str = TLS13
    pinned: bool = True


SITUATIONS = (
    Situation("p256", "TLS 1.3, P-256", "TLS 1.3 alone, with an ECDSA certificate on P-256."),
    Situation("rsa", "TLS 1.3, RSA", "TLS 1.3 alone, with an RSA certificate of 2,048 bits."),
    Situation(
        "tls12",
        "TLS 1.2 alone",
        "`max_version` 1.2, with an ECDSA and an RSA certificate, of which every client here takes the ECDSA one. "
        "Whoever insists on TLS 1.3 is told `protocol_version`.",
        newest=TLS12,
    ),
    Situation(
        "modern",
        "modern",
        "`policy: modern`, which is TLS 1.3 alone. Whoever knows nothing newer than TLS 1.2 is told "
        "`protocol_version`. The suite is the one that is cheapest on the machine, see "
        "[ADR 5](../adr/0005-suite-order.md).",
        pinned=False,
    ),
    Situation("intermediate", "intermediate", "The default policy: TLS 1.2 and 1.3. Nobody is refused.", pinned=False),
    Situation(
        "alpn",
        "nothing in common",
        "The listener serves `private/1` alone, and refuses clients without ALPN. What was offered is in "
        "`mitu_alpn_decisions_total`. Chromium has no words of its own for this alert, and tries again a few times.",
    ),
    Situation(
        "mtls",
        "certificate required",
        "`client_auth: required`, and the client has no certificate. In TLS 1.3 the client has finished its handshake "
        "by the time it is told, and may have sent its request, which the gateway reads and drops, so that no reset "
        "overtakes the alert. Chromium, Java and Go's HTTP/2 may still find the connection gone before they read it.",
    ),
    Situation(
        "sni",
        "unknown name",
        "`unknown_name: refuse`, and a certificate for another name. Java sends no server name for `localhost`, as "
        "there is no dot in it, which is refused all the same.",
    ),
    Situation(
        "no-alpn",
        "ALPN demanded",
        "`no_alpn: refuse`. GnuTLS' clients and wrk offer nothing, nor does Java's when it is held to HTTP/1.1.",
    ),
    Situation(
        "expired",
        "expired certificate",
        "The server's own certificate has expired, which is for the client to see: `mitu check` and the gateway's log "
        "warn of it. Clients that send an alert are counted as `alert_received`, those that just leave as "
        "`client_closed`. wget looks at the certificate after the handshake, h2load and wrk do not at all: to them "
        "nothing failed, and nothing is counted.",
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One client. `besides`: reasons that it is counted under now and then though all is well, as it tries things."""

    name: str
    programs: tuple[Wanted, ...]
    ask: Client
    alpn: str
    fails: Mapping[str, Fails] = field(default_factory=dict)
    newest: str = TLS13
    besides: frozenset[str] = frozenset()

    def cell(self, situation: Situation) -> Cell:
        if situation.name in self.fails:
            return self.fails[situation.name]
        version = min(self.newest, situation.newest)
        return Works(version, self.alpn, (SUITE if version == TLS13 else SUITE12) if situation.pinned else "")


NO_PROTOCOL, NO_NAME, NO_CERTIFICATE = "no_application_protocol", "unrecognized_name", "client_certificate_missing"
ALERT, CLOSED, RESET, INCOMPATIBLE = "alert_received", "client_closed", "client_reset", "peer_incompatible"


def refused(alpn: str, mtls: str, sni: str, *, expired: Fails, hasty: bool = False) -> dict[str, Fails]:
    """The situations that no client of these gets past. `hasty`: whether it writes before it reads."""
    return {
        "alpn": Fails(alpn, NO_PROTOCOL),
        "mtls": Fails(mtls, NO_CERTIFICATE, or_cut_off=hasty),
        "sni": Fails(sni, NO_NAME),
        "expired": expired,
    }


OPENSSL_WORDS = ("tlsv1 alert no application protocol", "tlsv13 alert certificate required", "tlsv1 unrecognized name")
EXPIRED = "certificate has expired"


def openssl(expired: str = EXPIRED, counted: str = ALERT) -> dict[str, Fails]:
    return refused(*OPENSSL_WORDS, expired=Fails(expired, counted))


def gnutls(mtls: str, expired: Fails) -> dict[str, Fails]:
    alpn = "[120]: No supported application protocol could be negotiated"
    name = "[112]: The server name sent was not recognized"
    return refused(alpn, mtls, name, expired=expired) | {"no-alpn": Fails(alpn, NO_PROTOCOL)}


def go(*, hasty: bool = False) -> dict[str, Fails]:
    words = (
        f"remote error: tls: {alert}"
        for alert in ("no application protocol", "certificate required", "unrecognized name")
    )
    return refused(*words, expired=Fails("x509: certificate has expired or is not yet valid", ALERT), hasty=hasty)


def java() -> dict[str, Fails]:
    words = (f"Received fatal alert: {alert}" for alert in (NO_PROTOCOL, "certificate_required", NO_NAME))
    return refused(*words, expired=Fails("CertPathValidatorException: validity check failed", CLOSED), hasty=True)


OTHER_VERSION = Fails("tlsv1 alert protocol version", INCOMPATIBLE)
NODE = WANTED["node"]
ROWS = (
    Row("curl (HTTP/1.1)", (WANTED["curl"],), clients.curl("--http1.1"), "http/1.1", openssl()),
    Row("curl (HTTP/2)", (WANTED["curl"],), clients.curl("--http2"), "h2", openssl()),
    Row(
        "wget",
        (WGET,),
        clients.wget,
        "http/1.1",
        gnutls(
            "The specified session has been invalidated for some reason",
            Fails("The certificate has expired"),
        ),
    ),
    Row(
        "gnutls-cli",
        (GNUTLS,),
        clients.gnutls_cli,
        "http/1.1",
        gnutls(
            "Received alert [116]: Certificate is required",
            Fails("The certificate chain uses expired certificate", ALERT),
        ),
    ),
    Row(
        "openssl s_client (TLS 1.2)",
        (WANTED["openssl"],),
        clients.s_client("-tls1_2", "-alpn", "http/1.1"),
        "http/1.1",
        openssl() | dict.fromkeys(("p256", "rsa", "modern"), OTHER_VERSION),
        newest=TLS12,
    ),
    Row(
        "openssl s_client (TLS 1.3)",
        (WANTED["openssl"],),
        clients.s_client("-tls1_3", "-alpn", "http/1.1"),
        "http/1.1",
        openssl() | {"tls12": OTHER_VERSION},
    ),
    Row("Python ssl", (), clients.python_ssl("http/1.1"), "http/1.1", openssl()),
    Row(
        "grpcio",
        (),
        clients.each(clients.grpcio),
        "h2",
        refused(
            "TLSV1_ALERT_NO_APPLICATION_PROTOCOL:",
            "Unwrap failed (TSI_DATA_CORRUPTED)",
            "TLSV1_ALERT_UNRECOGNIZED_NAME:",
            expired=Fails(EXPIRED, CLOSED),
        ),
    ),
    Row("Go net/http (HTTP/1.1)", (WANTED["go"],), clients.go("h1"), "http/1.1", go()),
    Row("Go net/http (HTTP/2)", (WANTED["go"],), clients.go("h2"), "h2", go(hasty=True)),
    Row("Node https", (NODE,), clients.node("https"), "http/1.1", openssl(counted=CLOSED)),
    Row("Node http2", (NODE,), clients.node("http2"), "h2", openssl(counted=CLOSED)),
    Row(
        "Java HttpClient (HTTP/1.1)",
        (JAVA,),
        clients.java("HTTP_1_1"),
        "http/1.1",
        java() | {"no-alpn": Fails("Received fatal alert: no_application_protocol", NO_PROTOCOL)},
    ),
    Row("Java HttpClient (HTTP/2)", (JAVA,), clients.java("HTTP_2"), "h2", java()),
    Row(
        "Chromium",
        (WANTED["chromium"], WANTED["certutil"]),
        clients.Chromium(),
        "h2",
        refused(
            "net::ERR_SSL_PROTOCOL_ERROR",
            "net::ERR_BAD_SSL_CLIENT_AUTH_CERT",
            "net::ERR_SSL_UNRECOGNIZED_NAME_ALERT",
            expired=Fails("net::ERR_CERT_DATE_INVALID", ALERT),
            hasty=True,
        ),
        # It opens connections that it may need, and leaves them when it does not.
        besides=frozenset({CLOSED, RESET}),
    ),
    Row(
        "mosquitto_pub",
        (WANTED["mosquitto_pub"],),
        clients.mosquitto_pub,
        "mqtt",
        openssl("certificate verify failed"),
    ),
    Row(
        "h2load",
        (WANTED["h2load"],),
        clients.h2load(),
        "h2",
        {
            name: Fails("0 succeeded, 1 failed, 1 errored", counted)
            for name, counted in (("alpn", NO_PROTOCOL), ("mtls", NO_CERTIFICATE), ("sni", NO_NAME))
        },
    ),
    Row(
        "wrk",
        (WANTED["wrk"],),
        clients.wrk,
        "http/1.1",
        {
            name: Fails("0 requests in", counted)
            for name, counted in (
                ("alpn", NO_PROTOCOL),
                ("mtls", NO_CERTIFICATE),
                ("sni", NO_NAME),
                ("no-alpn", NO_PROTOCOL),
            )
        },
        # It begins by looking whether it can connect at all, and stops when its time is up.
        besides=frozenset({CLOSED, RESET}),
    ),
)


@dataclass(frozen=True, slots=True)
class Offer:
    """openssl s_client with one group or suite, in the situation `intermediate`.

    `shows`: what it prints when it works.
    """

    name: str
    flags: tuple[str, ...]
    cell: Cell
    shows: str = ""


def _group(name: str, key: str = "") -> Offer:
    cell = Works(TLS13, "http/1.1") if key else REFUSED
    return Offer(name, ("-tls1_3", "-groups", name), cell, f"Server Temp Key: {key}" if key else "")


def _suite13(name: str, works: bool = True) -> Offer:
    return Offer(name, ("-tls1_3", "-ciphersuites", name), Works(TLS13, "http/1.1", name) if works else REFUSED)


def _suite12(openssl_name: str, name: str = "") -> Offer:
    cell = Works(TLS12, "http/1.1", name) if name else REFUSED
    return Offer(openssl_name, ("-tls1_2", "-cipher", openssl_name), cell)


REFUSED = Fails("alert handshake failure", INCOMPATIBLE)
OFFERS = (
    _group("X25519", "X25519"),
    _group("P-256", "ECDH, prime256v1"),
    _group("P-384", "ECDH, secp384r1"),
    _group("P-521"),
    _group("X448"),
    _suite13("TLS_AES_128_GCM_SHA256"),
    _suite13("TLS_AES_256_GCM_SHA384"),
    _suite13("TLS_CHACHA20_POLY1305_SHA256"),
    _suite13("TLS_AES_128_CCM_SHA256", works=False),
    *(
        _suite12(f"ECDHE-{key}-{suite}", f"TLS_ECDHE_{key}_WITH_{name}")
        for key in ("ECDSA", "RSA")
        for suite, name in (
            ("AES128-GCM-SHA256", "AES_128_GCM_SHA256"),
            ("AES256-GCM-SHA384", "AES_256_GCM_SHA384"),
            ("CHACHA20-POLY1305", "CHACHA20_POLY1305_SHA256"),
        )
    ),
    _suite12("ECDHE-ECDSA-AES128-SHA256"),
    _suite12("DHE-RSA-AES128-GCM-SHA256"),
    _suite12("AES128-GCM-SHA256"),
)

INTRO = """\
<!-- Made by `python -m support.matrix` in the folder `tests`; edit the table there instead. -->

# Clients that people use, and what each is told

`tests/integration/test_client_matrix.py` runs each of these clients, as Debian 12 and PyPI have them, against ten
listeners of one gateway, and holds them to this page: to what was negotiated, as the access log has it, or to what the
client prints when it gets no answer, and to the reason under which `mitu_tls_handshake_failures_total` counts that.
The reasons are those of `HandshakeError::reason()` in `crates/mitu-tls/src/handshake.rs`.

In short, the version that was negotiated, or `no` where the client got no answer:
"""
OFFERED = """
## One group, one suite

`openssl s_client` at the listener of "intermediate", offering this and nothing else. What is refused lacks forward
secrecy, authenticated encryption, or a place in the provider; the client is told `handshake_failure`.
"""


def page() -> str:
    lines = (INTRO, *_summary(), *_situations(), OFFERED, *_offers(), *client_table.section())
    return "".join(f"{line}\n" for line in lines)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _summary() -> Iterator[str]:
    yield _row("", *(one.title for one in SITUATIONS))
    yield _row(*["---"] * (len(SITUATIONS) + 1))
    for row in ROWS:
        cells = [row.cell(situation) for situation in SITUATIONS]
        yield _row(row.name, *(cell.version[4:] if isinstance(cell, Works) else "no" for cell in cells))


def _situations() -> Iterator[str]:
    for situation in SITUATIONS:
        yield f"\n## {situation.title[0].upper()}{situation.title[1:]}\n\n{_wrapped(situation.why)}\n"
        yield from _outcomes((row.name, row.cell(situation)) for row in ROWS)


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _offers() -> Iterator[str]:
    yield from _outcomes((offer.name, offer.cell) for offer in OFFERS)


def _outcomes(cells: Iterable[tuple[str, Cell]]) -> Iterator[str]:
    """A line for each outcome, those first that come first."""
    who: dict[Cell, list[str]] = {}
    for name, cell in cells:
        who.setdefault(cell, []).append(name)
    yield _row("client", "negotiated, or what it says", "counted as")
    yield _row("---", "---", "---")
    for cell, names in who.items():
        counted = f"`{cell.counted}`" if isinstance(cell, Fails) and cell.counted else ""
        yield _row(", ".join(names), cell, counted)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
