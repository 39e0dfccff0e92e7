"""Talks to an etcd cluster over the JSON gateway of its v3 API.

https://etcd.io/docs/latest/dev-guide/api_grpc_gateway/: requests are POSTs of JSON, keys and values are base64, 64-bit
numbers are text, whatever is zero or false is left out. A watch answers with one JSON object a line.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp

from mitu.config.discovery import EtcdProvider
from mitu.discovery.http_answer import read_body, reason
from mitu.discovery.provider import ProviderError, tls_context

T = TypeVar("T")
Message = Mapping[str, Any]

_LONGEST_ANSWER = 16 << 20
_TOO_LONG = f"an answer of more than {_LONGEST_ANSWER >> 20} MiB"
_LONGEST_TOKEN = 8 << 10
_LONGEST_REASON = 200

_HEADERS = {
    # A member that has lost the others would otherwise keep a watch open, and be silent.
    "Grpc-Metadata-hasleader": "true",
    # What is read is bounded, and so nothing is to be packed.
    "Accept-Encoding": "identity",
}
_TOKEN_REFUSED = ("invalid auth token", "revision of auth store is old", "user name is empty")
_REVISION_GONE = ("required revision has been compacted", "required revision is a future revision")


class HistoryLostError(Exception):
    """The revision that was asked for is not there any more; what there is now has to be read anew."""


class _TokenRefusedError(ProviderError):
    """Another token may do."""


class Login:
    """A user's token, which all watches share: etcd's check of a password takes its time by design."""

    def __init__(self, settings: EtcdProvider) -> None:
        self._settings = settings
        self._token: str | None = None
        self._lock = asyncio.Lock()

    async def token(self, authenticate: Callable[[Message], Awaitable[Message]]) -> str:
        """What to send as `Authorization`; empty where there is no user, or the server wants to know none."""
        if self._settings.username is None or self._settings.password is None:
            return ""
        async with self._lock:
            if self._token is None:
                try:
                    password = await asyncio.to_thread(self._settings.password.reveal)
                except (OSError, UnicodeDecodeError) as error:
                    # A decoding error would show what it could not decode.
                    reason = str(error) if isinstance(error, OSError) else "its file is not UTF-8"
                    raise ProviderError(f"cannot read the password: {reason}") from None
                answer = await authenticate({"name": self._settings.username, "password": password})
                self._token = _checked_token(answer.get("token", ""))
            return self._token

    def refused(self, token: str) -> None:
        """`token` is no good any more, unless it has been replaced by now."""
        if self._token == token:
            self._token = None


class Watch:
    """The messages of one watch, as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._rest = bytearray()
        self._waiting: list[Message] = []

    async def confirmed(self) -> None:
        """Wait until the server says that it watches, which it does at once."""
        self._waiting = [message for message in await self.messages() if not message.get("created")]

    async def messages(self) -> list[Message]:
        """All that have come, at least one. ProviderError when the watch is over."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            return waiting
        while True:
            try:
                chunk = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise ProviderError(f"the watch has ended: {reason(error)}") from error
            if not chunk:
                raise ProviderError("the watch has ended")
            self._rest += chunk
            if b"\n" in chunk:
                whole, _, self._rest = self._rest.rpartition(b"\n")
                if messages := [_result(line) for line in whole.split(b"\n") if line.strip()]:
                    return messages
            if len(self._rest) > _LONGEST_ANSWER:
                raise ProviderError(f"a message of more than {_LONGEST_ANSWER >> 20} MiB")


class Gateway:
    """A cluster, at one of its addresses at a time: the next one after each failure."""

    def __init__(self, session: aiohttp.ClientSession, settings: EtcdProvider, login: Login, within: float) -> None:
        self._session = session
        self._addresses = settings.addresses
        self._server_name = settings.tls.server_name if settings.tls is not None else None
        self._login = login
        self._within = within
        self._at = 0

    @property
    def address(self) -> str:
        return self._addresses[self._at % len(self._addresses)]

    def turn(self) -> None:
        """To the next address from now on."""
        self._at += 1

    async def ask(self, path: str, body: Message) -> Message:
        """The answer of whichever address gives one. ProviderError, with the reason of each, when none does."""
        return await self._anywhere(lambda: self._authorized(lambda token: self._post(path, body, token)))

    @asynccontextmanager
    async def watch(self, create: Message) -> AsyncGenerator[Watch]:
        """A watch that the server has confirmed. HistoryLostError when it cannot begin where it should."""

        async def begin(token: str) -> tuple[aiohttp.ClientResponse, Watch]:
            response = await self._send("watch", {"create_request": create}, token)
            try:
                watch = Watch(response)
                await watch.confirmed()
            except BaseException:
                response.close()
                raise
            return response, watch

        response, watch = await self._anywhere(lambda: self._authorized(begin))
        try:
            yield watch
        finally:
            response.close()

    async def _anywhere(self, attempt: Callable[[], Awaitable[T]]) -> T:
        reasons = []
        for _ in self._addresses:
            try:
                async with asyncio.timeout(self._within):
                    return await attempt()
            except TimeoutError:
                reasons.append(f"{self.address}: no answer within {self._within:g} s")
            except (ProviderError, aiohttp.ClientError, OSError) as error:
                said = str(error) if isinstance(error, ProviderError) else reason(error)
                reasons.append(f"{self.address}: {said}")
            self.turn()
        raise ProviderError("; ".join(reasons))

    async def _authorized(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """With a token; with a new one when that is refused."""
        token = await self._login.token(self._authenticate)
        try:
            return await attempt(token)
        except _TokenRefusedError:
            self._login.refused(token)
        return await attempt(await self._login.token(self._authenticate))

    async def _authenticate(self, body: Message) -> Message:
        try:
            return await self._post("auth/authenticate", body, "")
        except ProviderError as error:
            # As etcd's own client does: users may be configured here before they are demanded there.
            if "authentication is not enabled" in str(error):
                return {}
            raise

    async def _post(self, path: str, body: Message, token: str) -> Message:
        async with await self._send(path, body, token) as response:
            return _object(await read_body(response, _LONGEST_ANSWER, _TOO_LONG))

    async def _send(self, path: str, body: Message, token: str) -> aiohttp.ClientResponse:
        response = await self._session.post(
            f"{self.address}/v3/{path}",
            json=body,
            headers={**_HEADERS, "Authorization": token} if token else _HEADERS,
            allow_redirects=False,
            server_hostname=self._server_name,
        )
        if response.status == 200:
            return response
        async with response:
            raise _refusal(await read_body(response, _LONGEST_ANSWER, _TOO_LONG), f"status {response.status}")


@asynccontextmanager
async def connected(settings: EtcdProvider, login: Login, within: float) -> AsyncGenerator[Gateway]:
    """A gateway that is asked until the block ends. `within`: for one answer of one address, in seconds.

    TLS files are read now. ProviderError when they cannot be.
    """
    secure = any(address.startswith("https:") for address in settings.addresses)
    context = await asyncio.to_thread(tls_context, settings.tls) if secure else True
    connector = aiohttp.TCPConnector(ssl=context)
    # Every wait has its own limit.
    timeout = aiohttp.ClientTimeout(total=None)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
        yield Gateway(session, settings, login, within)


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


def decoded(text: object) -> bytes:
    """ProviderError when that is no base64. None: it was left out, being empty."""
    try:
        return base64.b64decode(str(text or ""), validate=True)
    except ValueError:
        raise ProviderError("an answer with bad base64") from None


def number(text: object) -> int:
    """ProviderError when that is no number. None: it was left out, being zero."""
    try:
        return int(str(text or 0))
    except ValueError:
        raise ProviderError("an answer with a bad number") from None


def field(message: object, name: str, kind: type[T]) -> T:
    """What `message` has as `name`; empty when that is left out. ProviderError when it is of another kind."""
    if not isinstance(message, dict):
        raise ProviderError(f"an answer with no place for '{name}'")
    found = message.get(name)
    if found is None:
        return kind()
    if not isinstance(found, kind):
        raise ProviderError(f"an answer with a bad '{name}'")
    return found


def _object(data: bytes | bytearray) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ProviderError("an answer that is not a JSON object")
    return answer


def _result(line: bytes | bytearray) -> Message:
    """One message of a watch, which may be that it is over."""
    message = _object(line)
    if "error" in message:
        raise _refusal(json.dumps(message["error"]).encode(), "an error")
    result = field(message, "result", dict)
    if number(result.get("compact_revision")):
        raise HistoryLostError("compacted")
    if result.get("canceled"):
        raise _refused(str(result.get("cancel_reason", "the watch was canceled")))
    return result


def _refusal(data: bytes | bytearray, otherwise: str) -> Exception:
    """The error in an answer; `otherwise`, for a server that is not etcd."""
    try:
        said = _object(data)
    except ProviderError:
        return ProviderError(otherwise)
    return _refused(str(said.get("message") or said.get("error") or otherwise))


def _refused(reason: str) -> Exception:
    shown = "".join(one if one.isprintable() else "?" for one in reason[:_LONGEST_REASON])
    if any(known in reason for known in _REVISION_GONE):
        return HistoryLostError(shown)
    if any(known in reason for known in _TOKEN_REFUSED):
        return _TokenRefusedError(shown)
    return ProviderError(shown)


def _checked_token(token: object) -> str:
    text = str(token)
    if len(text) > _LONGEST_TOKEN or not (text.isascii() and text.isprintable()):
        raise ProviderError("a token that cannot be sent")
    return text
