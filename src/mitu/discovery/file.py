"""Instances from a YAML, TOML or JSON file, read again whenever it has new content."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationError

from mitu.config.base import Model
from mitu.config.diagnostic import Diagnostic, Report, nearest
from mitu.config.discovery import Discover, FileProvider
from mitu.config.load import read_document
from mitu.config.source import SourceError
from mitu.config.translate import translate
from mitu.config.types import Alpn, IntRange, SocketName, Text, fail, shown
from mitu.discovery.instance import HEALTH_WORDS, Instance, Snapshot
from mitu.discovery.metadata import protocols
from mitu.discovery.provider import ProviderError
from mitu.watch import changes, fingerprint


class Listed(Model):
    """One instance; a bare string is its address."""

    shorthand: ClassVar[str | None] = "address"
    address: SocketName = Field(description="`host:port` or `[v6]:port`.")
    id: Text | None = Field(default=None, description="Unique in its service; the address when left out.")
    weight: Annotated[int, IntRange(0, 1000)] = Field(default=1, description="Its share among the instances.")
    status: Literal["healthy", "degraded", "unavailable", "passing", "warning", "critical"] = Field(
        default="healthy", description="How it is, in the gateway's words or in Consul's."
    )
    reason: Text = Field(default="", description="Why it is not healthy.")
    zone: Text | None = Field(default=None, description="Where it is.")
    protocols: tuple[Alpn, ...] | None = Field(
        default=None, description="ALPN names that it speaks; `alpn.supported` in its metadata when left out."
    )
    metadata: dict[Text, Text] = Field(default={}, description="Whatever else there is to say.")

    @property
    def key(self) -> str:
        return self.address if self.id is None else self.id

    def instance(self) -> Instance:
        return Instance(
            id=self.key,
            address=self.address,
            weight=self.weight,
            protocols=protocols(self.metadata) if self.protocols is None else self.protocols,
            health=HEALTH_WORDS[self.status],
            reason=self.reason,
            zone=self.zone,
            metadata=self.metadata,
        )


def _distinct(listed: tuple[Listed, ...]) -> tuple[Listed, ...]:
    seen: set[str] = set()
    for one in listed:
        if one.key in seen:
            fail("E041", f"{shown(one.key)} is listed twice", hint="remove one, or give each an 'id'")
        seen.add(one.key)
    return listed


class Contents(Model):
    """What the file holds."""

    services: dict[Text, Annotated[tuple[Listed, ...], AfterValidator(_distinct)]] = Field(
        description="The instances of each service."
    )


class File:
    """A service that the file does not list has no instances. A file that is wrong anywhere says nothing of any.

    It is read once per change for all services, by a task from the first watch on until `close`.
    """

    kind = "file"

    def __init__(self, settings: FileProvider) -> None:
        self._path = settings.path
        self._reader: asyncio.Task[None] | None = None
        self._edition = 0
        self._found: Contents | ProviderError = ProviderError(f"{self._path} has not been read yet")
        self._refused: dict[Discover, int] = {}

    async def watch(self, discover: Discover) -> AsyncGenerator[Snapshot]:
        if self._reader is None or self._reader.done():
            self._news = asyncio.get_running_loop().create_future()
            self._reader = asyncio.create_task(self._read())
        # What an edition was refused for is said once. Whoever begins anew then hears of the next one as soon as it is
        # there, however long the pauses between attempts have become.
        edition = self._refused.pop(discover, 0)
        told: Snapshot | None = None
        while True:
            while self._edition == edition:
                await asyncio.wait((self._reader, self._news), return_when=asyncio.FIRST_COMPLETED)
                if self._reader.done():
                    self._reader.result()
            edition, contents = self._edition, self._found
            if isinstance(contents, ProviderError):
                self._refused[discover] = edition
                raise ProviderError(str(contents)) from contents
            found = Snapshot.of(one.instance() for one in contents.services.get(discover.service, ()))
            if found != told:
                yield found
                told = found

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))

    async def _read(self) -> None:
        try:
            known = await asyncio.to_thread(fingerprint, [self._path])
        except OSError:
            # No file can be opened just now: whatever is there once that is over is new.
            known = {self._path: b""}
        await self._publish()
        async with aclosing(changes(lambda: [self._path], known)) as events:
            async for _ in events:
                await self._publish()

    async def _publish(self) -> None:
        try:
            self._found = await asyncio.to_thread(read, self._path)
        except ProviderError as error:
            self._found = error
        self._edition += 1
        self._news.set_result(None)
        self._news = asyncio.get_running_loop().create_future()


def read(path: Path) -> Contents:
    """The file at `path`. ProviderError names place, field, what was found and what is allowed."""
    try:
        document, problems = read_document(path, os.environ)
    except SourceError as problem:
        hint = "start with 'services:'" if problem.code == "E008" else problem.hint
        message = problem.message.replace("the configuration", "it")
        told = Diagnostic(problem.code, message, (), path, problem.line, problem.column, hint=hint)
        raise ProviderError(str(told)) from problem
    try:
        contents = Contents.model_validate(document.data)
    except ValidationError as error:
        # What a value that is not there leads to is no mistake of its own.
        absent = {one.loc for one in problems}
        problems += [one for one in _told(translate(error, document.data, document)) if one.loc not in absent]
    if problems:
        first, *more = Report.of(problems).errors
        raise ProviderError(f"{first}, and {len(more)} more" if more else str(first))
    return contents


def _told(found: list[Diagnostic]) -> list[Diagnostic]:
    """With what is allowed where a field is unknown, which only the models here can tell."""
    told = [_unknown(one) if one.code == "E012" else one for one in found]
    # A field that is missing because its name is misspelt is one mistake, not two.
    meant: set[Any] = {(*one.loc[:-1], one.nearest) for one in told if one.code == "E012"}
    return [one for one in told if one.code != "E013" or one.loc not in meant]


def _unknown(found: Diagnostic) -> Diagnostic:
    known = tuple((Contents if len(found.loc) == 1 else Listed).model_fields)
    return replace(found, allowed=known, nearest=nearest(str(found.loc[-1]), known))
