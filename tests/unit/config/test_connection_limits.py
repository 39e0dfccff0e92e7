"""How the files that a process may open are spread over its listeners' connections."""

from __future__ import annotations

import pytest

from mitu.config.connection_limits import connection_limits, kept_files, share


@pytest.mark.parametrize(
    ("asked", "total", "given"),
    [
        ([10, 20], 100, [10, 20]),
        ([1000], 100, [100]),
        ([1000, 1000], 100, [50, 50]),
        ([1000, 10, 50], 100, [45, 10, 45]),
        ([10, 1000, 20], 100, [10, 70, 20]),
        ([5, 5, 5], 2, [1, 1, 1]),
        ([], 100, []),
    ],
)
def test_share(asked: list[int], total: int, given: list[int]) -> None:
    """Who asks for little gets it; the others get the same each."""
    assert share(asked, total) == given


@pytest.mark.parametrize(
    ("asked", "files", "workers", "allowed"),
    [
        ([100_000], None, 1, [100_000]),
        ([100_000], 1 << 20, 2, [100_000]),
        ([18_000], 20_000, 2, [18_000]),
        ([100_000], 20_000, 2, [20_000 - 1_000 - 8]),
        ([100_000], 1024, 4, [1024 - 64 - 16]),
        ([100_000], 1024, 64, [1024 - 64 - 256]),
        ([100_000], 100, 1, [64]),
    ],
)
def test_some_files_are_kept(asked: list[int], files: int | None, workers: int, allowed: list[int]) -> None:
    assert connection_limits(asked, files, workers) == allowed


@pytest.mark.parametrize(
    ("files", "workers", "listeners", "first"),
    [(None, 1, 1, None), (20_000, 2, 3, 20_000 - 38), (1024, 1, 1, 1024 - 33), (70, 1, 1, 70 - 17)],
)
def test_the_last_files_are_kept(files: int | None, workers: int, listeners: int, first: int | None) -> None:
    assert kept_files(files, workers, listeners) == first
