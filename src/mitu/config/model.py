"""The configuration's root. The option reference and the JSON Schema are made from these models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from mitu.config.base import Model
from mitu.config.discovery import Discovery
from mitu.config.listeners import Listener
from mitu.config.secret import Secret
from mitu.config.source import Document
from mitu.config.types import (
    Bind,
    Bool,
    ConfigPath,
    DurationRange,
    IntRange,
    Share,
    SizeRange,
    Text,
    fail,
    format_duration,
)
from mitu.config.upstreams import Upstream

# Each secret is tried on a ticket, and each epoch that a ticket may come from has its keys in memory.
MAX_TICKET_SECRETS = 4
MAX_TICKET_EPOCHS = 100


class Runtime(Model):
    """How the data plane uses the machine."""

    workers: Annotated[int, IntRange(1, 1024)] | None = Field(
        default=None, description="Worker threads; one per core when left out."
    )
    scheduler: Literal["per_core", "work_stealing"] = Field(
        default="per_core",
        description="`per_core`: a thread, an event loop and a socket per worker; `work_stealing`: one runtime whose"
        " threads share all connections.",
    )


class Admin(Model):
    """The endpoint behind `mitu reload`, `status` and `drain`, with metrics."""

    socket: ConfigPath | None = Field(
        default=None,
        description="Unix socket; when left out `/run/mitu/admin.sock` for root, else `mitu/admin.sock` in"
        " `$XDG_RUNTIME_DIR`.",
    )
    listen: Bind | None = Field(default=None, description="Loopback `host:port` besides; needs a `token`.")
    token: Secret | None = Field(default=None, description="Bearer token that requests to `listen` must carry.")

    @property
    def socket_path(self) -> Path:
        return self.socket or default_admin_socket()


class Tickets(Model):
    """How session tickets are sealed, on every listener alike; how many are sent is set in each listener's `tls`."""

    secrets: tuple[Secret, ...] = Field(
        default=(),
        description="What keys are derived from: at least 32 random bytes each, the same on every node of a fleet. The"
        " first seals, all of them (4 at most) open. When left out, keys are random and end with the process.",
    )
    rotation: Annotated[timedelta, DurationRange("1s", "7d")] = Field(
        default=timedelta(hours=6), description="How long one key seals; the same on every node of a fleet."
    )
    lifetime: Annotated[timedelta, DurationRange("1s", "7d")] = Field(
        default=timedelta(hours=12), description="How long a ticket is good."
    )

    @model_validator(mode="after")
    def _bounded(self) -> Tickets:
        if len(self.secrets) > MAX_TICKET_SECRETS:
            hint = "remove those under which no ticket is good any more"
            fail("E016", f"{len(self.secrets)} ticket secrets are too many", allowed=("up to 4",), hint=hint)
        if self.lifetime > MAX_TICKET_EPOCHS * self.rotation:
            hint = f"let one last {format_duration(self.lifetime / MAX_TICKET_EPOCHS)} or longer"
            fail("E069", f"a ticket outlives more than {MAX_TICKET_EPOCHS} rotations", hint=hint)
        return self


class Rate(Model):
    """A token bucket."""

    per_second: Annotated[int, IntRange(1, 1_000_000)] = Field(description="Handshakes a second, for long.")
    burst: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="Handshakes at once; when left out, those of two seconds."
    )


class Handshakes(Model):
    """How handshakes take turns in a storm, on every listener alike. Nothing of it has to be set."""

    patience: Annotated[timedelta, DurationRange("10ms", "60s")] = Field(
        default=timedelta(seconds=8),
        description="A handshake that would wait for its turn for longer, or has, is reset: its client has given up.",
    )
    queue: Annotated[int, IntRange(1, 10_000_000)] | None = Field(
        default=None,
        description="Handshakes that may wait on one worker; when left out, as many as `patience` has time for.",
    )
    ipv4_prefix: Annotated[int, IntRange(0, 32)] = Field(
        default=24, description="Leading bits of an IPv4 address that tell one source from another."
    )
    ipv6_prefix: Annotated[int, IntRange(0, 128)] = Field(
        default=48, description="Leading bits of an IPv6 address that tell one source from another."
    )
    source_rate: Rate | None = Field(
        default=None, description="Most handshakes from one source; unlimited when left out."
    )
    server_name_rate: Rate | None = Field(
        default=None, description="Most handshakes for one server name; unlimited when left out."
    )


