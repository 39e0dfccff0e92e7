"""Hands sockets over as systemd does: `activate.py NAME=DESCRIPTOR … -- COMMAND`; see sd_listen_fds(3)."""

from __future__ import annotations

import os
import sys

_FIRST = 3


def main(words: list[str]) -> None:
    end = words.index("--")
    handed = [word.rpartition("=") for word in words[:end]]
    # Far out of the way first, since a descriptor may already be where another is to go.
    far = _FIRST + 200
    aside = [os.dup2(int(descriptor), far + at) for at, (_, _, descriptor) in enumerate(handed)]
    os.closerange(_FIRST, far)
    for at, descriptor in enumerate(aside):
        os.dup2(descriptor, _FIRST + at, inheritable=True)
        os.close(descriptor)
    environment = {
        **os.environ,
        "LISTEN_PID": os.environ.get("LISTEN_PID", str(os.getpid())),
        "LISTEN_FDS": str(len(handed)),
        "LISTEN_FDNAMES": ":".join(name for name, _, _ in handed),
    }
    os.execvpe(words[end + 1], words[end + 1 :], environment)  # noqa: S606 - the command is the test's


if __name__ == "__main__":
    main(sys.argv[1:])
