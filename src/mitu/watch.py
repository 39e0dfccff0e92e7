"""Notices when the configuration, or a file that it names, has new content.

Folders are watched instead of files, since editors and Kubernetes replace files and folders by renaming. What counts
is content: an event that leaves all of it as it was leads to nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from watchfiles import awatch

_DEBOUNCE_MS = 200
"""Events that come closer together than this are one change: a certificate and its key, written one after the other."""


_LOOK_ANYWAY_MS = 5_000
"""Content is compared this often without an event too: some file systems tell of none."""


async def changes(files: Callable[[], Iterable[Path]]) -> AsyncIterator[None]:
    """Yields each time that the content of `files` has changed. They are asked for anew after every change."""
    known = await asyncio.to_thread(_fingerprint, files())
    while True:
        folders = _folders(files())
        events = awatch(
            *folders,
            debounce=_DEBOUNCE_MS,
            rust_timeout=_LOOK_ANYWAY_MS,
            yield_on_timeout=True,
            recursive=False,
            ignore_permission_denied=True,
        )
        async for _ in events:
            found = await asyncio.to_thread(_fingerprint, files())
            if found != known:
                yield
                # Files that are new to the set count from now on; the others from before they were read.
                known = await asyncio.to_thread(_fingerprint, files()) | found
            if _folders(files()) != folders:
                break


def _folders(files: Iterable[Path]) -> set[Path]:
    """The folders whose entries decide what is read: of each name, and of what a link there leads to."""
    folders = set()
    for file in files:
        folders.update((file.parent, file.resolve().parent))
        # Kubernetes: cert.pem -> ..data/cert.pem, where ..data is the link that is swapped.
        if file.is_symlink():
            folders.add(file.parent.joinpath(file.readlink()).parent.parent)
    return {folder for folder in folders if folder.is_dir()}


def _fingerprint(files: Iterable[Path]) -> dict[Path, bytes | None]:
    return {file: _digest(file) for file in files}


def _digest(file: Path) -> bytes | None:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return None
