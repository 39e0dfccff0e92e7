"""The admin endpoint: HTTP on a Unix socket that only its owner can open, and on loopback TCP when asked for.

The socket is guarded by a lock that its process holds, so that two gateways never take it from each other, and one
that was left behind by a killed process is replaced.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Awaitable, Callable

from aiohttp import web

from mitu.admin.guard import answer_errors, guard, problem, refuse_bodies
from mitu.config.model import Admin
from mitu.config.types import split_host_port
from mitu.errors import ConfigError, MituError, StartError
from mitu.gateway import Gateway

_LINGER = 1.0
"""Seconds that a client may take to finish once it has its answer, and the endpoint once it is to end."""

_IDLE = 75.0
"""Seconds between two requests of a connection."""


class AdminServer:
    """Serves `gateway`. `reload` and `drain` act on the process, which is the supervisor's to do."""

    def __init__(
        self,
        gateway: Gateway,
        settings: Admin,
        *,
        reload: Callable[[str], Awaitable[bool]],
        drain: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._reload = reload
        self._drain = drain
        self._runners: list[web.AppRunner] = []
        self._lock: int | None = None
        self._address: str | None = None
        self.socket = settings.socket_path

    def claim(self) -> None:
        """Take the socket before anything is served. StartError when another gateway has it."""
        lock = self.socket.with_name(f"{self.socket.name}.lock")
        try:
            self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            hint = "set admin.socket to a path that this user can write"
            raise StartError(f"cannot make {lock}: {error.strerror}; {hint}") from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(held, 32).decode("ascii", "replace").strip()
            os.close(held)
            message = f"the gateway with process id {pid} has the admin socket {self.socket}"
            raise StartError(f"{message}; set admin.socket to another path, or stop that gateway") from None
        os.truncate(held, 0)
        os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
        self._lock = held

    async def start(self) -> None:
        """Answer, on the socket that was claimed. StartError when it or `admin.listen` cannot be bound."""
        runner = await self._runner(with_token=False)
        # The mode counts from the first moment: a umask, not a chmod afterwards.
        umask = os.umask(0o177)
        try:
            self.socket.unlink(missing_ok=True)
            await web.UnixSite(runner, str(self.socket)).start()
        except OSError as error:
            raise StartError(f"cannot make the admin socket {self.socket}: {error.strerror or error}") from error
        finally:
            os.umask(umask)
        if self._settings.listen is not None:
            await self._listen(self._settings.listen)

    async def _listen(self, listen: str) -> None:
        host, port = split_host_port(listen) or ("127.0.0.1", 0)
        runner = await self._runner(with_token=True)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise StartError(f"cannot bind admin.listen {listen}: {error.strerror or error}") from error
        host, port = runner.addresses[0][:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._lock is not None:
            self.socket.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    @property
    def where(self) -> str:
        """The socket, and the address of `admin.listen`."""
        return str(self.socket) if self._address is None else f"{self.socket} and {self._address}"

    async def _runner(self, *, with_token: bool) -> web.AppRunner:
        guards = [guard(lambda: self._gateway.live.token)] if with_token else []
        app = web.Application(middlewares=[answer_errors, *guards, refuse_bodies])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/status", self._status),
                web.get("/metrics", self._metrics),
                web.get("/connections", self._connections),
                web.get("/certificates", self._certificates),
                web.get("/config", self._config),
                web.get("/discovery", self._discovery),
                web.get("/alpn", self._alpn),
                web.post("/reload", self._reload_now),
                web.post("/drain", self._begin_drain),
            ]
        )
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            logger=logging.getLogger("mitu.admin"),
            keepalive_timeout=_IDLE,
            lingering_time=_LINGER,
            shutdown_timeout=_LINGER,
        )
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        state = self._gateway.state
        return web.Response(text=f"{state}\n", status=200 if state == "serving" else 503)

    async def _status(self, _: web.Request) -> web.Response:
        admin = {"socket": str(self.socket), "listen": self._address}
        return web.json_response({"pid": os.getpid(), "admin": admin, **self._gateway.status()})

    async def _metrics(self, _: web.Request) -> web.Response:
        # Prometheus tells formats apart by the version here.
        kind = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._gateway.metrics().encode(), headers=kind)

    async def _connections(self, request: web.Request) -> web.Response:
        limit = _number(request, "limit", 1000, 100_000)
        if limit is None:
            return problem(400, "'limit' must be a number from 1 to 100000")
        return web.json_response(self._gateway.connections(limit))

    async def _certificates(self, _: web.Request) -> web.Response:
        return web.json_response(self._gateway.certificates())

    async def _config(self, _: web.Request) -> web.Response:
        return web.json_response(self._gateway.configuration())

    async def _discovery(self, _: web.Request) -> web.Response:
        return web.json_response(self._gateway.services())

    async def _alpn(self, request: web.Request) -> web.Response:
        decisions = _number(request, "decisions", 20, 1000)
        if decisions is None:
            return problem(400, "'decisions' must be a number from 1 to 1000")
        return web.json_response(self._gateway.alpn_rankings(decisions))

    async def _reload_now(self, _: web.Request) -> web.Response:
        try:
            changed = await self._reload("asked for at the admin endpoint")
        except ConfigError as error:
            return problem(422, str(error), report=error.report.as_json())
        except MituError as error:
            return problem(422, str(error))
        return web.json_response({"ok": True, "changed": changed, "digest": self._gateway.live.digest})

    async def _begin_drain(self, _: web.Request) -> web.Response:
        self._drain()
        return web.json_response({"ok": True, "connections": self._gateway.active}, status=202)


def _number(request: web.Request, name: str, default: int, most: int) -> int | None:
    """A number in the query, from 1 to `most`; None: it is something else."""
    try:
        number = int(request.query.get(name, default))
    except ValueError:
        return None
    return number if 1 <= number <= most else None
