"""A network between a gateway and a server that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Cut:
    """Another way to a server's port on 127.0.0.1, until the block ends.

    While it is cut nothing is refused and nothing closed: what is sent, new connections and ends of connections too,
    comes through once it is mended, as TCP would send it again.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                self._whole.wait()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._ends.append(far)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                self._whole.wait()
                other.sendall(data)
            self._whole.wait()
            other.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.mend()
        _close(self._listener)
        self._accepting.join()
        for end in self._ends:
            _close(end)


def _close(end: socket.socket) -> None:
    # Whoever waits on it in another thread is woken by the shutdown alone.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