class Overload(Model):
    """What is done when memory runs short, step by step, on every listener alike.

    Shares are those of `memory`. A step ends five percentage points below the share at which it began.
    """

    memory: Annotated[int, SizeRange("32MiB", "1048576GiB")] | None = Field(
        default=None,
        description="Resident memory that the process may have; when left out, what its control group allows, if that"
        " has a limit.",
    )
    disable_keepalive: Share = Field(
        default=0.85, description="From here on responses end their connection, and idle ones are closed."
    )
    stop_accepting_requests: Share = Field(
        default=0.9, description="From here on requests are refused: 503, or a refusal of the stream."
    )
    reject_connections: Share = Field(default=0.95, description="From here on connections are closed on accept.")

    @model_validator(mode="after")
    def _ascending(self) -> Overload:
        if not self.disable_keepalive <= self.stop_accepting_requests <= self.reject_connections:
            hint = "disable_keepalive comes first, then stop_accepting_requests, then reject_connections"
            fail("E022", "a step of overload begins before the one that it follows", hint=hint)
        return self


class AccessLog(Model):
    """One JSON line a request or connection. Lines that cannot be written in time are dropped and counted."""

    path: Text = Field(default="stdout", description="A file, `stdout` or `stderr`.")
    requests: Bool = Field(default=True, description="One line for each request.")
    connections: Bool = Field(default=False, description="One line for each connection, with its stage times.")
    queue: Annotated[int, IntRange(16, 10_000_000)] = Field(
        default=8192, description="Lines that may wait for the writer."
    )


class Logging(Model):
    """What the gateway says about itself and its traffic."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe message.")
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="`auto`: text on a terminal, else JSON lines."
    )
    access: AccessLog | None = Field(default=None, description="Access log; off when left out.")


class Config(Model):
    """The whole configuration of a gateway."""

    runtime: Runtime = Field(default=Runtime(), description="How the data plane uses the machine.")
    admin: Admin = Field(default=Admin(), description="The admin endpoint.")
    logging: Logging = Field(default=Logging(), description="Logs.")
    tickets: Tickets = Field(default=Tickets(), description="Session tickets.")
    handshakes: Handshakes = Field(default=Handshakes(), description="How handshakes take turns.")
    overload: Overload = Field(default=Overload(), description="What is done when memory runs short.")
    discovery: Discovery = Field(default=Discovery(), description="Where upstreams learn of their instances.")
    listeners: tuple[Listener, ...] = Field(description="TLS ports.")
    upstreams: tuple[Upstream, ...] = Field(default=(), description="Groups of endpoints that routes send to.")

    _document: Document | None = PrivateAttr(default=None)

    @property
    def document(self) -> Document | None:
        """Where it was read from; None for a configuration built in code."""
        return self._document

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return Path.cwd() if self._document is None else self._document.file.parent

    @property
    def handler_folder(self) -> Path | None:
        """Where modules of Python handlers are looked for first; a configuration built in code leaves that to its
        program."""
        return None if self._document is None else self.base.absolute()

    def __eq__(self, other: object) -> bool:
        # Where it was read from is no part of what it says.
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # A header that a route sets may hold a secret, and what is printed may end up anywhere.
        from mitu.config.resolve import resolved

        return resolved(self).items()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def default_admin_socket() -> Path:
    """`/run/mitu/admin.sock` for root, else `mitu/admin.sock` in `$XDG_RUNTIME_DIR` or `/run/user/UID`."""
    if os.geteuid() == 0:
        return Path("/run/mitu/admin.sock")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "mitu" / "admin.sock"
