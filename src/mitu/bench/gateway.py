"""A gateway made for one run: in a process of its own, so that its CPU is told apart and its files are its own.

It prints one line of JSON once it serves, ends when its standard input does, and then prints what it has counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mitu.bench import BenchError
from mitu.bench.result import Own
from mitu.bench.target import Target

BODY = "It works.\n"
_START_SECONDS = 30.0
_END_SECONDS = 30.0


@dataclass(slots=True)
class Serving:
    """`authority`: PEM of what signed its certificate. `counted`: set when it has ended."""

    target: Target
    authority: str
    counted: Own | None = None


@contextmanager
def serving() -> Iterator[Serving]:
    """The gateway, for as long as the block lasts. BenchError when it does not start, or does not end well."""
    command = [sys.executable, "-m", "mitu.bench.gateway"]
    pipe = subprocess.PIPE
    # Ctrl-C is for the run, which then ends this as always.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            facts = json.loads(_line(child, _START_SECONDS, "did not start"))
            port = int(facts["address"].rpartition(":")[2])
            running = Serving(Target("https", "localhost", port, "/", facts["address"], own=True), facts["authority"])
            yield running
            child.stdin.close()
            running.counted = Own.model_validate_json(_line(child, _END_SECONDS, "did not end well"))
        finally:
            # It removes its files, unless it does not come to that.
            child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
            child.kill()


def _line(child: subprocess.Popen[str], seconds: float, otherwise: str) -> str:
    """The next line that it prints. BenchError when it ends first, or says nothing for so long."""
    assert child.stdout is not None
    watch = threading.Timer(seconds, child.kill)
    watch.start()
    try:
        line = child.stdout.readline()
    finally:
        watch.cancel()
    if not line:
        raise BenchError(f"the gateway for this run {otherwise}; see above for its reason")
    return line


async def _serve() -> None:
    from mitu import logs
    from mitu.config.load import parse_config
    from mitu.config.model import Logging
    from mitu.dev.authority import Authority
    from mitu.gateway import Gateway

    logs.configure(Logging(level="warning"))
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="mitu-bench-") as folder:
        authority = Authority.open(Path(folder))
        pair = authority.server()
        listener = {
            "name": "bench",
            "bind": "127.0.0.1:0",
            "protocols": ["h2", "http/1.1"],
            "tls": {"certificates": [{"certificate": str(pair.certificate), "key": str(pair.key)}]},
            "routes": [{"match": {"path_prefix": "/"}, "respond": {"content_type": "text/plain", "body": BODY}}],
        }
        async with Gateway(parse_config({"runtime": {"workers": workers}, "listeners": [listener]})) as gateway:
            facts = {"address": gateway.addresses["bench"], "authority": authority.certificate.read_text()}
            print(json.dumps(facts), flush=True)
            begun = _cpu()
            await asyncio.to_thread(sys.stdin.read)
            requests = _sum(gateway.metrics(), "mitu_http_requests_total")
            own = Own(workers=workers, cpu_seconds=_cpu() - begun, requests=requests)
            print(own.model_dump_json(), flush=True)
            await gateway.stop()


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _sum(metrics: str, name: str) -> int:
    """Over all labels, of Prometheus text."""
    return sum(int(float(value)) for value in re.findall(rf"^{name}{{[^\n]*}} ([0-9.e+]+)$", metrics, re.M))


if __name__ == "__main__":
    asyncio.run(_serve())
