"""Runs of `mitu bench`, and what they print."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from mitu.bench.result import Result
from support.gateway import MITU, Gateway
from support.process import run

BENCH = (*MITU, "bench")


def bench(*words: object, code: int = 0) -> dict[str, Any]:
    """The document that a run prints, after a look at its exit code and its form; what it says beside is `said`."""
    done = run([*BENCH, *words, "--json"], timeout=100)
    assert done.returncode == code, (done.stdout[-3000:], done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, Result.model_json_schema(mode="serialization"))
    outcome = document["outcome"]
    assert outcome["begun"] == outcome["completed"] + outcome["failed"] + outcome["unfinished"]
    slots = outcome["timeline"]["slots"]
    for name in ("begun", "completed", "failed"):
        assert sum(slot[name] for slot in slots) == outcome[name]
    return document | {"said": _flat(done.stderr)}


def told(*words: object, code: int) -> str:
    """What a command that fails says, line breaks aside."""
    done = run([*BENCH, *words], timeout=100)
    assert done.returncode == code, (done.stdout, done.stderr)
    return _flat(done.stderr)


def _flat(text: bytes) -> str:
    # Typer draws a box around wrong usage.
    return " ".join(text.decode().replace("│", " ").split())


def url(gateway: Gateway, path: str = "/health") -> str:
    host, port = gateway.address()
    return f"https://localhost:{port}{path}" if host == "127.0.0.1" else f"https://{host}:{port}{path}"
