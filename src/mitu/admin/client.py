"""Asks a running gateway over its admin socket."""

from __future__ import annotations

import http.client
import json
import socket
import struct
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

    def pid(self) -> int | None:
        """The process that listens; None: nobody does. It is the kernel's word, so a hanging gateway has one too."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_TIMEOUT)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return None
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        return int(pid)

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
            reason = str(getattr(error, "strerror", None) or error).lower()
            raise AdminError(f"cannot ask the gateway at {self.socket}: {reason}") from error
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
