"""How many files this process may open (RLIMIT_NOFILE): every connection is one, a proxied or relayed one two."""

from __future__ import annotations

import contextlib
import resource


def raise_limit() -> int | None:
    """Raise the soft limit, which is set for select(2), to the hard one. What it is now; None: there is none."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # Some systems have a lower limit than they say.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit
