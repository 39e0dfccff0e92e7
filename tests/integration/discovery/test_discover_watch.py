"""`mitu discover --watch`: on a terminal, where a program reads, after Ctrl+C, and when the gateway ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration import conftest
from support.certificates import Pair
from support.gateway import MITU, Gateway
from support.net import eventually

from .test_gateway_follows import Services

SOON = 30.0
COLUMNS = 100
ONE = {"address": "127.0.0.1:9", "id": "one"}
TWO = {"address": "127.0.0.1:10", "id": "two", "status": "warning", "reason": "slow disk"}


class Shown:
    """What a command that goes on shows, at one end of a pipe or of a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], end: int, *, terminal: bool) -> None:
        self.process = process
        self._end, self._terminal = end, terminal
        self._text = b""
        os.set_blocking(end, False)

    @property
    def text(self) -> str:
        """So far."""
        while True:
            try:
                piece = os.read(self._end, 65_536)
            # A terminal that nobody has open any more says EIO.
            except OSError:
                break
            if not piece:
                break
            self._text += piece
        return self._text.decode()

    def until(self, shown: Callable[[str], object]) -> str:
        try:
            eventually(lambda: bool(shown(self.text)), SOON)
        except AssertionError:
            raise AssertionError(f"it shows {self.text!r}") from None
        return self.text

    def interrupt(self) -> int:
        """Ctrl+C, on its terminal where it has one. The exit code."""
        if self._terminal:
            os.write(self._end, b"\x03")
        else:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(SOON)

    def errors(self) -> str:
        """What it says besides, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def watching(gateway: Gateway, *flags: str, terminal: bool = False) -> Iterator[Shown]:
    if terminal:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    else:
        ours, theirs = os.pipe()
    # Without what pytest, or whoever runs it, says of the terminal, and of what is written at once.
    foreign = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    session = ["setsid", "--ctty"] if terminal else []
    process = subprocess.Popen(
        [*session, *MITU, "discover", "--watch", *flags, "--socket", str(gateway.socket)],
        stdin=theirs if terminal else subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**environment, "TERM": "xterm"},
    )
    os.close(theirs)
    with process:
        try:
            yield Shown(process, ours, terminal=terminal)
        finally:
            process.kill()
            os.close(ours)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(tmp_path, api=[ONE])


@pytest.fixture
def running(gateway: conftest.Start, edge: Pair, services: Services) -> Gateway:
    return gateway(services.settings(edge))


def plain(text: str) -> str:
    """Without what moves a cursor, or changes colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def states(text: str) -> list[dict[str, Any]]:
    """A line that is not whole is none."""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def instances(state: dict[str, Any]) -> dict[str, str]:
    (app,) = state["upstreams"]
    return {one["name"]: one["health"] for one in app["instances"]}


def test_a_program_reads_a_line_for_each_state(running: Gateway, services: Services) -> None:
    with watching(running, "--json") as shown:
        shown.until(lambda text: len(states(text)) == 1)
        services.write(api=[ONE, TWO])
        text = shown.until(lambda text: len(states(text)) == 2)
        assert [instances(state) for state in states(text)] == [
            {"one": "healthy"},
            {"one": "healthy", "two": "degraded"},
        ]
        # Asked several times, and nothing is otherwise.
        time.sleep(1.5)
        assert shown.text == text
        assert (shown.interrupt(), shown.errors()) == (0, "")
        assert shown.text == text


def test_without_a_terminal_each_state_is_shown_below_the_last(running: Gateway, services: Services) -> None:
    with watching(running) as shown:
        shown.until(lambda text: "127.0.0.1:9" in text)
        services.write(api=[ONE, TWO])
        text = shown.until(lambda text: "slow disk" in text)
        assert text.count("app  api in f") == 2
        assert "\x1b" not in text
        assert (shown.interrupt(), shown.errors()) == (0, "")


def test_a_terminal_shows_it_in_place(running: Gateway, services: Services) -> None:
    with watching(running, terminal=True) as shown:
        shown.until(lambda text: "127.0.0.1:9" in text)
        services.write(api=[TWO])
        text = shown.until(lambda text: "127.0.0.1:10" in text)
        assert "\x1b[?25l" in text and re.search(r"\x1b\[[0-9]*A", text), "the cursor is hidden, and goes back up"
        assert (shown.interrupt(), shown.errors()) == (0, "")
        assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l"), "the cursor is back"


def test_an_error_that_is_wider_than_the_terminal_is_shown_whole(running: Gateway, services: Services) -> None:
    """In lines of its own: the terminal would go on in the next, and the cursor not far enough up the next time."""
    services.file.write_text(json.dumps({"services": {"api": [{"address": "x" * COLUMNS}]}}))
    with watching(running, terminal=True) as shown:
        eventually(lambda: running.json("/discovery")[0]["stale"], SOON)
        error = running.json("/discovery")[0]["error"]
        assert len(error) > COLUMNS
        shown.until(lambda text: "as known" in text)
        text = shown.until(lambda text: "".join(error.split()) in "".join(plain(text).split()))
        assert max(map(len, re.split(r"[\r\n]+", plain(text)))) <= COLUMNS


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("upstream", [[], ["app"]])
def test_a_gateway_that_ends_is_told(running: Gateway, terminal: bool, upstream: list[str]) -> None:
    with watching(running, *upstream, terminal=terminal) as shown:
        shown.until(lambda text: "127.0.0.1:9" in text)
        running.stop()
        assert shown.process.wait(SOON) == 2
        assert shown.errors().startswith(("error: no gateway listens at", "error: cannot ask the gateway at"))
        text = shown.text
        assert "nothing is discovered" not in text
        if terminal:
            assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_gateway_that_is_killed_is_told_on_a_line_of_its_own(running: Gateway) -> None:
    with watching(running, "--json") as shown:
        shown.until(lambda text: len(states(text)) == 1)
        running.program.kill()
        assert shown.process.wait(SOON) == 2
        _, last = states(shown.text)
        assert last["ok"] is False and "cannot ask the gateway at" in last["error"]
        assert shown.errors() == ""


def test_nobody_to_watch(running: Gateway) -> None:
    running.stop()
    with watching(running) as shown:
        assert shown.process.wait(SOON) == 2
        assert "no gateway listens at" in shown.errors()


def test_an_upstream_that_there_is_not(running: Gateway) -> None:
    with watching(running, "apps") as shown:
        assert shown.process.wait(SOON) == 2
        assert "did you mean 'app'?" in shown.errors()
