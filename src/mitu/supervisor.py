"""A gateway as a process: signals, file watching, the admin endpoint, systemd, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from mitu import logs, systemd
from mitu.admin.server import AdminServer
from mitu.config.load import load_config
from mitu.config.model import Config
from mitu.errors import MituError, ReloadError
from mitu.gateway import DRAIN_TIMEOUT, Gateway
from mitu.overload import overloads
from mitu.storm import storms
from mitu.watch import Fingerprint, changes, fingerprint, named_files

log = logging.getLogger("mitu")


class Supervisor:
    """Runs the gateway of one configuration file until it is told to end.

    SIGHUP reloads, SIGUSR1 reopens logs; the first SIGTERM or SIGINT drains for at most `drain_timeout` seconds, the
    second ends at once. `watch`: reload when the configuration, or a file that it names, has new content.
    """

    def __init__(self, file: Path, *, drain_timeout: float = DRAIN_TIMEOUT, watch: bool = True) -> None:
        self._file = file
        self._drain_timeout = drain_timeout
        self._watch = watch
        self._notifier = systemd.Notifier()
        self._ending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished_well = True
        self._warned: frozenset[str] = frozenset()

    async def run(self) -> bool:
        """Serve until the end; whether every connection could finish. A MituError says why it cannot begin."""
        config = await asyncio.to_thread(load_config, self._file)
        logs.configure(config.logging)
        known = await asyncio.to_thread(fingerprint, [self._file.absolute(), *named_files(config)])
        names = [listener.name for listener in config.listeners]
        self._gateway = Gateway(self._file, inherited=systemd.inherited(names), admit=self._admit)
        admin = AdminServer(self._gateway, config.admin, reload=self.reload, drain=self.drain)
        try:
            admin.claim()
            await self._gateway.start()
            await admin.start()
            self._handle_signals()
            self._spawn(storms(lambda: self._gateway.handshakes))
            self._spawn(overloads(self._gateway.overload_changes))
            if self._watch:
                self._spawn(self._reload_on_change(known))
            self._say_ready(admin)
            await self._gateway.serve_forever()
            if self._ending is not None:
                await self._ending
        finally:
            for task in self._tasks:
                task.cancel()
            await self._gateway.stop()
            await admin.stop()
        log.info("stopped")
        return self._finished_well

    async def reload(self, why: str) -> bool:
        """Reload the file and say how it went. Whether anything changed; MituError when it was refused."""
        begun = time.monotonic()
        self._notifier.reloading()
        try:
            changed = await self._gateway.reload()
        except MituError as error:
            log.error("not reloaded (%s), the last good configuration stays: %s", why, error)
            raise
        finally:
            # For systemd a reload that was refused is over as well, and the service as ready as it was.
            if self._ending is None:
                self._notifier.ready(self._summary())
        done = f"reloaded in {(time.monotonic() - begun) * 1e3:.0f} ms" if changed else "nothing to reload"
        log.info("%s (%s): configuration %.12s", done, why, self._gateway.live.digest)
        logs.configure(self._gateway.live.config.logging)
        self._warn()
        return changed

    def drain(self) -> None:
        """Begin the end; nothing when it has begun already."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        self._notifier.stopping()
        active = self._gateway.active
        log.info("draining: %d connections have %g s to finish", active, self._drain_timeout)
        self._finished_well = await self._gateway.drain(self._drain_timeout)
        if not self._finished_well:
            log.warning("connections that had not finished were cut off")

    def _told_to_end(self) -> None:
        if self._ending is None:
            self.drain()
        elif self._gateway.state != "stopped":
            log.info("stopping at once")
            self._spawn(self._gateway.stop())

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._try_to_reload("SIGHUP")))
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._spawn(self._gateway.reopen_logs()))
        loop.add_signal_handler(signal.SIGTERM, self._told_to_end)
        loop.add_signal_handler(signal.SIGINT, self._told_to_end)

    async def _reload_on_change(self, known: Fingerprint) -> None:
        async for _ in changes(lambda: self._gateway.files, known):
            await self._try_to_reload("a file has changed")

    async def _try_to_reload(self, why: str) -> None:
        with contextlib.suppress(MituError):  # It is in the log, and in the status.
            await self.reload(why)

    def _admit(self, new: Config) -> None:
        live = self._gateway.live.config.admin
        for name in ("socket", "listen"):
            if getattr(new.admin, name) != getattr(live, name):
                raise ReloadError(f"cannot change admin.{name} without a restart")

    def _say_ready(self, admin: AdminServer) -> None:
        live = self._gateway.live
        for listener in live.config.listeners:
            protocols = ", ".join(protocol.alpn for protocol in listener.protocols)
            log.info("%s serves %s on %s", listener.name, protocols, self._gateway.addresses[listener.name])
        log.info("admin on %s, configuration %.12s", admin.where, live.digest)
        self._warn()
        self._notifier.ready(self._summary())

    def _warn(self) -> None:
        """What the configuration before this one did not give reason to say."""
        warnings = [str(one) for one in self._gateway.live.compiled.warnings]
        for warning in warnings:
            if warning not in self._warned:
                log.warning("%s", warning)
        self._warned = frozenset(warnings)

    def _summary(self) -> str:
        addresses = ", ".join(f"{name} on {address}" for name, address in self._gateway.addresses.items())
        return f"serving {addresses}; configuration {self._gateway.live.digest:.12}"

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the gateway failed", exc_info=error)
