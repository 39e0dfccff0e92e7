"""Asks a running gateway over its admin socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from mitu.errors import AdminError

_TIMEOUT = 60.0


class AdminClient:
    """`socket`: the gateway's admin socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def get(self, path: str) -> Any:
        """The JSON at `path`. AdminError when nobody listens, or the gateway has an error to tell."""
        status, answer = self.request("GET", path)
        if status != 200:
            raise AdminError(str(answer.get("error", f"status {status}")))
        return answer

    def post(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request to act."""
        return self.request("POST", path)

    def request(self, method: str, path: str) -> tuple[int, Any]:
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except FileNotFoundError as error:
            message = f"no gateway listens at {self.socket}"
            raise AdminError(f"{message}; start one with 'mitu run FILE', or name its socket with --socket") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AdminError(f"cannot ask the gateway at {self.socket}: {reason}".lower()) from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
