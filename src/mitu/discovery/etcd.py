"""Instances in etcd: a range tells which there are, a watch what becomes of them.

An instance is at `PREFIX/SERVICE/INSTANCE`; what is deeper belongs to a service whose name has a slash. A lease that
ends deletes its keys, and so takes its instance out.

Whatever goes wrong with a watch, be it compaction, a member that goes, or silence, the range is read anew: that is
right without any history, costs one request, and is no news to anybody where nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from mitu.config.discovery import Discover, EtcdProvider
from mitu.discovery import etcd_value
from mitu.discovery.etcd_gateway import (
    Gateway,
    HistoryLostError,
    Login,
    Message,
    connected,
    decoded,
    encoded,
    field,
    number,
)
from mitu.discovery.instance import Instance, Snapshot
from mitu.discovery.provider import ProviderError

log = logging.getLogger("mitu")

_SILENCE = 15.0
"""Seconds without a word after which a watch is doubted. Servers tell that they are there every ten minutes, if they
are not told to do it more often (`--watch-progress-notify-interval`)."""

_TIMEOUT = 5.0
"""Seconds for one answer of one address."""

_PAGE = 500
_MOST = 10_000
"""Keys of a service."""

_MOST_FAILURES = 3
"""Watches in a row that fail before they have told anything."""


class Etcd:
    """`silence`, `timeout`: how long a watch may say nothing, and an answer may take, in seconds."""

    kind = "etcd"

    def __init__(self, settings: EtcdProvider, *, silence: float = _SILENCE, timeout: float = _TIMEOUT) -> None:
        self._settings = settings
        self._silence = silence
        self._timeout = timeout
        self._login = Login(settings)
        self._told: dict[bytes, dict[bytes, str]] = {}

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        prefix = f"{self._settings.prefix.removesuffix('/')}/{discover.service.strip('/')}/".encode()
        keys = _Keys(prefix, self._told.setdefault(prefix, {}))
        last: Snapshot | None = None
        async with (
            connected(self._settings, self._login, self._timeout) as gateway,
            aclosing(self._states(gateway, keys)) as states,
        ):
            async for _ in states:
                snapshot = keys.snapshot()
                if snapshot != last:
                    last = snapshot
                    yield snapshot

    async def close(self) -> None:
        """Connections end with their watches."""

    async def _states(self, gateway: Gateway, keys: _Keys) -> AsyncGenerator[None]:
        """Each time that `keys` may have changed and is whole."""
        failures = 0
        while True:
            try:
                revision = await keys.read(gateway)
                yield
                async with aclosing(self._changes(gateway, keys, revision + 1)) as changes:
                    async for _ in changes:
                        failures = 0
                        yield
                failures = 0
            except HistoryLostError as error:
                failures += 1
                if failures > _MOST_FAILURES:
                    raise ProviderError(f"{gateway.address}: what was read is compacted at once: {error}") from error
            except _WatchError as error:
                failures += 1
                if failures > _MOST_FAILURES:
                    raise ProviderError(f"{gateway.address}: {error}") from error
                gateway.turn()

    async def _changes(self, gateway: Gateway, keys: _Keys, revision: int) -> AsyncGenerator[None]:
        """Watches from `revision` on; ends when there has been silence for too long."""
        # Not all gateways at one time, when a server's end has made them begin at one time.
        silence = self._silence * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret
        async with gateway.watch(keys.create(revision)) as watch:
            while True:
                try:
                    async with asyncio.timeout(silence):
                        messages = await watch.messages()
                    changed = keys.apply(messages)
                except TimeoutError:
                    return
                except ProviderError as error:
                    raise _WatchError(str(error)) from error
                if changed:
                    yield


class _WatchError(Exception):
    """A watch that was running has come to an end, and another address may have a better one."""


class _Keys:
    """The instances at the keys under `prefix`. `told`: what has been said of values that cannot be read."""

    def __init__(self, prefix: bytes, told: dict[bytes, str]) -> None:
        self._prefix = prefix
        # A slash is last, and this is the first key after all that begin with it.
        self._end = prefix[:-1] + b"0"
        self._values: dict[bytes, bytes] = {}
        self._instances: dict[bytes, Instance] = {}
        self._told = told
        self._changed = False

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self._instances.values())

    def create(self, revision: int) -> Message:
        """The request to watch what happens from `revision` on."""
        return {
            "key": encoded(self._prefix),
            "range_end": encoded(self._end),
            "start_revision": str(revision),
            "progress_notify": True,
            "fragment": True,
        }

    async def read(self, gateway: Gateway) -> int:
        """Read all, as it was at one revision, which is returned. HistoryLostError when it is compacted meanwhile."""
        found: dict[bytes, bytes] = {}
        first, revision = self._prefix, 0
        while True:
            page = await gateway.ask(
                "kv/range",
                {
                    "key": encoded(first),
                    "range_end": encoded(self._end),
                    "limit": str(_PAGE),
                    "revision": str(revision),
                },
            )
            revision = revision or number(field(page, "header", dict).get("revision"))
            pairs = [_pair(one) for one in field(page, "kvs", list)]
            found.update(pairs)
            self._bound(found)
            if not page.get("more"):
                break
            if not pairs or pairs[-1][0] < first:
                raise ProviderError(f"{gateway.address}: a range whose pages do not go on")
            first = pairs[-1][0] + b"\0"
        for key in (self._values.keys() | self._told.keys()) - found.keys():
            self._delete(key)
        for key, value in found.items():
            self._put(key, value)
        self._changed = False
        return revision

    def apply(self, messages: Iterable[Message]) -> bool:
        """Take in what a watch tells. False where nothing has changed, or more of one change is to come."""
        fragment = False
        for message in messages:
            for event in field(message, "events", list):
                key, value = _pair(field(event, "kv", dict))
                if event.get("type") == "DELETE":
                    self._delete(key)
                else:
                    self._put(key, value)
                self._changed = True
            fragment = bool(message.get("fragment"))
        self._bound(self._values)
        if fragment:
            return False
        changed, self._changed = self._changed, False
        return changed

    def _put(self, key: bytes, value: bytes) -> None:
        name = key.removeprefix(self._prefix)
        if name == key or not name or b"/" in name or self._values.get(key) == value:
            return
        self._values[key] = value
        try:
            self._instances[key] = etcd_value.instance(name.decode(errors="backslashreplace"), value)
        except etcd_value.UnreadableError as error:
            self._instances.pop(key, None)
            reason = str(error)
            if self._told.get(key) != reason:
                self._told[key] = reason
                log.warning("etcd: %r is left out: %s", key.decode(errors="backslashreplace"), reason)
        else:
            self._told.pop(key, None)

    def _delete(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._instances.pop(key, None)
        self._told.pop(key, None)

    def _bound(self, values: dict[bytes, bytes]) -> None:
        if len(values) > _MOST:
            raise ProviderError(f"more than {_MOST} keys under {self._prefix.decode()!r}")


def _pair(pair: object) -> tuple[bytes, bytes]:
    if not isinstance(pair, dict):
        raise ProviderError("an answer whose keys cannot be read")
    return decoded(pair.get("key")), decoded(pair.get("value"))
