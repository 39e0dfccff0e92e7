"""Trusted HTTPS on a developer's machine: a local certificate authority, and what `mitu dev` serves with it."""

from mitu.errors import MituError


class DevError(MituError):
    """Trusted local HTTPS cannot be had here; the message says what to do about it."""


class WantedError(DevError):
    """What was asked for cannot be: a name that is somebody else's, an address that is none."""
