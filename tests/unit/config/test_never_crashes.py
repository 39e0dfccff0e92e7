"""Whatever a configuration holds, `check` answers with a report: never with an exception, never for ever."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mitu import Report, check
from mitu.cli.output import render
from mitu.config.load import FORMATS

GOOD = Path(__file__).parents[2] / "golden" / "good"
BASES = [YAML(typ="safe").load((GOOD / name).read_text(encoding="utf-8")) for name in ("smallest.yaml", "routes.yaml")]
BASES.append(json.loads((GOOD / "handler.json").read_text(encoding="utf-8")))
# The corpus: every configuration that is known to be read, and every one known not to be.
FILES = sorted(
    path
    for kind in ("good", "bad")
    for path in (GOOD.parent / kind).iterdir()
    if path.suffix in FORMATS and path.stat().st_size
)
quietly = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

WORDS = st.sampled_from(
    ["", "app", "h2", "http/1.1", "1.2", "${X}", "${", "$$", "127.0.0.1:1", ":0", "10s", "64KiB", "/", "*.a", "(",
     "\x00", "unix:/x", "certs/edge.crt", "round_robin", "a:b", "\ud800", "é", "<<", "-----BEGIN", "0", "true"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
FIELDS = st.sampled_from(
    ["listeners", "upstreams", "name", "bind", "protocols", "tls", "routes", "match", "path", "headers", "filters",
     "alpn", "relay", "endpoints", "balancer", "hash", "header", "certificates", "certificate", "key", "admin",
     "token", "file"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS | WORDS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def folder(certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "certs").symlink_to(certs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examine(path: Path) -> Report:
    report = check(path, environ={"X": "1"})
    for one in (*report.errors, *report.warnings):
        str(one).encode()
        render(one).plain.encode()
        json.dumps(one.as_json())
    return report


def places(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield loc
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*loc, key))
    elif isinstance(value, list):
        for at, child in enumerate(value):
            yield from places(child, (*loc, at))


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A good configuration with a few values replaced, removed, renamed or doubled."""
    data = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 4))):
        *way, last = draw(st.sampled_from([loc for loc in places(data) if loc] or [("listeners",)]))
        parent = data
        for part in way:
            parent = parent[part]
        if not isinstance(parent, dict | list) or (isinstance(parent, dict) and last not in parent):
            continue
        kind = draw(st.sampled_from(["replace", "remove", "rename", "double", "insert"]))
        if kind == "replace":
            parent[last] = draw(VALUES)
        elif kind == "remove":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(FIELDS | WORDS)] = parent.pop(last)
        elif kind == "double" and isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[last]))
        elif kind == "insert" and isinstance(parent, dict):
            parent[draw(FIELDS | WORDS)] = draw(VALUES)
    return data


@quietly
@given(data=mutations())
def test_mutated_configurations(folder: Path, data: Any) -> None:
    path = folder / "mitu.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    examine(path)


@quietly
@given(data=VALUES)
def test_random_structures(folder: Path, data: Any) -> None:
    path = folder / "mitu.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    examine(path)


@quietly
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes(folder: Path, content: bytes) -> None:
    for suffix in FORMATS:
        path = folder / f"mitu{suffix}"
        path.write_bytes(content)
        assert not examine(path).ok


@quietly
@given(data=st.data())
def test_damaged_files(folder: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(FILES))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"{", b"&a ", b"*a", b"\t", b'"', b"'", b"|", b"!"])
        )
        content[at : at + data.draw(st.integers(0, 3))] = piece
    path = folder / source.name
    path.write_bytes(bytes(content))
    examine(path)
