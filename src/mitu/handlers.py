"""Python protocol handlers: coroutines that speak a private protocol with clients.

A handler is served from a Unix socket in a private folder. The data plane relays the decrypted bytes to it as to any
upstream, behind a PROXY v2 header that says whose connection it is. So a handler that waits or fails costs its own
connections and nothing else. One that computes for long, or blocks, holds up the event loop that it shares with the
other handlers, the admin endpoint and reloads; what the data plane serves by itself goes on all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import logging
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mitu import proxy_protocol
from mitu.errors import HandlerError
from mitu.proxy_protocol import Connection

log = logging.getLogger("mitu.handlers")

Handler = Callable[..., Awaitable[None]]

_BACKLOG = 1024
_CLEANING_UP = 2.0
"""Seconds that a handler which is cancelled may take to end."""


@dataclass(slots=True)
class _Served:
    server: asyncio.Server
    socket: Path
    open: set[asyncio.Task[None]]


class HandlerServers:
    """The handlers that are being served, each on a socket of its own.

    One that a reload removes is served on: connections that began before the reload may only now come to it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._served: dict[str, _Served] = {}

    async def serve(self, names: Iterable[str], folder: Path | None = None) -> dict[str, Path]:
        """Serve those of `names` that are not served yet; the socket of each. HandlerError when one cannot be.

        `folder`: where their modules are looked for first.
        """
        return {name: (self._served.get(name) or await self._serve(name, folder)).socket for name in names}

    async def _serve(self, name: str, folder: Path | None) -> _Served:
        handler = load(name, folder)
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await _run(name, handler, reader, writer)

        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="mitu-"))  # mode 0700
            socket = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.sock"
            server = await asyncio.start_unix_server(accept, socket, backlog=_BACKLOG)
        except OSError as error:
            raise HandlerError(f"handler '{name}': cannot make its socket: {error.strerror or error}") from error
        self._served[name] = _Served(server, socket, tasks)
        return self._served[name]

    async def close(self) -> None:
        """Stop all of them and cancel what is open, which has a moment for its own cleaning up."""
        ending: set[asyncio.Task[None]] = set()
        for served in self._served.values():
            served.server.close()
            ending |= served.open
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending, timeout=_CLEANING_UP)
        self._served.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def load(name: str, folder: Path | None = None) -> Handler:
    """The coroutine function behind `module:function`. HandlerError says what is wrong with it.

    `folder` goes to the front of `sys.path` and stays there, as the module may import its neighbours later.
    """
    module, _, function = name.partition(":")
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found: Any = import_module(module)
    except ImportError as error:
        advice = "put it beside the configuration, or install it"
        raise HandlerError(f"handler '{name}': {error}; {advice}") from error
    except Exception as error:
        raise HandlerError(f"handler '{name}': importing '{module}' fails: {type(error).__name__}: {error}") from error
    for part in function.split("."):
        found = getattr(found, part, None)
    if not inspect.iscoroutinefunction(found):
        raise HandlerError(f"handler '{name}' is not an 'async def' function of '{module}'")
    takes = len(inspect.signature(found).parameters)
    if takes not in (2, 3):
        raise HandlerError(f"handler '{name}' must take (reader, writer) or (reader, writer, connection)")
    handler: Handler = found
    if takes == 3:
        return handler

    async def without_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Connection) -> None:
        await handler(reader, writer)

    return without_connection


async def _run(name: str, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        connection = await proxy_protocol.read(reader)
        await handler(reader, writer, connection)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # The client has gone; nothing is left to do for it.
    except (Exception, SystemExit):  # sys.exit() is the handler's own end, not the gateway's.
        log.exception("the handler '%s' failed", name)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
