"""Every benchmark, one after the other: `python -m benchmarks [--quick] [--json | --markdown] [--only mitu,nginx]`."""

from __future__ import annotations

import json
import sys

from benchmarks import alpn, handshake, idle_memory, requests, storm, tickets
from benchmarks.harness.load import LoadError

ALL = (
    handshake.BENCHMARK,
    requests.BENCHMARK,
    storm.BENCHMARK,
    idle_memory.BENCHMARK,
    alpn.BENCHMARK,
    tickets.BENCHMARK,
)


def main() -> int:
    """The command line, which every benchmark understands. Returns the exit code."""
    documents = []
    failed = 0
    for benchmark in ALL:
        try:
            options, result = benchmark.measure(sys.argv[1:])
        except LoadError as error:
            print(f"benchmarks.{benchmark.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if options.form == "json":
            documents.append(result.document())
        else:
            result.show(options.form)
    if documents:
        print(json.dumps(documents, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
