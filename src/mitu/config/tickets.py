"""What the keys of session tickets are derived from: the secrets of `tickets`, read and checked."""

from __future__ import annotations

from typing import Any

from mitu.config.certificates import Inspector
from mitu.config.diagnostic import Loc
from mitu.config.model import Tickets
from mitu.config.secret import Secret

MIN_SECRET = 32
"""Bytes; fewer could be guessed by who has recorded a ticket. The data plane refuses them too."""

# Random bytes, in hexadecimal or not, have more.
_MIN_DIFFERENT = 8
_ADVICE = "openssl rand -hex 32"


def ticket_settings(tickets: Tickets, inspector: Inspector, secrets: dict[str, bytes]) -> dict[str, Any]:
    """The part of the runtime document; what it names is put into `secrets`."""
    names = []
    for at, one in enumerate(tickets.secrets):
        found = _read(one, ("tickets", "secrets", at), inspector)
        if found is not None:
            names.append(f"ticket:{at}")
            secrets[names[-1]] = found
    return {
        "secrets": names,
        "rotation_ms": round(tickets.rotation.total_seconds() * 1000),
        "lifetime_ms": round(tickets.lifetime.total_seconds() * 1000),
    }


def _read(secret: Secret, loc: Loc, inspector: Inspector) -> bytes | None:
    if secret.file is None:
        found = secret.reveal().encode()
    else:
        loc = (*loc, "file")
        data = inspector.read(secret.file, loc)
        if data is None:
            return None
        # Bytes, not text: whatever a random generator gives is a secret.
        found = data.removesuffix(b"\n")
        inspector.check_mode(secret.file, loc)
    if len(found) < MIN_SECRET:
        message = f"the ticket secret is shorter than {MIN_SECRET} bytes"
        inspector.findings.add("E068", message, loc, hint=_ADVICE)
    elif len(set(found)) < _MIN_DIFFERENT:
        inspector.findings.add("E068", "the ticket secret is not random: few of its bytes differ", loc, hint=_ADVICE)
    else:
        return found
    return None
