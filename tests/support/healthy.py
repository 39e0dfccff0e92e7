"""A client that asks for a small thing again and again, as a program: `python -m support.healthy HOST PORT CA`.

It says of each request when it began, by the clock that all processes share, and how many seconds it took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from support.client import Http1

PAUSE = 0.003


def main(host: str, port: str, ca: str) -> None:
    client: Http1 | None = None
    while True:
        begun = time.monotonic()
        try:
            if client is None:
                client = Http1.open((host, int(port)), Path(ca))
            assert client.request("/health").status == 200
            print(begun, time.monotonic() - begun, flush=True)
        except (OSError, EOFError, AssertionError) as error:
            print(begun, f"failed: {error!r}", flush=True)
            client = None
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
