"""A gateway as a process: signals, file watching, the admin endpoint, systemd, and what it says of itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from mitu import systemd
from mitu.admin.server import AdminServer
from mitu.config.load import load_config
from mitu.errors import ConfigError, MituError
from mitu.gateway import DRAIN_TIMEOUT, Gateway
from mitu.watch import changes

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

    async def run(self) -> bool:
        """Serve until the end; whether every connection could finish. ConfigError or StartError when it cannot begin."""
        config = await asyncio.to_thread(load_config, self._file)
        names = [listener.name for listener in config.listeners]
        self._gateway = Gateway(self._file, inherited=systemd.inherited(names))
        await self._gateway.start()
        admin = AdminServer(self._gateway, self.drain)
        try:
            await admin.start()
            self._handle_signals()
            if self._watch:
                self._spawn(self._reload_on_change())
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

    def drain(self) -> None:
        """Begin the end, or, when it has begun already, end at once."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        else:
            log.warning("stopping at once: %d connections are cut off", self._gateway.active)
            self._finished_well = False
            self._spawn(self._gateway.stop())

    async def _end(self) -> None:
        self._notifier.stopping()
        active = self._gateway.active
        log.info("draining: %d connections have %g s to finish", active, self._drain_timeout)
        if not await self._gateway.drain(self._drain_timeout) and self._finished_well:
            self._finished_well = False
            log.warning("connections that had not finished in %g s were cut off", self._drain_timeout)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload("SIGHUP")))
        loop.add_signal_handler(signal.SIGUSR1, self._gateway.reopen_logs)
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        loop.add_signal_handler(signal.SIGINT, self.drain)

    async def _reload_on_change(self) -> None:
        async for _ in changes(lambda: self._gateway.live.compiled.files):
            await self._reload("a file has changed")

    async def _reload(self, why: str) -> None:
        begun = time.monotonic()
        self._notifier.reloading()
        try:
            changed = await self._gateway.reload()
        except ConfigError as error:
            log.error("not reloaded (%s), the last good configuration stays: %s", why, error)
        except MituError as error:
            log.error("not reloaded (%s), the last good configuration stays: %s", why, error)
        else:
            done = f"reloaded in {(time.monotonic() - begun) * 1e3:.0f} ms" if changed else "nothing to reload"
            log.info("%s (%s): configuration %.12s", done, why, self._gateway.live.digest)
            self._warn()
        self._notifier.ready(self._summary())

    def _say_ready(self, admin: AdminServer) -> None:
        live = self._gateway.live
        for listener in live.config.listeners:
            protocols = ", ".join(protocol.alpn for protocol in listener.protocols)
            log.info("%s serves %s on %s", listener.name, protocols, self._gateway.addresses[listener.name])
        log.info("admin on %s, configuration %.12s", admin.socket, live.digest)
        self._warn()
        self._notifier.ready(self._summary())

    def _warn(self) -> None:
        for warning in self._gateway.live.compiled.warnings:
            log.warning("%s", warning)

    def _summary(self) -> str:
        addresses = ", ".join(f"{name} on {address}" for name, address in self._gateway.addresses.items())
        return f"serving {addresses}; configuration {self._gateway.live.digest:.12}"

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
