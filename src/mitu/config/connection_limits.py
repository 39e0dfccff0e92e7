"""How many connections listeners may have, where the process may open fewer files than they ask for."""

from __future__ import annotations

from collections.abc import Sequence

_LEAST = 64
"""Connections in all that are always allowed: with so few files, accepting has to wait for one instead."""

_KEPT = 64
_KEPT_SHARE = 20

_PER_WORKER = 3
"""Files of a worker's event loop."""

_OPERATING = 32
"""For a reload, beside its new sockets, and for those who ask the admin socket."""


def connection_limits(asked: Sequence[int], files: int | None, workers: int) -> list[int]:
    """What each listener gets when it asks for `asked` connections and the process may have `files` open (None: any
    number).

    One file in twenty is kept for upstreams, reloads and the admin socket, 64 at least. A proxied or relayed
    connection takes a second one; yet half of all are not kept for that, since most connections wait most of the time.
    """
    if files is None:
        return list(asked)
    own = workers * (_PER_WORKER + len(asked))
    return share(asked, max(_LEAST, files - max(_KEPT, files // _KEPT_SHARE) - own))


def kept_files(files: int | None, workers: int, listeners: int) -> int | None:
    """The first file descriptor that neither clients nor upstreams get, of `files`; None: there is no limit."""
    return None if files is None else files - min(_OPERATING + workers * listeners, files // 4)


def share(asked: Sequence[int], total: int) -> list[int]:
    """`total` spread so that whoever asks for little gets it, and the others the same each; at least 1."""
    given = [0] * len(asked)
    for turn, at in enumerate(sorted(range(len(asked)), key=asked.__getitem__)):
        given[at] = min(asked[at], max(1, total // (len(asked) - turn)))
        total -= given[at]
    return given
