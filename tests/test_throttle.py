"""`read_bytes_per_second` is roughly held, spreads what it reads, and nothing goes silent because of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import Archive, MakeDatabase
from mothership_backup import frames
from support import backup_of, execute, plan_of, reading, request_for, until

COMPRESSIONS = ("deflate", "stored")


def watched(data: Path, rate: int, compression: str) -> tuple[float, float, Archive]:
    """Seconds in all, the longest in which nothing came, and the archive."""
    run = backup_of(data, {"limits": {"read_bytes_per_second": rate}}, compression=compression, strict=True)
    began = last = time.monotonic()
    longest = 0.0
    sent = bytearray()
    for chunk in run.chunks():
        if len(chunk):
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            sent += chunk
    return last - began, longest, Archive(bytes(sent))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """1.2 MB of a WAL database and 300 KB of a plain file."""
    folder = tmp_path_factory.mktemp("small")
    make_database(folder / "events.db", rows=1_200, random_bytes=900)
    (folder / "plain.db").write_bytes(b"line\n" * 60_000)
    return folder


def test_the_rate_is_held(small: Path) -> None:
    """Within a factor of one and a half either way."""
    size = sum(path.stat().st_size for path in small.iterdir())

    seconds, _, archive = watched(small, size // 2, "deflate")

    assert archive.zip.testzip() is None
    assert 2 / 1.5 < seconds < 2 * 1.5


def test_without_a_rate_nothing_is_spread(small: Path) -> None:
    """Zero is off."""
    seconds, _, _ = watched(small, 0, "stored")

    assert seconds < 1


def test_nothing_is_silent_for_two_seconds(small: Path) -> None:
    """At a rate at which a block of a mebibyte takes 2.6 seconds; in both compressions, files too."""
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda compression: watched(small, 400_000, compression), COMPRESSIONS))

    for seconds, longest, archive in results:
        assert seconds > 3
        assert longest < 2
        assert archive.zip.testzip() is None


def test_a_rate_below_any_block_still_moves(tmp_path: Path) -> None:
    """A few bytes a second are a few bytes a second."""
    (tmp_path / "tiny.db").write_bytes(b"0123456789" * 2)

    seconds, longest, archive = watched(tmp_path, 10, "stored")

    assert archive.read("tiny.db") == b"0123456789" * 2
    assert 1 < seconds < 3
    assert longest < 2


def test_a_lock_is_never_held_for_the_rate(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A rollback-journal database is copied aside at full speed; only the sending is slow."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=4_000, random_bytes=900)
    config = {"limits": {"read_bytes_per_second": 100_000}}

    began = time.monotonic()
    with reading(request_for(path.parent, config)) as (_, incoming):
        plan_of(incoming)
        until(incoming, frames.DATA)
        execute(path, "PRAGMA busy_timeout=0", "DELETE FROM reading")

    assert time.monotonic() - began < 2
