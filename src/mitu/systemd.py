"""systemd: inherited sockets (sd_listen_fds(3)) and notifications (sd_notify(3)), both by their environment variables."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence

from mitu.errors import StartError

_FIRST_FD = 3


def inherited(names: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, list[int]]:
    """The listening sockets that were handed over, by listener name. `names`: the configured listeners.

    A socket goes to the listener that its `FileDescriptorName=` names; a single listener takes them all. StartError
    when a socket belongs to nobody: it would be held open and never be accepted from.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environ.get("LISTEN_FDS", "0"))
    told = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for offset in range(count):
        told_name = told[offset] if offset < len(told) else ""
        name = told_name if told_name in names else names[0] if len(names) == 1 else None
        if name is None:
            raise StartError(
                f"the inherited socket '{told_name}' is no listener's; set FileDescriptorName= in the socket unit to"
                f" one of: {', '.join(names)}"
            )
        found.setdefault(name, []).append(_FIRST_FD + offset)
    return found


class Notifier:
    """Tells systemd how the service is. Without `NOTIFY_SOCKET` it tells nobody."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET")

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """`Type=notify-reload` wants the monotonic clock with it; `ready` ends the reload."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=draining")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(address)
            notify.send("\n".join(lines).encode())
