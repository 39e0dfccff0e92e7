"""The options that the runs of `mitu bench` share, and what they come to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mitu.bench.plan import Clients

_LOAD = "Load"
_CLIENTS = "Clients"
_OUTPUT = "Output"

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="https://host:port/path, http://…, mqtts://host:port or host:port. Without it, a gateway is made for"
        " the run, with a certificate of its own.",
        show_default=False,
    ),
]
Duration = Annotated[
    str,
    typer.Option("--duration", "-d", metavar="TIME", help="Nothing begins later.", rich_help_panel=_LOAD),
]
Requests = Annotated[
    int,
    typer.Option("--requests", "-n", min=1, help="At most so many.", rich_help_panel=_LOAD),
]
Connections = Annotated[
    int,
    typer.Option("--connections", "-c", min=1, help="At once, where no --rate is set.", rich_help_panel=_LOAD),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="RATE",
        help="So many a second, on time however long each takes; 100..2000 is a ramp over the whole duration.",
        show_default=False,
        rich_help_panel=_LOAD,
    ),
]
Arrivals = Annotated[
    str,
    typer.Option("--arrivals", metavar="fixed|poisson", help="How --rate is spaced.", rich_help_panel=_LOAD),
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume", metavar="SHARE", help="Of the handshakes, resumed: 30%, or 100%.", rich_help_panel=_CLIENTS
    ),
]
Alpn = Annotated[
    list[str] | None,
    typer.Option(
        "--alpn",
        metavar="LIST",
        help="What is offered: h2,http/1.1. Given several times, with shares: --alpn h2=7 --alpn http/1.1=3."
        " none offers nothing.",
        show_default="h2,http/1.1",
        rich_help_panel=_CLIENTS,
    ),
]
Versions = Annotated[
    list[str] | None,
    typer.Option("--tls", metavar="1.2|1.3", help="Offered alone.", show_default="both", rich_help_panel=_CLIENTS),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME",
        help="X25519, X25519MLKEM768, secp256r1, secp384r1; in this order.",
        show_default="all",
        rich_help_panel=_CLIENTS,
    ),
]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="NAME",
        help="TLS_AES_128_GCM_SHA256 and the like; in this order.",
        show_default="all",
        rich_help_panel=_CLIENTS,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Verify the server's certificate, by the system's authorities.", rich_help_panel=_CLIENTS
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option("--ca", help="Verify it by the authorities in this PEM file.", rich_help_panel=_CLIENTS),
]
ServerName = Annotated[
    str | None,
    typer.Option("--server-name", metavar="NAME", help="SNI and Host, instead of TARGET's.", rich_help_panel=_CLIENTS),
]
RoundTrip = Annotated[
    str,
    typer.Option("--rtt", metavar="TIME", help="Emulated round trip, as to far clients.", rich_help_panel=_CLIENTS),
]
Sources = Annotated[
    str | None,
    typer.Option(
        "--sources",
        metavar="NETWORK",
        help="Connections come from its addresses in turn: 127.16.0.0/12. A storm on this machine does that itself.",
        show_default=False,
        rich_help_panel=_CLIENTS,
    ),
]
Timeout = Annotated[
    str,
    typer.Option("--timeout", metavar="TIME", help="From when it was due until it fails.", rich_help_panel=_CLIENTS),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, max=1024, show_default="one for each core", rich_help_panel=_LOAD),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Repeats a run's random moments.", show_default=False, rich_help_panel=_LOAD),
]
OwnTarget = Annotated[
    bool,
    typer.Option("--i-own-the-target", help="Allow a TARGET that is not this machine.", rich_help_panel=_LOAD),
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit with 1 if it holds: 'p99>50ms', 'error-rate>1%', 'rate<1000'. May be given again.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.", rich_help_panel=_OUTPUT)]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a report with charts, in one file.", rich_help_panel=_OUTPUT),
]


@dataclass(frozen=True, slots=True)
class Common:
    """What a command was given of these, by the names of its parameters."""

    resume: str
    alpn: list[str] | None
    tls: list[str] | None
    group: list[str] | None
    suite: list[str] | None
    verify: bool
    ca: Path | None
    server_name: str | None
    rtt: str
    sources: str | None
    timeout: str
    threads: int | None
    seed: int | None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Common:
        return cls(**{one.name: parameters[one.name] for one in fields(cls)})

    def clients(self) -> Clients:
        """WantedError, or BenchError for a file that cannot be read."""
        from mitu.bench import units
        from mitu.bench.plan import DEFAULT_ALPN, Clients, alpn_lists, read_authority

        return Clients(
            alpn=alpn_lists(self.alpn or [DEFAULT_ALPN]),
            versions=tuple(self.tls or ()),
            groups=tuple(self.group or ()),
            suites=tuple(self.suite or ()),
            resumed=units.share(self.resume, "--resume"),
            verify=self.verify or self.ca is not None,
            authority=None if self.ca is None else read_authority(self.ca),
            server_name=self.server_name,
            round_trip=units.seconds(self.rtt, "--rtt"),
            sources=self.sources,
            timeout=units.seconds(self.timeout, "--timeout"),
            threads=self.threads or len(os.sched_getaffinity(0)),
            seed=secrets.randbits(32) if self.seed is None else self.seed,
        )

    def told(self, **work: Any) -> dict[str, str]:
        """The settings, for people and for comparing: those of the work, then those of the clients."""
        from mitu.bench.plan import DEFAULTS

        verified = "by the system's authorities" if self.verify else "not verified"
        lists = {"ALPN": self.alpn, "TLS": self.tls, "groups": self.group, "suites": self.suite}
        told = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in work.items()}
        return told | {
            "resumed": self.resume,
            **{name: ", ".join(value) if value else DEFAULTS[name] for name, value in lists.items()},
            "certificates": verified if self.ca is None else f"by {self.ca.name}",
            "round trip": DEFAULTS["round trip"] if self.rtt == "0ms" else f"{self.rtt}, emulated",
            "timeout": self.timeout,
            "threads": str(self.threads or len(os.sched_getaffinity(0))),
        }
