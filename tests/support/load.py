"""wrk and h2load, run beside a test, and what they say of failures."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Self

from support.client import Address


@dataclass
class Count:
    """Requests that were answered with success, and whatever was not."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        self.answered += other.answered
        self.failures += other.failures


class Wrk:
    """`wrk` on one URL until `stop`."""

    def __init__(self, address: Address, path: str, *, connections: int, headers: tuple[str, ...] = ()) -> None:
        url = f"https://{address[0]}:{address[1]}{path}"
        more = [word for header in headers for word in ("-H", header)]
        words = ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "10s", *more, url]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def stop(self) -> Count:
        self._process.send_signal(signal.SIGINT)
        text, _ = self._process.communicate(timeout=30)
        requests = re.search(r"(\d+) requests in", text)
        assert requests is not None, text
        problems = re.findall(r"(?:Socket errors|Non-2xx).*", text)
        return Count(int(requests[1]), problems)


class H2load:
    """`h2load` on one URL, in rounds of a few seconds, each on new connections, until `stop`."""

    def __init__(self, address: Address, path: str, *, connections: int, rate: int | None = None) -> None:
        url = f"https://{address[0]}:{address[1]}{path}"
        paced = [] if rate is None else [f"--rps={rate}"]
        self._command = ["h2load", "-t1", f"-c{connections}", "-m4", "-D3", "--warm-up-time=0", *paced, url]
        self.count = Count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="h2load")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            done = subprocess.run(self._command, capture_output=True, text=True, timeout=60, check=False)
            self.count.add(summary(done.stdout))

    def finish(self) -> None:
        """Begin no other round."""
        self._stop.set()

    def stop(self) -> Count:
        """After the round that is under way."""
        self.finish()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def summary(text: str) -> Count:
    """What h2load's report says."""
    requests = re.search(r"requests: .*?(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    assert requests is not None and statuses is not None, text
    succeeded, *bad = map(int, requests.groups())
    others = list(map(int, statuses.groups()))[1:]
    problems = [line for line, numbers in ((requests[0], bad), (statuses[0], others)) if any(numbers)]
    return Count(succeeded, problems)
