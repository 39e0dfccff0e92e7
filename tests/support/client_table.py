"""What clients get of one port that serves h3, h2 and http/1.1, by what they offer.

`tests/integration/test_client_table.py` holds them to it, and the terminal's summary shows what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support import real_clients as clients
from support.process import output
from support.programs import WANTED, Wanted
from support.real_clients import Client

NUMBER, GOT = "client table's row", "client got"
NO_ALPN = "no ALPN"
REFUSED = "refused"
# TLS' fatal alert 120, as QUIC has it (RFC 9001, section 4.8).
QUIC_NO_APPLICATION_PROTOCOL = f"error_code={0x100 + 120}"


@dataclass(frozen=True, slots=True)
class Row:
    """One client with one offer, and what it gets. `words`: what it says when it is refused.

    `private`: it goes to a port that serves none of its protocols, since it cannot be told to offer others.
    """

    client: str
    offers: str
    gets: str
    ask: Client
    program: str = ""
    words: str = ""
    private: bool = False
    path: str = ""
    """What it asks for; empty where that is the test's to choose."""
    lacks: Callable[[], str] = str
    """Why a program that is there cannot do this; empty where it can."""

    def __str__(self) -> str:
        return f"{self.client}: {self.offered}"

    @property
    def offered(self) -> str:
        return f"{self.offers}, to the private port" if self.private else self.offers

    @property
    def programs(self) -> Iterable[Wanted]:
        # Chromium trusts what NSS' own tool has put into its database.
        names = (self.program, "certutil") if self.program == "chromium" else (self.program,)
        return [WANTED[name] for name in names if name]


def _curl_without_http3() -> str:
    features = next(line for line in output(["curl", "--version"]).splitlines() if line.startswith("Features:"))
    return "" if "HTTP3" in features.split() else "this curl was built without HTTP/3"


def _refused(client: str, offers: str, ask: Client, words: str, program: str = "", *, private: bool = True) -> Row:
    return Row(client, offers, REFUSED, ask, program, words, private)


