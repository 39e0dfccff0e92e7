"""Asks Consul's HTTP API how a service is, and waits there for something new.

The rules are those of https://developer.hashicorp.com/consul/api-docs/features/blocking.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import aiohttp

from mitu.config.discovery import ConsulProvider, Discover
from mitu.discovery.consul_entries import Found, one_line, read
from mitu.discovery.http_answer import read_body, reason
from mitu.discovery.provider import ProviderError, tls_context

LARGEST_ANSWER = 64 << 20
"""Bytes: some 40,000 instances."""
_TOO_LONG = f"an answer of more than {LARGEST_ANSWER >> 20} MiB; a 'tag' makes it smaller"
_LARGEST_REFUSAL = 4096
_LARGEST_INDEX = 1 << 64
_CONNECT = 10.0
"""Seconds for a connection."""

_PERMISSION = "give it a 'token' that has service:read and node:read"
_API = "its 'address' is to be that of a Consul agent's HTTP API"
_ADVICE = {
    400: "its 'datacenter' and 'namespace' are to be ones that it has",
    401: _PERMISSION,
    403: _PERMISSION,
    429: "raise 'limits.http_max_conns_per_client' of its agent: each service holds a connection",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What Consul says, and `index`: of which state."""

    found: Found
    index: int
    hidden: bool
    """Its ACLs hide some of it. Consul tells it only to who has a token, and has not waited for the answer."""
    spent: float
    """Seconds of processor time."""


class Query:
    """One service. `margin`: seconds that Consul may take, beyond what a query waits for a change."""

    def __init__(
        self, session: aiohttp.ClientSession, settings: ConsulProvider, discover: Discover, token: str, margin: float
    ) -> None:
        self._session = session
        self._address = settings.address
        self._url = f"{settings.address}/v1/health/service/{quote(discover.service, safe='')}"
        parts = {"dc": settings.datacenter, "ns": settings.namespace, "tag": discover.tag}
        self._parameters = {name: value for name, value in parts.items() if value is not None}
        self._tag = discover.tag
        self._wait = settings.wait.total_seconds()
        self._margin = margin
        self._token = token
        self._server_name = settings.tls.server_name if settings.tls is not None else None

    async def ask(self, index: int) -> Answer:
        """How the service is once it is not as at `index` any more, or the wait is over; how it is now, for 0.

        ProviderError when there is no answer in time, or one that is of no use.
        """
        waiting = {"index": str(index), "wait": f"{self._wait * 1e3:.0f}ms"} if index else {}
        # Consul adds up to a sixteenth, so that not all who have begun at one time are answered at one time.
        limit = self._margin + (self._wait * 17 / 16 if index else 0)
        try:
            async with (
                asyncio.timeout(limit),
                self._session.get(
                    f"{self._url}?{urlencode(self._parameters | waiting)}",
                    allow_redirects=False,
                    server_hostname=self._server_name,
                ) as response,
            ):
                return await self._answer(response)
        except ProviderError as error:
            raise ProviderError(f"{self._address}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            why = f"no answer within {limit:g} s" if isinstance(error, TimeoutError) else reason(error)
            raise ProviderError(f"{self._address}: {why}") from error

    async def _answer(self, response: aiohttp.ClientResponse) -> Answer:
        begun = time.thread_time()
        if response.status != 200:
            raise ProviderError(await self._refusal(response))
        headers = response.headers
        index = _index(headers.get("X-Consul-Index", ""))
        found = read(await read_body(response, LARGEST_ANSWER, _TOO_LONG), self._tag)
        # Who has no token is not told that anything is hidden, yet where nobody may see anything it probably is.
        guarded = headers.get("X-Consul-Default-ACL-Policy") == "deny"
        hidden = headers.get("X-Consul-Results-Filtered-By-ACLs") == "true"
        nothing = not (found.instances or found.left_out)
        if nothing and (hidden or (guarded and not self._token)):
            raise ProviderError(f"its ACLs hide the service, if there is one; {_PERMISSION}")
        return Answer(found, index, hidden, time.thread_time() - begun)

    async def _refusal(self, response: aiohttp.ClientResponse) -> str:
        text = (await response.content.read(_LARGEST_REFUSAL)).decode(errors="replace")
        # Whatever stands in between might repeat what it was sent.
        said = one_line(text.replace(self._token, "(token)") if self._token else text)
        advice = _ADVICE.get(response.status, "the log of its agent tells more" if response.status >= 500 else _API)
        status = f"status {response.status}"
        return f"{status}: {said}; {advice}" if said else f"{status}; {advice}"


@asynccontextmanager
async def connected(settings: ConsulProvider, discover: Discover, margin: float) -> AsyncGenerator[Query]:
    """Asked until the block ends. Its token and TLS files are read now: ProviderError when they cannot be."""
    token = await asyncio.to_thread(_token, settings)
    secure = settings.address.startswith("https:")
    # What is read is bounded, and so nothing is to be packed.
    headers = {"Accept-Encoding": "identity"} | ({"X-Consul-Token": token} if token else {})
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=await asyncio.to_thread(tls_context, settings.tls) if secure else True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        auto_decompress=False,
        # An answer is megabytes long, and comes from next door.
        read_bufsize=1 << 20,
    ) as session:
        yield Query(session, settings, discover, token, margin)


def _token(settings: ConsulProvider) -> str:
    if settings.token is None:
        return ""
    try:
        token = settings.token.reveal()
    except (OSError, UnicodeDecodeError) as error:
        # A decoding error would show what it could not decode.
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ProviderError(f"cannot read the token: {reason}") from None
    if not (token.isascii() and token.isprintable()):
        raise ProviderError("a token that cannot be sent: it is not printable ASCII")
    return token


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < _LARGEST_INDEX):
        raise ProviderError(f"an answer without an index; {_API}")
    return int(text)
