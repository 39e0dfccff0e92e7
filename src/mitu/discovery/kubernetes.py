"""Kubernetes: the EndpointSlices of a service, listed, and watched from there on.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from mitu.config.discovery import Discover, KubernetesProvider
from mitu.discovery.endpoint_slices import snapshot
from mitu.discovery.instance import Snapshot
from mitu.discovery.kubernetes_api import CONNECT, LARGEST_PAGE, Api, GoneError, body, lines, message
from mitu.discovery.kubernetes_objects import EndpointSlice, EndpointSliceList, Event, Status, parse
from mitu.discovery.provider import Backoff, ProviderError

PAGE = 500
"""Slices in an answer to a list."""
MOST_PAGES = 20
LIST_SECONDS = 30.0
WATCH_SECONDS = 25.0
"""At most; then it is begun again where it ended, which is how an API server that has gone silent is noticed: one that
is there ends a watch in time. client-go pings over HTTP/2 instead (30 s, and 15 more), and TCP's keep-alives ask no
further than the next kernel, which a proxy or a server that hangs has too. A watch begun again costs the API server
2 ms of CPU, its TLS handshake included, and no list: where anything has changed, a bookmark 2 s before the end says
where to begin."""
GRACE = 5.0
"""Seconds beyond `WATCH_SECONDS` that a watch may be silent; then it is given up."""
_LISTS = 3

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class _Service:
    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"

    @property
    def selector(self) -> dict[str, str]:
        return {"labelSelector": f"kubernetes.io/service-name={self.name}"}

    def __str__(self) -> str:
        return f"the EndpointSlices of {self.namespace}/{self.name}"


class Kubernetes:
    """An API server, whose EndpointSlices are listed and watched."""

    kind = "kubernetes"

    def __init__(self, settings: KubernetesProvider) -> None:
        self._settings = settings
        self._api = Api(settings)

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        """`discover.service`: `namespace/name`, or `name` in the namespace of the settings, the context or the pod."""
        service = await self._service(discover.service)
        pause = Backoff()
        while True:
            known, version = await self._list(service)
            yield snapshot(known.values(), discover.port)
            try:
                while True:
                    begun = time.monotonic()
                    async with aclosing(self._events(service, version)) as events:
                        async for kind, one in events:
                            pause.reset()
                            version = one.metadata.resource_version
                            if kind == "DELETED":
                                known.pop(one.metadata.name, None)
                            elif kind in ("ADDED", "MODIFIED"):
                                known[one.metadata.name] = one
                            else:
                                continue
                            yield snapshot(known.values(), discover.port)
                    await pause.wait(time.monotonic() - begun)
            except GoneError:
                await pause.wait()

    async def close(self) -> None:
        """Nothing is held between requests."""

    async def _service(self, text: str) -> _Service:
        namespace, separator, name = text.rpartition("/")
        if not separator:
            namespace = self._settings.namespace or (await self._api.access()).namespace or "default"
        if not _NAME.fullmatch(namespace) or not _NAME.fullmatch(name):
            raise ProviderError(f"'{text}' is no service of Kubernetes; write namespace/name")
        return _Service(namespace, name)

    async def _list(self, service: _Service) -> tuple[dict[str, EndpointSlice], str]:
        """All slices by their names, and the version that they are of."""
        for _ in range(_LISTS):
            try:
                return await self._pages(service)
            except GoneError:
                # It took longer than the API server remembers what the pages are of.
                continue
        raise ProviderError(f"cannot list {service}: they are forgotten faster than they are read")

    async def _pages(self, service: _Service) -> tuple[dict[str, EndpointSlice], str]:
        known: dict[str, EndpointSlice] = {}
        asked = {**service.selector, "limit": str(PAGE)}
        for _ in range(MOST_PAGES):
            limits = aiohttp.ClientTimeout(total=LIST_SECONDS, sock_connect=CONNECT)
            async with self._api.get(service.path, asked, limits, f"list {service}") as response:
                data = await body(response, LARGEST_PAGE)
            # Megabytes of a large service would hold everything else up.
            page = await asyncio.to_thread(parse, EndpointSliceList, data, "the API server's list")
            known.update({one.metadata.name: one for one in page.items or ()})
            if not page.metadata.more:
                return known, page.metadata.resource_version
            asked["continue"] = page.metadata.more
        raise ProviderError(f"cannot list {service}: there are more than {MOST_PAGES * PAGE}")

    async def _events(self, service: _Service, version: str) -> AsyncGenerator[tuple[str, EndpointSlice]]:
        """What has happened since `version`, until the API server ends it. GoneError when it has forgotten it."""
        # Not all watches of a fleet at the same time.
        seconds = WATCH_SECONDS * random.uniform(0.8, 1)  # noqa: S311 - not a secret
        asked = {
            **service.selector,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        # Of silence, and not in all: an API server under load may let a watch wait before it begins.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=seconds + GRACE)
        async with (
            self._api.get(service.path, asked, limits, f"watch {service}") as response,
            aclosing(lines(response)) as events,
        ):
            async for line in events:
                event = parse(Event, line, "the API server's event")
                if event.type == "ERROR":
                    status = parse(Status, event.object, "the API server's error")
                    if status.code == 410:
                        raise GoneError
                    raise ProviderError(f"cannot watch {service}: {status.code}: {message(status)}")
                yield event.type, parse(EndpointSlice, event.object, "the API server's event")
