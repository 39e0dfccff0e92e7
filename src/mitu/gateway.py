"""The gateway's lifecycle: start, reload, drain, stop.

    async with mitu.Gateway("mitu.yaml") as gateway:
        print(gateway.addresses)
        await gateway.serve_forever()

Python compiles the configuration; the data plane (`mitu._native`) makes it live, whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from mitu import _native
from mitu.certificates import describe
from mitu.config.compile import Compiled, compile_runtime, python_handlers
from mitu.config.load import load_config
from mitu.config.model import Config
from mitu.config.resolve import resolved
from mitu.config.secret import Secret
from mitu.data_plane import DataPlane
from mitu.discovery.service import Discovery
from mitu.errors import ConfigError, MituError, ReloadError, StartError
from mitu.handlers import HandlerServers
from mitu.memory import memory_limit
from mitu.open_files import raise_limit
from mitu.watch import fingerprint, named_files

DRAIN_TIMEOUT = 30.0
"""Seconds that connections may take to finish once a drain has begun."""

_DRAIN_POLL = 0.02
_TOKEN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that is live, or was."""

    config: Config
    compiled: Compiled
    token: str | None = field(repr=False)
    """What `admin.token` is, or its file held."""
    digest: str
    """SHA-256 of the runtime configuration, all key material and the process's settings: equal ones behave alike."""
    at: float
    """Unix time."""

    @classmethod
    def of(cls, config: Config, compiled: Compiled) -> Loaded:
        token = None if config.admin.token is None else _reveal(config.admin.token)
        return cls(config, compiled, token, digest(compiled, config, token), time.time())


@dataclass(slots=True)
class Reloads:
    """How reloads went."""

    succeeded: int = 0
    failed: int = 0
    last_error: MituError | None = None
    """Why the last reload was refused; None when it was not."""
    last_at: float | None = None
    succeeded_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Handshakes:
    """How the storm gate stands."""

    waiting: int
    """Handshakes that wait now because there have been more than there is time for; not those of a short burst."""
    shed: int
    """Handshakes that it has reset since the start."""


@dataclass(frozen=True, slots=True)
class OverloadChange:
    """A listener has come to another step of overload."""

    listener: str
    step: str
    """`normal`, or the action that it adds: `disable_keepalive`, `stop_accepting_requests`, `reject_connections`."""
    memory: float | None
    """Resident memory, as a share of its ceiling; None: there is none."""
    connections: float
    """Open connections, as a share of the listener's limit."""


