"""The files that registries need: secrets and certificates, read so that a missing one is said before it is needed."""

from __future__ import annotations

from pathlib import Path

from mitu.config.certificates import Inspector
from mitu.config.diagnostic import Loc
from mitu.config.discovery import Discovery, Provider


def check_provider_files(discovery: Discovery, inspector: Inspector) -> None:
    """What each provider names can be read, and secrets not by everybody."""
    for at, provider in enumerate(discovery.providers):
        loc: Loc = ("discovery", "providers", at, provider.kind)
        for path, where in _certificates(provider, loc):
            inspector.read(path, where)
        for name, secret in provider.secrets.items():
            if secret.file is not None:
                where = (*loc, name, "file")
                if inspector.read(secret.file, where) is not None:
                    inspector.check_mode(secret.file, where)


def _certificates(provider: Provider, loc: Loc) -> list[tuple[Path, Loc]]:
    tls = getattr(provider.settings, "tls", None)
    named = [] if tls is None else [(getattr(tls, name), name) for name in ("ca", "certificate", "key")]
    return [(path, (*loc, "tls", name)) for path, name in named if path is not None]
