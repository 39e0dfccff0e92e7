"""Notices when the configuration, or a file that it names, has new content.

Folders are watched instead of files, since editors and Kubernetes replace files and folders by renaming. What counts
is content: an event that leaves all of it as it was leads to nothing.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path

from pydantic import BaseModel
from watchfiles import awatch

log = logging.getLogger("mitu")

_TOGETHER_MS = 200
"""Events that come closer together than this are one change: a certificate and its key, one after the other."""

_AT_LATEST_MS = 1_000
"""A change is looked at after this, however many events keep coming."""

_LOOK_ANYWAY_MS = 5_000
"""Content is compared this often without an event too: some file systems tell of none."""

_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_TRY_AGAIN = 1.0

Fingerprint = dict[Path, bytes | None]


async def changes(files: Callable[[], Iterable[Path]], known: Fingerprint) -> AsyncGenerator[None]:
    """Yields each time that the content of `files`, which are asked for anew after every change, differs from `known`.

    `known`: from before they were read, so that no change falls between reading and watching.
    """
    while True:
        folders = _folders(files())
        async with aclosing(_events(folders)) as events:
            async for _ in events:
                found = await _look(files)
                if any(known.get(file, content) != content for file, content in found.items()):
                    yield
                    # Files that are new to the set count from now on; the others from before they were read.
                    known = await _look(files)
                    known |= {file: content for file, content in found.items() if file in known}
                if _folders(files()) != folders:
                    break


def named_files(value: object) -> Iterator[Path]:
    """Every file that a configuration names and that is read when it is loaded, wherever in its models."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields.keys() - getattr(value, "unwatched", frozenset()):
            yield from named_files(getattr(value, name))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from named_files(one)


def fingerprint(files: Iterable[Path]) -> Fingerprint:
    """The SHA-256 of each file; None for one that cannot be read. OSError when this process can open none at all."""
    return {file: _digest(file) for file in files}


async def _look(files: Callable[[], Iterable[Path]]) -> Fingerprint:
    """The content of `files`, as soon as this process may open files again."""
    while True:
        try:
            return await asyncio.to_thread(fingerprint, files())
        except OSError:
            await asyncio.sleep(_TRY_AGAIN)


async def _events(folders: set[Path]) -> AsyncGenerator[None]:
    """Something has happened in one of `folders`, or nothing for a while."""
    try:
        async for _ in awatch(
            *folders,
            watch_filter=None,
            debounce=_AT_LATEST_MS,
            step=_TOGETHER_MS,
            rust_timeout=_LOOK_ANYWAY_MS,
            yield_on_timeout=True,
            recursive=False,
            ignore_permission_denied=True,
        ):
            yield
    except (OSError, RuntimeError) as error:
        # The kernel's limit of watches, or a folder that has just gone.
        log.warning("files are compared every %g s, since they cannot be watched: %s", _LOOK_ANYWAY_MS / 1e3, error)
        await asyncio.sleep(_LOOK_ANYWAY_MS / 1e3)
        yield


def _folders(files: Iterable[Path]) -> set[Path]:
    """The folders whose entries decide what is read: of each name, and of what a link there leads to."""
    folders: set[Path] = set()
    for file in files:
        folders.update((file.parent, file.resolve().parent))
        # Kubernetes: cert.pem -> ..data/cert.pem, where ..data is the link that is swapped.
        if file.is_symlink():
            folders.add(file.parent.joinpath(file.readlink()).parent.parent)
    return {folder for folder in folders if folder.is_dir()}


def _digest(file: Path) -> bytes | None:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        if error.errno in _OUT_OF_FILES:
            raise
        return None
