"""systemd: inherited sockets (sd_listen_fds(3)) and notifications (sd_notify(3)), told by environment variables."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence

from mitu.errors import StartError

log = logging.getLogger("mitu")

_FIRST_FD = 3
_SEND_TIMEOUT = 1.0


def inherited(names: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, list[int]]:
    """The listening sockets that were handed over, by listener name. `names`: the configured listeners.

    A socket goes to the listener that its `FileDescriptorName=` names; a single listener takes them all. StartError
    when a socket belongs to nobody, since it would be held open and never be accepted from, and when it is of a kind
    that no listener can serve.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = environ.get("LISTEN_FDS", "")
    if not count.isdecimal():
        raise StartError(f"LISTEN_FDS is '{count}', not a number of sockets")
    told = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for offset in range(int(count)):
        told_name = told[offset] if offset < len(told) else ""
        name = told_name if told_name in names else names[0] if len(names) == 1 else None
        if name is None:
            raise StartError(
                f"the inherited socket '{told_name}' is no listener's; set FileDescriptorName= in the socket unit to"
                f" one of: {', '.join(names)}"
            )
        if not _listens(_FIRST_FD + offset):
            raise StartError(f"the inherited socket '{told_name}' is no listening TCP socket; use ListenStream=PORT")
        os.set_inheritable(_FIRST_FD + offset, False)
        found.setdefault(name, []).append(_FIRST_FD + offset)
    return found


def _listens(fd: int) -> bool:
    """Whether a descriptor is a TCP socket that listens."""
    try:
        with socket.socket(fileno=os.dup(fd)) as found:
            internet = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
            return internet and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


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
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.settimeout(_SEND_TIMEOUT)
                notify.connect(address)
                notify.send("\n".join(lines).encode())
        except OSError as error:
            # Serving matters more than telling of it.
            log.warning("cannot notify systemd at %s: %s", self._address, error.strerror or error)
