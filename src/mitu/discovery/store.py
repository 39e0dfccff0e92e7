"""What was last known of a service, on disk: it holds while its registry cannot be asked, and through restarts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mitu.discovery.instance import Instance, Snapshot

log = logging.getLogger("mitu")

_VERSION = 1
_LARGEST = 64 << 20
_DIGEST = 12
_SAVE_EVERY = 1.0
_NUMBERS = itertools.count()
_AT_ONCE = 16
"""Configurations of which something may be written at one time."""
_INSTANCES = TypeAdapter(tuple[Instance, ...])


def default_folder() -> Path:
    """`$STATE_DIRECTORY/discovery` (systemd), else `mitu/discovery` in `$XDG_STATE_HOME` or `~/.local/state`."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0]) / "discovery"
    system = Path("/var/lib/mitu/discovery")
    if os.geteuid() == 0 and "XDG_STATE_HOME" not in os.environ:
        return system
    try:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # A user without a home.
        return system
    return Path(home) / "mitu" / "discovery"


@dataclass(frozen=True, slots=True)
class Kept:
    """A state from before."""

    snapshot: Snapshot
    at: float
    """Unix time at which it was known to be so."""


class Store:
    """One file for each service that an upstream is looked for in. `source`: the provider's settings and the service.

    A folder that cannot be written to is no reason not to serve: it is said once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._complained = False
        # Who follows an upstream, and who is about to, may both be writing.
        self._number = next(_NUMBERS) % _AT_ONCE

    def load(self, upstream: str, source: Mapping[str, Any]) -> Kept | None:
        """What is kept of `upstream`, if it came from there."""
        file = self._file(upstream, source)
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):
                # Reading a pipe would keep the gateway from starting.
                raise ValueError("it is no regular file")
            if found.st_size > _LARGEST:
                raise ValueError("it is too large")
            document = json.loads(file.read_bytes())
            if document["version"] != _VERSION or document["source"] != source:
                return None
            return Kept(Snapshot.of(_INSTANCES.validate_python(document["instances"])), float(document["at"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("what was last known of '%s' cannot be used: %s: %s", upstream, file, error)
            return None

    def save(self, upstream: str, source: Mapping[str, Any], snapshot: Snapshot, at: float) -> None:
        """In one step: whoever reads it finds the whole of this state or of the one before."""
        instances = [_document(one) for one in snapshot.instances]
        document = {"version": _VERSION, "source": source, "at": at, "instances": instances}
        file = self._file(upstream, source)
        new = file.with_suffix(f".{self._number}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Metadata may hold what is nobody else's business.
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
                json.dump(document, output)
            new.replace(file)
            self._complained = False
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            if not self._complained:
                log.warning("what is known of upstreams is not kept for the next start: %s", error)
            self._complained = True

    def forget(self, upstream: str, source: Mapping[str, Any]) -> None:
        """Nobody looks there any more."""
        try:
            self._file(upstream, source).unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s", error)

    def _file(self, upstream: str, source: Mapping[str, Any]) -> Path:
        # Names of upstreams are letters, digits, and these; no path can be made of them.
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", upstream)
        # A configuration that is tried and refused leaves alone what the live one needs.
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:_DIGEST]
        return self.folder / f"{name}-{digest}.json"


class Memory:
    """What a store keeps of one upstream: written in a thread, and not more often than every second.

    One write at a time: a disk that hangs must not take all threads of the process.
    """

    def __init__(self, store: Store, upstream: str, source: Mapping[str, Any]) -> None:
        self.source = source
        self._store, self._upstream = store, upstream
        self._wanted: tuple[Snapshot, float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._saved_at = -_SAVE_EVERY

    def load(self) -> Kept | None:
        return self._store.load(self._upstream, self.source)

    def save(self, snapshot: Snapshot, at: float) -> None:
        """Soon. `at`: Unix time."""
        self._wanted = snapshot, at
        if self._timer is None and self._writing is None:
            wait = max(0.0, self._saved_at + _SAVE_EVERY - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._save_now)

    def _save_now(self) -> None:
        self._timer, self._saved_at = None, time.monotonic()
        self._writing = asyncio.create_task(self._write())
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Task[None]) -> None:
        self._writing = None
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("what is known of '%s' is not kept", self._upstream, exc_info=error)
        if self._wanted is not None:
            self.save(*self._wanted)

    async def _write(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            await asyncio.to_thread(self._store.save, self._upstream, self.source, *wanted)

    async def close(self) -> None:
        """What is still to be written is."""
        await self._idle()
        await self._write()

    def abandon(self) -> None:
        """Somebody else keeps it from here on."""
        self._wanted = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def forget(self) -> None:
        """Nobody looks there any more."""
        self.abandon()
        await self._idle()
        await asyncio.to_thread(self._store.forget, self._upstream, self.source)

    async def _idle(self) -> None:
        """Once nothing is being written; nothing is from here on, unless it is asked for."""
        while self._writing is not None:
            await asyncio.wait((self._writing,))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _document(one: Instance) -> dict[str, Any]:
    return {
        "id": one.id,
        "address": one.address,
        "weight": one.weight,
        "protocols": one.protocols,
        "health": int(one.health),
        "reason": one.reason,
        "zone": one.zone,
        "metadata": one.metadata,
        "name": one.name,
    }
