"""The ALPN decision alone, in nanoseconds: mitu's table, cached and not, beside crypto/tls's scan in Go.

For 1, 8 and 64 configured protocols, and for several lists that clients offer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.harness import load
from benchmarks.harness.bench import SERVER_CORE, Bench, Benchmark, Defaults
from benchmarks.harness.load import LoadError
from benchmarks.harness.results import Sheet
from benchmarks.peers import PEERS

COLUMNS = {"p1": "1 protocol ns", "p8": "8 ns", "p64": "64 ns"}
#: The row of decisions that are made for the first time.
NEW_LIST = "mitu, new list"
#: Share of the decisions that must have missed the cache for the figure to be a miss's.
MISSED = 0.99


def run(bench: Bench) -> None:
    """Each program once a round, in turn."""
    sheets: dict[str, Sheet] = {}
    # The command times a whole table in about the time that one measurement has elsewhere.
    batches = ["--batches", "5"] if bench.options.quick else []
    for _ in range(bench.options.rounds):
        rows = load.mitu_load(["alpn", *batches], core=SERVER_CORE)["rows"]
        if rash := [row for row in rows if row["missed"] < MISSED]:
            raise LoadError(f"decisions meant to miss the cache hit it: {rash}")
        _add(bench, sheets, "mitu", rows, "hit_ns")
        _add(bench, sheets, NEW_LIST, rows, "miss_ns")
        if (program := PEERS["go"].find()) is None:
            bench.result.missing["go"] = PEERS["go"].get
            continue
        command = ["taskset", "-c", SERVER_CORE, str(program), "-alpn"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        _add(bench, sheets, "go", json.loads(done.stdout)["rows"], "ns")


def _add(bench: Bench, sheets: dict[str, Sheet], server: str, rows: list[dict[str, Any]], column: str) -> None:
    for row in rows:
        client = row["client"]
        if client not in sheets:
            title = f"ALPN decision, client offers: {client}"
            sheets[client] = Sheet(client, title, "p64", COLUMNS, variants=frozenset({NEW_LIST}))
            bench.result.sheets.append(sheets[client])
        sheets[client].add(server, **{f"p{row['protocols']}": row[column]})


BENCHMARK = Benchmark("alpn", __doc__, run, Defaults(rounds=3, quick_rounds=1, servers=("mitu", "go")))

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
