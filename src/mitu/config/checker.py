"""Everything that can be wrong with a configuration, found before it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mitu.config.compile import Compiler, python_handlers
from mitu.config.data_plane import ask
from mitu.config.diagnostic import Report
from mitu.config.load import read_config
from mitu.config.model import Config
from mitu.config.validate import Findings, validate

# Stands in for the sockets that a running gateway makes for its Python handlers.
_NO_SOCKET = "/run/mitu/check.sock"


@dataclass(frozen=True)
class Checked:
    """A report, with the configuration and the runtime document when there are any."""

    report: Report
    config: Config | None = None
    runtime: dict[str, Any] | None = None


def check(target: str | Path | Config, *, environ: Mapping[str, str] | None = None) -> Report:
    """Check a file or a configuration built in code: shape, cross references, certificate files, Python handlers, and
    last what the data plane makes of it. Never raises for what is wrong with the configuration."""
    return inspect(target, environ=environ).report


def inspect(
    target: str | Path | Config, *, environ: Mapping[str, str] | None = None, now: datetime | None = None
) -> Checked:
    """`check`, with what was built on the way."""
    if isinstance(target, Config):
        config: Config | None = target
        found = validate(target)
    else:
        config, found = read_config(target, environ=environ)
    if config is None:
        return Checked(Report.of(found))
    compiler = Compiler(config, dict.fromkeys(python_handlers(config), _NO_SOCKET), now)
    document = compiler.document()
    _check_handlers(compiler.findings)
    _check_token(compiler.findings)
    found = [*found, *compiler.findings.found]
    if not any(one.is_error for one in found):
        found += ask(document, compiler.secrets, config)
    return Checked(Report.of(found), config, document)


def _check_handlers(findings: Findings) -> None:
    """Python handlers' modules are looked for, not run."""
    for at, listener in enumerate(findings.config.listeners):
        for index, protocol in enumerate(listener.protocols):
            if protocol.handler is None:
                continue
            module = protocol.handler.partition(":")[0]
            with _in_front(findings.config.handler_folder):
                problem = _module_problem(module)
            if problem is not None:
                loc = ("listeners", at, "protocols", index, "handler")
                hint = "put it beside the configuration, or install it"
                findings.add("E051", problem, loc, found=protocol.handler, hint=hint)


@contextmanager
def _in_front(folder: Path | None) -> Iterator[None]:
    """`folder` on `sys.path` as it is when the gateway loads handlers (`mitu.handlers.load`), for this once."""
    if folder is None or str(folder) in sys.path:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _module_problem(module: str) -> str | None:
    # find_spec of a dotted name imports the packages above it; whatever they do is their author's business.
    try:
        return None if find_spec(module) is not None else f"there is no Python module '{module}'"
    except Exception as error:
        return f"the Python module '{module}' cannot be found: {type(error).__name__}: {error}"


def _check_token(findings: Findings) -> None:
    token = findings.config.admin.token
    if token is None or token.file is None:
        return
    try:
        length = len(token.reveal())
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        findings.add("E070", f"cannot read '{token.file.name}': {reason}", ("admin", "token", "file"))
    except (UnicodeDecodeError, ValueError):
        findings.add("E070", f"'{token.file.name}' is not text", ("admin", "token", "file"))
    else:
        if length < 16:
            hint = "openssl rand -hex 32"
            findings.add("E067", "the token is shorter than 16 characters", ("admin", "token", "file"), hint=hint)
