"""Completion in the shells themselves: what `mitu --show-completion` prints there, and a press of Tab after it."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.process import Program

TYPED = [
    ("mitu de", "mitu dev "),
    ("mitu dev --pri", "mitu dev --print-config "),
    ("mitu bench st", "mitu bench storm "),
    ("mitu bench storm --dev", "mitu bench storm --devices "),
    ("mitu check mitu.y", "mitu check mitu.yaml "),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home without a configuration, and `mitu` on the path: that of the Python under test."""
    program = tmp_path / "bin" / "mitu"
    program.parent.mkdir()
    start = "import sys; sys.argv[0] = 'mitu'; from mitu.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{start}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "mitu.yaml").touch()
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    return {"PATH": path, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb", "PS1": "> "}


def outcome(shell: list[str], script: str, folder: Path, environment: dict[str, str]) -> str:
    with Program([*shell, "-c", script], folder / "log", environment=environment) as program:
        assert program.wait(60) == 0, program.log
        return program.log


@pytest.mark.parametrize(("typed", "completed"), TYPED)
def test_bash(typed: str, completed: str, tmp_path: Path, environment: dict[str, str]) -> None:
    words = shlex.split(typed)
    # As Readline calls it; where that offers nothing, `-o default` offers files.
    script = (
        "source <(mitu --show-completion); complete -p mitu >&2;"
        f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _mitu_completion mitu; echo "<${{COMPREPLY[*]}}>"'
    )
    told = outcome(["bash", "--norc"], script, tmp_path, environment)
    assert "complete -o default -F _mitu_completion mitu" in told
    offered = "" if typed.startswith("mitu check") else completed.split()[-1]
    assert told.endswith(f"<{offered}>\n"), told


@pytest.mark.needs("fish")
@pytest.mark.parametrize(("typed", "completed"), TYPED)
def test_fish(typed: str, completed: str, tmp_path: Path, environment: dict[str, str]) -> None:
    script = f"mitu --show-completion | source; complete -C {shlex.quote(typed)}"
    told = outcome(["fish", "--no-config"], script, tmp_path, environment)
    offered = [line.partition("\t")[0] for line in told.splitlines()]
    assert offered == [completed.split()[-1]], told


@pytest.mark.needs("zsh")
class TestZsh:
    """On a terminal, since its completion is a part of its line editor."""

    @pytest.fixture
    def terminal(self, tmp_path: Path, environment: dict[str, str]) -> Iterator[int]:
        """That of a zsh which shows its line within `<>` when `Ctrl-X s` is pressed."""
        terminal, its_end = pty.openpty()
        shell = subprocess.Popen(
            ["setsid", "--ctty", "zsh", "-f", "-i"],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        os.close(its_end)
        setup = (
            "autoload -Uz compinit && compinit -D -u && source <(mitu --show-completion);"
            " show() { print -r -- \"<$BUFFER>\" }; zle -N show; bindkey '^Xs' show; print ready$((1))\n"
        )
        os.write(terminal, setup.encode())
        try:
            until(terminal, "ready1")
            yield terminal
        finally:
            os.close(terminal)
            shell.kill()
            shell.wait()

    @pytest.mark.parametrize(("typed", "completed"), TYPED)
    def test_zsh(self, terminal: int, typed: str, completed: str) -> None:
        os.write(terminal, f"{typed}\t\x18s".encode())
        told = until(terminal, ">\r\n")
        assert told.endswith(f"<{completed}>\r\n"), told


def until(terminal: int, awaited: str, timeout: float = 60) -> str:
    """What the terminal shows until it shows `awaited`."""
    shown, deadline = b"", time.monotonic() + timeout
    while awaited.encode() not in shown:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], f"no {awaited!r} in {shown!r}"
        shown += os.read(terminal, 4096)
    return shown.decode()