class Gateway:
    """A gateway in this process, to be started once. `config`: a configuration file's path, or one built in code.

    `inherited`: file descriptors of listening sockets by listener name (systemd), which the gateway takes over.
    `admit`: called with each new configuration before it becomes live; it may refuse it with a ReloadError.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        inherited: Mapping[str, list[int]] | None = None,
        admit: Callable[[Config], None] | None = None,
    ) -> None:
        self._source = config
        self._inherited = {name: list(fds) for name, fds in (inherited or {}).items()}
        self._admit = admit
        self._handlers = HandlerServers()
        self._plane = DataPlane()
        self._discovery = Discovery(self._plane)
        self._open_files: int | None = None
        self._reloading = asyncio.Lock()
        self._live: Loaded | None = None
        self._tried: Config | None = None
        self._started = self._draining = False
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._cut_off = 0
        self.reloads = Reloads()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()

    async def start(self) -> None:
        """Begin to serve. ConfigError, HandlerError or StartError when that cannot be; nothing is left open then.

        The process's limit of open files is raised as far as it may be, and stays so.
        """
        if self._started:
            raise StartError("a gateway can be started only once")
        self._started = True
        try:
            self._open_files = raise_limit()
            self._live = await self._load(self._source)
            async with self._discovery.following(self._live.config) as discovered:
                await self._start(self._live.compiled, discovered)
        except _Refused as error:
            await self._abandon()
            raise StartError(str(error)) from error
        except BaseException:
            await self._abandon()
            raise
        self.reloads.succeeded_at = self._live.at

    async def _start(self, compiled: Compiled, discovered: str) -> None:
        inherited, self._inherited = self._inherited, {}
        arguments = (compiled.runtime, compiled.secrets, discovered, inherited)
        self._plane.server = await self._plane.call(_native.start, *arguments)

    async def _abandon(self) -> None:
        self._live = None
        for fd in (fd for fds in self._inherited.values() for fd in fds):
            os.close(fd)
        await self._handlers.close()
        await self._plane.end()

    async def reload(self, new: str | Path | Config | None = None) -> bool:
        """Make `new`, or the file as it now is, live for new connections. Whether anything changed.

        ConfigError, HandlerError or ReloadError when it is refused: then everything stays as it was. A caller that is
        cancelled leaves the reload to finish: the data plane cannot be stopped midway, and must not be ahead of what
        is said of it here.
        """
        reloading = asyncio.create_task(self._reload_alone(new))
        reloading.add_done_callback(lambda done: done.cancelled() or done.exception())  # Told, if only in `reloads`.
        return await asyncio.shield(reloading)

    async def _reload_alone(self, new: str | Path | Config | None) -> bool:
        async with self._reloading:
            source = self._source if new is None else new
            self.reloads.last_at = time.time()
            try:
                changed = await self._reload(source)
            except MituError as error:
                self.reloads.failed += 1
                self.reloads.last_error = error
                raise
            self._source = source
            self.reloads.succeeded += 1
            self.reloads.last_error = None
            self.reloads.succeeded_at = time.time()
            return changed

    async def _reload(self, source: str | Path | Config) -> bool:
        server = self._running()
        try:
            loaded = await self._load(source)
            if self._admit is not None:
                self._admit(loaded.config)
            changed = loaded.digest != self.live.digest
            if changed:
                async with self._discovery.following(loaded.config) as discovered:
                    arguments = (loaded.compiled.runtime, loaded.compiled.secrets, discovered)
                    await self._plane.call(server.reload, *arguments)
        except _Refused as error:
            raise ReloadError(str(error)) from error
        self._live = loaded
        return changed

    async def _load(self, source: str | Path | Config) -> Loaded:
        config = source if isinstance(source, Config) else await asyncio.to_thread(load_config, source)
        self._tried = config
        sockets = await self._handlers.serve(python_handlers(config), config.handler_folder)
        limits = {"open_files": self._open_files, "memory": await asyncio.to_thread(memory_limit)}
        compiled = await asyncio.to_thread(compile_runtime, config, sockets, **limits)
        return await asyncio.to_thread(Loaded.of, config, compiled)

    async def drain(self, timeout: float = DRAIN_TIMEOUT) -> bool:  # noqa: ASYNC109 - a bound, not a cancellation
        """Stop accepting, let connections finish for `timeout` seconds, then stop. Whether all of them finished."""
        server = self._plane.server
        if server is None:
            return True
        self._draining = True
        self._discovery.hurry()
        async with self._reloading:  # One that is under way is finished, and those that wait are refused.
            await self._plane.call(server.drain, timeout)
        deadline = time.monotonic() + timeout
        while server.active() and time.monotonic() < deadline and self._stopping is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _DRAIN_POLL)
        await self.stop()
        return self._cut_off == 0

    async def stop(self) -> None:
        """Close every connection at once."""
        server = self._plane.server
        if server is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(server))
        await asyncio.shield(self._stopping)

    async def _stop(self, server: _native.Server) -> None:
        self._cut_off = server.active()
        await self._discovery.close()
        await self._plane.call(server.stop)
        await self._plane.end()
        await self._handlers.close()
        self._stopped.set()

    async def serve_forever(self) -> None:
        """Wait until the gateway has been stopped or drained."""
        await self._stopped.wait()

    async def reopen_logs(self) -> None:
        """Open the access log's file anew, after logrotate has moved it."""
        await asyncio.to_thread(self._running().reopen_logs)

    @property
    def live(self) -> Loaded:
        """What is in force. StartError before `start`."""
        if self._live is None:
            raise StartError("the gateway has not been started")
        return self._live

    @property
    def files(self) -> frozenset[Path]:
        """Every file that is live, or would be: one that made a reload fail is among them."""
        tried = () if self._tried is None else named_files(self._tried)
        return self.live.compiled.files.union(tried)

    @property
    def addresses(self) -> dict[str, str]:
        """The bound `host:port` of each listener, by name."""
        return self._running().addresses()

    @property
    def state(self) -> str:
        """`starting`, `serving`, `draining` or `stopped`."""
        if self._stopped.is_set():
            return "stopped"
        if self._draining:
            return "draining"
        return "serving" if self._plane.server is not None else "starting"

    @property
    def active(self) -> int:
        """Connections open now, handshakes included."""
        return self._running().active()

    @property
    def handshakes(self) -> Handshakes:
        """How the storm gate stands; nobody waits at one that ends."""
        waiting, shed = self._running().handshakes()
        return Handshakes(waiting if self._stopping is None else 0, shed)

    def overload_changes(self) -> list[OverloadChange]:
        """What has changed since this was last asked, oldest first."""
        return [OverloadChange(*change) for change in self._running().overload_changes()]

    def metrics(self) -> str:
        """Every metric in Prometheus text format."""
        return self._running().metrics() + _reload_metrics(self.reloads) + self._discovery.metrics()

    def services(self) -> list[dict[str, Any]]:
        """What is known of each upstream that is discovered or checked: its instances, their health, and why."""
        return self._discovery.services()

    def alpn_rankings(self, decisions: int = 20) -> list[dict[str, Any]]:
        """The order of protocols of each listener and server name that is ranked, with reasons and so many of its last
        changes."""
        return self._discovery.rankings(decisions)

    def connections(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Open connections, the oldest first, `limit` at most."""
        found: list[dict[str, Any]] = json.loads(self._running().connections(limit))
        return found

    def certificates(self) -> list[dict[str, Any]]:
        """What is served to whom: each site's server names and certificates, by listener."""
        compiled = self.live.compiled
        runtime = json.loads(compiled.runtime)
        known = {one["id"]: describe(compiled.secrets[one["chain"]]) for one in runtime["certificates"]}
        return [
            {
                "listener": listener["name"],
                "names": site["names"],
                "default": at == listener["default_site"],
                "certificates": [{"file": name, **known[name]} for name in site["certificates"]],
            }
            for listener in runtime["listeners"]
            for at, site in enumerate(listener["sites"])
        ]

    def configuration(self) -> dict[str, Any]:
        """The configuration in force, every default filled in, secrets redacted."""
        return resolved(self.live.config)

    def status(self) -> dict[str, Any]:
        """State, listeners, the configuration's digest, and how the last reload went."""
        live, reloads, addresses = self.live, self.reloads, self.addresses
        document = live.config.document
        error = reloads.last_error
        return {
            "version": _native.version(),
            "state": self.state,
            "connections": self.active,
            "handshakes": asdict(self.handshakes),
            "listeners": [
                {
                    "name": one.name,
                    "address": addresses[one.name],
                    "protocols": [protocol.alpn for protocol in one.protocols],
                }
                for one in live.config.listeners
                if one.name in addresses
            ],
            "config": {
                "file": None if document is None else str(document.file.absolute()),
                "digest": live.digest,
                "loaded_at": live.at,
                "warnings": [str(one) for one in live.compiled.warnings],
            },
            "reloads": {
                "succeeded": reloads.succeeded,
                "failed": reloads.failed,
                "last_at": reloads.last_at,
                "last_error": None if error is None else str(error),
                "report": error.report.as_json() if isinstance(error, ConfigError) else None,
            },
        }

    def _running(self) -> _native.Server:
        if self._plane.server is None:
            raise StartError("the gateway has not been started")
        return self._plane.server


def digest(compiled: Compiled, config: Config, token: str | None) -> str:
    """SHA-256 of all that a gateway does by, in hex."""
    process = {"admin": config.admin.model_dump(mode="json"), "logging": config.logging.model_dump(mode="json")}
    parts = {
        "runtime": compiled.runtime.encode(),
        "process": json.dumps(process).encode(),
        "discovery": "\n".join(_discovered_by(config)).encode(),
        "token": (token or "").encode(),
        **compiled.secrets,
    }
    whole = hashlib.sha256()
    for name, value in sorted(parts.items()):
        whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(value).digest())
    return whole.hexdigest()


