"""The gateway's lifecycle: start, reload, drain, stop.

    async with mitu.Gateway("mitu.yaml") as gateway:
        print(gateway.addresses)
        await gateway.serve_forever()

Python compiles the configuration; the data plane (`mitu._native`) makes it live, whole or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mitu import _native
from mitu.certificates import describe
from mitu.config.compile import Compiled, compile_runtime, python_handlers
from mitu.config.load import load_config
from mitu.config.model import Config
from mitu.config.resolve import resolved
from mitu.errors import ConfigError, MituError, ReloadError, StartError
from mitu.handlers import HandlerServers

DRAIN_TIMEOUT = 30.0
"""Seconds that connections may take to finish once a drain has begun."""

_DRAIN_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that is live, or was."""

    config: Config
    compiled: Compiled
    digest: str
    """SHA-256 of the runtime configuration and all key material: equal digests behave alike."""
    at: float
    """Unix time."""

    @classmethod
    def of(cls, config: Config, compiled: Compiled) -> Loaded:
        return cls(config, compiled, digest(compiled), time.time())


@dataclass(slots=True)
class Reloads:
    """How reloads went."""

    succeeded: int = 0
    failed: int = 0
    last_error: MituError | None = None
    """Why the last reload was refused; None when it was not."""
    last_at: float | None = None
    succeeded_at: float = field(default_factory=time.time)


class Gateway:
    """A gateway in this process. `config`: a configuration file's path, or a `Config` built in code.

    `inherited`: file descriptors of listening sockets by listener name (systemd), which the gateway takes over.
    """

    def __init__(self, config: str | Path | Config, *, inherited: Mapping[str, list[int]] | None = None) -> None:
        self._source = config
        self._inherited = {name: list(fds) for name, fds in (inherited or {}).items()}
        self._handlers = HandlerServers()
        self._reloading = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._server: _native.Server | None = None
        self._live: Loaded | None = None
        self._draining = False
        self.reloads = Reloads()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()

    async def start(self) -> None:
        """Begin to serve. ConfigError or StartError when that cannot be; nothing is left open then."""
        config = await asyncio.to_thread(_load, self._source)
        try:
            compiled = await self._compile(config)
            self._server = await asyncio.to_thread(
                _native.start, compiled.runtime, compiled.secrets, self._inherited
            )
        except _native.NativeError as error:
            await self._handlers.close()
            raise StartError(str(error)) from error
        except BaseException:
            await self._handlers.close()
            raise
        self._live = Loaded.of(config, compiled)
        self.reloads.succeeded_at = self._live.at

    async def reload(self, new: str | Path | Config | None = None) -> bool:
        """Make `new`, or the file as it now is, live for new connections. Whether anything changed.

        ConfigError or ReloadError when it is refused: then everything stays as it was.
        """
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
        config = await asyncio.to_thread(_load, source)
        try:
            loaded = Loaded.of(config, await self._compile(config))
            changed = loaded.digest != self.live.digest
            if changed:
                await asyncio.to_thread(server.reload, loaded.compiled.runtime, loaded.compiled.secrets)
        except _native.NativeError as error:
            raise ReloadError(str(error)) from error
        else:
            self._live = loaded
        finally:
            await self._handlers.keep(python_handlers(self.live.config))
        return changed

    async def _compile(self, config: Config) -> Compiled:
        sockets = await self._handlers.serve(python_handlers(config))
        return await asyncio.to_thread(compile_runtime, config, sockets)

    async def drain(self, timeout: float = DRAIN_TIMEOUT) -> bool:  # noqa: ASYNC109 - a bound, not a cancellation
        """Stop accepting, let connections finish for `timeout` seconds, then stop. Whether all of them finished."""
        server = self._server
        if server is None or self._stopped.is_set():
            return True
        self._draining = True
        await asyncio.to_thread(server.drain)
        deadline = time.monotonic() + timeout
        while (active := server.active()) and time.monotonic() < deadline and not self._stopped.is_set():
            await asyncio.sleep(_DRAIN_POLL)
        await self.stop()
        return active == 0

    async def stop(self) -> None:
        """Close every connection at once."""
        if self._server is not None and not self._stopped.is_set():
            self._stopped.set()
            await asyncio.to_thread(self._server.stop)
            await self._handlers.close()

    async def serve_forever(self) -> None:
        """Wait until the gateway has been stopped or drained."""
        await self._stopped.wait()

    def reopen_logs(self) -> None:
        """Open the access log's file anew, after logrotate has moved it."""
        self._running().reopen_logs()

    @property
    def live(self) -> Loaded:
        """What is in force. StartError before `start`."""
        if self._live is None:
            raise StartError("the gateway has not been started")
        return self._live

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
        return "serving" if self._server is not None else "starting"

    @property
    def active(self) -> int:
        """Connections open now, handshakes included."""
        return self._running().active()

    def metrics(self) -> str:
        """Every metric in Prometheus text format."""
        return self._running().metrics() + _reload_metrics(self.reloads)

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
                "file": None if document is None else str(document.file),
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
        if self._server is None:
            raise StartError("the gateway has not been started")
        return self._server


def digest(compiled: Compiled) -> str:
    """SHA-256 of a runtime configuration with its key material, in hex."""
    whole = hashlib.sha256(compiled.runtime.encode())
    for name, value in sorted(compiled.secrets.items()):
        whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(value).digest())
    return whole.hexdigest()


def _load(source: str | Path | Config) -> Config:
    return source if isinstance(source, Config) else load_config(source)


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
