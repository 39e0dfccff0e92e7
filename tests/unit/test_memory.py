"""The memory that control groups allow: both versions, nested groups, containers that see only themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitu.memory import memory_limit


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "1000\n", "a/memory.max": "max\n"}, 1000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "500\n"}, 500),
        ("0::/\n", {"memory.max": "700\n"}, 700),
        ("0::/host/path\n", {"memory.max": "700\n"}, 700),
        ("0::/a\n", {"a/memory.max": "max\n"}, None),
        ("0::/a\n", {}, None),
        ("5:memory:/a\n4:cpu:/b\n", {"memory/a/memory.limit_in_bytes": "300\n"}, 300),
        ("5:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("5:memory:/a\n", {"memory/memory.limit_in_bytes": "400\n"}, 400),
    ],
)
def test_limit(tmp_path: Path, own: str, files: dict[str, str], expected: int | None) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit(tmp_path / "own", tmp_path / "root") == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "none", tmp_path) is None