def _discovered_by(config: Config) -> Iterator[str]:
    """What upstreams and rankings are learned from, passwords included."""
    yield config.discovery.model_dump_json()
    for one in config.discovery.providers:
        yield from (secret.value.get_secret_value() for secret in one.secrets.values() if secret.value is not None)
        yield repr(sorted(fingerprint(named_files(one)).items()))
    yield from (upstream.model_dump_json() for upstream in config.upstreams)
    yield from (listener.alpn_ranking.model_dump_json() for listener in config.listeners if listener.alpn_ranking)


class _TokenError(Exception):
    """The admin endpoint's token cannot be read, or is none."""


_Refused = (_native.NativeError, _TokenError)


def _reveal(token: Secret) -> str:
    try:
        text = token.reveal()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _TokenError(f"cannot read admin.token from {token.file}: {reason}") from error
    except ValueError as error:
        raise _TokenError(f"cannot read admin.token from {token.file}: it is not text") from error
    if len(text) < _TOKEN_LENGTH:
        advice = "make one with 'openssl rand -hex 32'"
        raise _TokenError(f"admin.token is shorter than {_TOKEN_LENGTH} characters; {advice}")
    return text


def _reload_metrics(reloads: Reloads) -> str:
    """What the data plane cannot know, in the names that Prometheus itself uses for its configuration."""
    return (
        "# HELP mitu_config_reloads_total Reloads by result.\n"
        "# TYPE mitu_config_reloads_total counter\n"
        f'mitu_config_reloads_total{{result="success"}} {reloads.succeeded}\n'
        f'mitu_config_reloads_total{{result="failure"}} {reloads.failed}\n'
        "# HELP mitu_config_last_reload_successful Whether the last reload was not refused.\n"
        "# TYPE mitu_config_last_reload_successful gauge\n"
        f"mitu_config_last_reload_successful {int(reloads.last_error is None)}\n"
        "# HELP mitu_config_last_reload_success_timestamp_seconds When a configuration last became live.\n"
        "# TYPE mitu_config_last_reload_success_timestamp_seconds gauge\n"
        f"mitu_config_last_reload_success_timestamp_seconds {reloads.succeeded_at:.3f}\n"
    )
