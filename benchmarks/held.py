"""As many connections as one process may have files for, of every protocol at once, held: their memory, its growth.

18,000 connections, each with one exchange behind it (MQTT is relayed to mosquitto, and takes two files). First what
each protocol takes for one of them, the server's resident memory and the kernel's beside it, as `idle_memory` has it,
then the same of all, minute by minute: what does not grow is held for as long as one likes. A connection that the
server closes fails the run.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from benchmarks.harness import load, process
from benchmarks.harness.bench import CLIENT_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.paths import find_program
from benchmarks.harness.results import SUBJECT, Goal, Sheet
from benchmarks.peers import Settings

MINUTES, QUICK_MINUTES = 10, 1
TOTAL = 18_000
#: ALPN name, share of all connections, and the server's port.
MIX = (("http/1.1", 0.25, "https"), ("h2", 0.25, "https"), ("mqtt", 0.19, "mqtt"), ("h3", 0.31, "https"))
#: Connections of each protocol that pay for what a server allocates once.
FIRST = 100

MEMORY = {"user_kib": "server KiB", "kernel_kib": "kernel KiB, both ends", "count": "connections"}
TIMES = {"user_mib": "server MiB", "kernel_mib": "kernel MiB", "growth": "server, ÷ minute 0"}


def run(bench: Bench) -> None:
    """One server, one mix, once: rounds would be hours."""
    if SUBJECT not in bench.peers or find_program("mosquitto") is None:
        bench.result.note(f"not measured: it takes {SUBJECT}, and the Debian package mosquitto")
        return
    total = bench.options.connections or (TOTAL // 10 if bench.options.quick else TOTAL)
    minutes = QUICK_MINUTES if bench.options.quick else MINUTES
    memory = Sheet("protocols", f"one of {total:,} idle connections: memory", "user_kib", MEMORY)
    title = f"{total:,} idle connections of four protocols, held for {minutes} min"
    goals = [Goal("growth", 1.01)]
    course = Sheet("course", title, "user_mib", TIMES, goals=goals)
    bench.result.sheets += [memory, course]
    with ExitStack() as stack:
        _, upstream = stack.enter_context(load.upstream(core=CLIENT_CORE))
        relayed = stack.enter_context(load.broker(bench.folder, core=CLIENT_CORE))
        settings = Settings(bench.certificate("p256"), upstream=upstream, broker=relayed, h3=True)
        server = stack.enter_context(bench.peers[SUBJECT].start(settings))

        def hold(alpn: str, port: str, count: int) -> None:
            stack.enter_context(load.held(server.address(port), ["--alpn", alpn], count, core=CLIENT_CORE))

        def now() -> tuple[int, int]:
            time.sleep(bench.options.seconds)
            return server.resident(), process.kernel_memory()

        for alpn, _, port in MIX:
            hold(alpn, port, FIRST)
        begun = before = now()
        for alpn, share, port in MIX:
            count = round(total * share) - FIRST
            hold(alpn, port, count)
            after = now()
            _add(memory, alpn, before, after, count)
            before = after
        _add(memory, "all", begun, before, total - FIRST * len(MIX))
        for minute in range(minutes + 1):
            user, kernel = server.resident(), process.kernel_memory()
            name = SUBJECT if minute == minutes else f"minute {minute}"
            course.add(name, user_mib=user / 2**20, kernel_mib=kernel / 2**20, growth=user / before[0])
            bench.log(f"minute {minute}: {user / 2**20:.1f} MiB, kernel {kernel / 2**20:.1f} MiB")
            if minute < minutes:
                time.sleep(60)


def _add(sheet: Sheet, row: str, before: tuple[int, int], after: tuple[int, int], count: int) -> None:
    user, kernel = ((late - early) / count / 1024 for early, late in zip(before, after, strict=True))
    sheet.add(row, user_kib=user, kernel_kib=kernel, count=count)


BENCHMARK = Benchmark("held", __doc__, run, Defaults(rounds=1, seconds=5.0, servers=(SUBJECT,)))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
