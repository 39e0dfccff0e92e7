"""What every admin request passes before it is answered: who may ask, and what of, with errors as JSON."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from mitu.config.types import split_host_port

log = logging.getLogger("mitu.admin")


def problem(status: int, error: str, **more: Any) -> web.Response:
    return web.json_response({"ok": False, "error": error, **more}, status=status)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON, like everything else here; what they are about stays in the log."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = problem(error.status, error.reason.lower())
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, "internal error; the gateway's log says more")


@web.middleware
async def refuse_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nothing here takes a body, so nobody gets to send one."""
    if request.body_exists:
        response = problem(413, "no body is expected")
        response.force_close()
        return response
    return await handler(request)


def guard(token: Callable[[], str | None]) -> Middleware:
    """For TCP: the bearer token as it now is, and what a browser says of pages from elsewhere.

    A page cannot name its own host by rebinding it to this address, nor post from another origin.
    """

    @web.middleware
    async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_loopback(request.headers.get("Host", "")):
            return problem(403, "the Host header must name the loopback interface")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
            return problem(403, "requests from other origins are refused")
        expected = f"Bearer {token()}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if token() is None or not hmac.compare_digest(given, expected):
            response = problem(401, "a bearer token is needed: the value of admin.token")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return await handler(request)

    return checked


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine's loopback interface."""
    name = (split_host_port(host) or (host, 0))[0].strip("[]")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
