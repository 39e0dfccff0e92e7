"""The admin endpoint: HTTP on a Unix socket that only its owner can open, and on loopback TCP when asked for.

The socket is guarded by a lock that its process holds, so that two gateways never take it from each other, and one
that was left behind by a killed process is replaced.
"""

from __future__ import annotations

import fcntl
import hmac
import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from mitu.config.types import split_host_port
from mitu.errors import ConfigError, MituError, StartError
from mitu.gateway import Gateway

_MAX_BODY = 64 * 1024


class AdminServer:
    """Serves `gateway`. `drain`: begins the end of the process, which is the supervisor's to do."""

    def __init__(self, gateway: Gateway, drain: Callable[[], None]) -> None:
        self._gateway = gateway
        self._drain = drain
        self._runners: list[web.AppRunner] = []
        self._lock: int | None = None
        self.socket = gateway.live.config.admin.socket_path

    async def start(self) -> None:
        """StartError when another gateway has the socket, or it cannot be made."""
        admin = self._gateway.live.config.admin
        self._take_socket()
        runner = await self._runner(token=None)
        # The mode counts from the first moment: a umask, not a chmod afterwards.
        umask = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(self.socket)).start()
        except OSError as error:
            raise StartError(f"cannot make the admin socket {self.socket}: {error.strerror or error}") from error
        finally:
            os.umask(umask)
        if admin.listen is not None and admin.token is not None:
            await self._listen(admin.listen, admin.token.reveal())

    async def _listen(self, listen: str, token: str) -> None:
        host, port = split_host_port(listen) or ("127.0.0.1", 0)
        runner = await self._runner(token)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise StartError(f"cannot bind admin.listen {listen}: {error.strerror or error}") from error

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._lock is not None:
            self.socket.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _take_socket(self) -> None:
        lock = self.socket.with_name(f"{self.socket.name}.lock")
        try:
            self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = "set admin.socket to a path that this user can write"
            raise StartError(f"cannot make {lock}: {error.strerror}; {hint}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._lock, 32).decode("ascii", "replace").strip()
            os.close(self._lock)
            self._lock = None
            message = f"the gateway with process id {pid} has the admin socket {self.socket}"
            raise StartError(f"{message}; set admin.socket to another path, or stop that gateway") from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self.socket.unlink(missing_ok=True)

    async def _runner(self, token: str | None) -> web.AppRunner:
        guards = [] if token is None else [_guard(token)]
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors, *guards])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/status", self._status),
                web.get("/metrics", self._metrics),
                web.get("/connections", self._connections),
                web.get("/certificates", self._certificates),
                web.get("/config", self._config),
                web.post("/reload", self._reload),
                web.post("/drain", self._begin_drain),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        state = self._gateway.state
        return web.Response(text=f"{state}\n", status=200 if state == "serving" else 503)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response({"pid": os.getpid(), **self._gateway.status()})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self._gateway.metrics(), content_type="text/plain", charset="utf-8")

    async def _connections(self, request: web.Request) -> web.Response:
        try:
            limit = int(request.query.get("limit", "1000"))
        except ValueError:
            limit = 0
        if not 1 <= limit <= 100_000:
            return _problem(400, "'limit' must be a number from 1 to 100000")
        return web.json_response(self._gateway.connections(limit))

    async def _certificates(self, _: web.Request) -> web.Response:
        return web.json_response(self._gateway.certificates())

    async def _config(self, _: web.Request) -> web.Response:
        return web.json_response(self._gateway.configuration())

    async def _reload(self, _: web.Request) -> web.Response:
        try:
            changed = await self._gateway.reload()
        except ConfigError as error:
            return _problem(422, str(error), report=error.report.as_json())
        except MituError as error:
            return _problem(422, str(error))
        return web.json_response({"ok": True, "changed": changed, "digest": self._gateway.live.digest})

    async def _begin_drain(self, _: web.Request) -> web.Response:
        self._drain()
        return web.json_response({"ok": True, "connections": self._gateway.active}, status=202)


def _problem(status: int, error: str, **more: Any) -> web.Response:
    return web.json_response({"ok": False, "error": error, **more}, status=status)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON, like everything else here."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _problem(error.status, error.reason.lower())


def _guard(token: str) -> Any:
    """For TCP: the bearer token, and a Host that a page elsewhere cannot send by rebinding its name."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_loopback(request.host):
            return _problem(403, "the Host header must name the loopback interface")
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, expected):
            response = _problem(401, "a bearer token is needed: the value of admin.token")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return await handler(request)

    return guard


def _is_loopback(host: str) -> bool:
    name = (split_host_port(host) or (host, 0))[0].strip("[]")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False

