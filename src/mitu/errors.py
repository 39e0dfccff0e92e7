"""Every exception that mitu raises on purpose; the error codes are in `mitu.config.catalogue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mitu.config.diagnostic import Diagnostic, Report


class MituError(Exception):
    """Base class: `except MituError` catches whatever mitu raises on purpose."""


class ConfigError(MituError):
    """A configuration cannot be used; `report` holds every error and warning that was found."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__("\n".join(str(error) for error in report.errors))

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return self.report.errors


class StartError(MituError):
    """The gateway could not start: a socket cannot be bound, or the data plane refused the configuration."""


class ReloadError(MituError):
    """The new configuration was refused by the data plane; the last good one stays live."""


class HandlerError(MituError):
    """A Python handler cannot be imported, is not an async function, or failed to start."""


class AdminError(MituError):
    """The admin endpoint cannot be reached, or refused what was asked of it."""
