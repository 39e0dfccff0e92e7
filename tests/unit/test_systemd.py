"""What systemd's environment variables say, where it is no matter of real descriptors."""

from __future__ import annotations

import os

import pytest

from mitu.errors import StartError
from mitu.systemd import Notifier, inherited

OURS = {"LISTEN_PID": str(os.getpid())}


def test_nothing_is_handed_over() -> None:
    assert inherited(["edge"], {}) == {}
    assert inherited(["edge"], {"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == {}
    assert inherited(["edge"], OURS | {"LISTEN_FDS": "0"}) == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "²"])
def test_a_count_that_is_none(count: str) -> None:
    with pytest.raises(StartError, match="LISTEN_FDS"):
        inherited(["edge"], OURS | {"LISTEN_FDS": count})


def test_without_a_socket_nobody_is_told() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier(environ)
        notifier.ready("serving")
        notifier.reloading()
        notifier.stopping()
