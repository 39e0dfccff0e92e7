"""Every benchmark, one after the other: `python -m benchmarks [--quick] [--json [FILE]] [--only mitu,nginx]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import (
    alpn,
    contention,
    discovery,
    generators,
    h3,
    handshake,
    held,
    idle_memory,
    requests,
    storm,
    tickets,
)
from benchmarks.harness.load import LoadError
from benchmarks.harness.results import Form, Result, write

ALL = (
    handshake.BENCHMARK,
    requests.BENCHMARK,
    h3.BENCHMARK,
    storm.BENCHMARK,
    contention.BENCHMARK,
    idle_memory.BENCHMARK,
    held.BENCHMARK,
    alpn.BENCHMARK,
    tickets.BENCHMARK,
    discovery.BENCHMARK,
    generators.BENCHMARK,
)


def main() -> int:
    """The command line, which every benchmark understands. Returns the exit code."""
    results: list[Result] = []
    outputs: Mapping[Form, Path | None] = {}
    failed = 0
    for benchmark in ALL:
        try:
            options, result = benchmark.measure(sys.argv[1:])
        except LoadError as error:
            print(f"benchmarks.{benchmark.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        results.append(result)
        outputs = options.outputs
        if None not in outputs.values():
            result.show()
    write(outputs, [result.document() for result in results], results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