ANY = "h2, http/1.1"
OPENSSL_SAYS = "alert no application protocol"
GO_SAYS = "remote error: tls: no application protocol"
JAVA_SAYS = "Received fatal alert: no_application_protocol"
ROWS = (
    Row("aioquic", "h3", "h3", clients.aioquic("h3")),
    Row("aioquic", "hq-interop, h3", "h3", clients.aioquic("hq-interop", "h3")),
    _refused("aioquic", "hq-interop", clients.aioquic("hq-interop"), QUIC_NO_APPLICATION_PROTOCOL, private=False),
    Row("oha", "h3", "h3", clients.oha("3"), "oha"),
    Row("oha", "h2", "h2", clients.oha("2"), "oha"),
    Row("oha", NO_ALPN, "http/1.1", clients.oha("1.1"), "oha"),
    _refused("oha", "h2", clients.oha("2"), "NoApplicationProtocol", "oha"),
    Row("Chromium", f"h3, {ANY}", "h3", clients.Chromium(quic=True), "chromium"),
    Row("Chromium", ANY, "h2", clients.Chromium(), "chromium"),
    Row("Chromium", "http/1.1", "http/1.1", clients.Chromium("--disable-http2"), "chromium"),
    _refused("Chromium", ANY, clients.Chromium(), "net::ERR_SSL_PROTOCOL_ERROR", "chromium"),
    Row("curl", "h3", "h3", clients.curl("--http3-only"), "curl", lacks=_curl_without_http3),
    Row("curl", ANY, "h2", clients.curl("--http2"), "curl"),
    Row("curl", "http/1.1", "http/1.1", clients.curl("--http1.1"), "curl"),
    _refused("curl", ANY, clients.curl("--http2"), OPENSSL_SAYS, "curl"),
    Row("h2load", "h2", "h2", clients.h2load(), "h2load"),
    Row("h2load", "http/1.1", "http/1.1", clients.h2load("--h1"), "h2load"),
    _refused("h2load", "h2", clients.h2load(), "0 succeeded, 1 failed, 1 errored", "h2load"),
    Row("Java HttpClient", ANY, "h2", clients.java("HTTP_2"), "java"),
    Row("Java HttpClient", NO_ALPN, "http/1.1", clients.java("HTTP_1_1"), "java"),
    _refused("Java HttpClient", ANY, clients.java("HTTP_2"), JAVA_SAYS, "java"),
    Row("Node http2", "h2", "h2", clients.node("http2"), "node"),
    _refused("Node http2", "h2", clients.node("http2"), OPENSSL_SAYS, "node"),
    Row("Node https", "http/1.1", "http/1.1", clients.node("https"), "node"),
    _refused("Node https", "http/1.1", clients.node("https"), OPENSSL_SAYS, "node"),
    Row("Go net/http", "h2", "h2", clients.go("h2"), "go"),
    Row("Go net/http", "http/1.1", "http/1.1", clients.go("h1"), "go"),
    _refused("Go net/http", "h2", clients.go("h2"), GO_SAYS, "go"),
    Row("grpcio", "h2", "h2", clients.each(clients.grpcio), path=clients.GRPC_METHOD),
    # QUIC is where h3 is spoken: on TCP it is a name like any other.
    Row("Python ssl", f"h3, {ANY}", "h2", clients.python_ssl("h3", "h2", "http/1.1")),
    Row("Python ssl", "http/1.1", "http/1.1", clients.python_ssl("http/1.1")),
    _refused("Python ssl", "h3", clients.python_ssl("h3"), OPENSSL_SAYS, private=False),
    Row("openssl s_client", "h3, http/1.1", "http/1.1", clients.s_client("-alpn", "h3,http/1.1"), "openssl"),
    Row("openssl s_client", NO_ALPN, "http/1.1", clients.s_client(), "openssl"),
    _refused(
        "openssl s_client", "spdy/3", clients.s_client("-alpn", "spdy/3"), OPENSSL_SAYS, "openssl", private=False
    ),
    Row("gnutls-cli", NO_ALPN, "http/1.1", clients.gnutls_cli, "gnutls-cli"),
    Row("wget", NO_ALPN, "http/1.1", clients.wget, "wget"),
    Row("wrk", NO_ALPN, "http/1.1", clients.wrk, "wrk"),
    _refused("mosquitto_pub", "mqtt", clients.mosquitto_pub, OPENSSL_SAYS, "mosquitto_pub", private=False),
)


def section() -> Iterator[str]:
    """Of the page about clients."""
    yield SECTION
    yield "| client | offers | gets |"
    yield "| --- | --- | --- |"
    for row in ROWS:
        yield f"| {row.client} | {row.offered} | {row.gets} |"


SECTION = """
## One port, three protocols

`tests/integration/test_client_table.py`: a listener with `protocols: [h3, h2, http/1.1]`, which h3 reaches on the UDP
port of the same number. What a client got is in the access log's line of its request. The refused ones are told
`no_application_protocol`, and nothing of theirs reaches a route or an upstream; clients that cannot be told what to
offer are refused on a port that serves `private/1` alone. Debian 12's curl has no HTTP/3. Chromium is told which
origins speak it, since it heeds no `Alt-Svc` of servers whose certificate comes from a private root.
"""


def summary(stats: Mapping[str, Iterable[Any]]) -> Iterator[str]:
    """The table as it came out, from what the terminal's reporter has gathered."""
    came_out = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in stats.get(outcome, ()):
            told = dict(getattr(report, "user_properties", ()))
            if NUMBER in told:
                # A report of what was skipped ends with why.
                came_out[told[NUMBER]] = report.longrepr[2] if outcome == "skipped" else told.get(GOT, outcome)
    for number, what in sorted(came_out.items()):
        yield f"  {ROWS[number].client:16} {ROWS[number].offered:37} -> {what}"
