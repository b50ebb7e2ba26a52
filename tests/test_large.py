"""Databases over a gibibyte: byte-exact, the lock-byte page included, in memory that does not grow with them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from harness import Config, MakeDatabase
from processes import peak_memory_bytes
from support import plan_of, reading, request_for

GIB = 1024**3
MIB = 1024**2


def make_large(path: Path, journal: str, page_size: int, size: int) -> Path:
    """Of blobs that differ, closed and checkpointed: its file holds all of it."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={page_size}")
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("CREATE TABLE blob(id INTEGER PRIMARY KEY, content BLOB)")
        seed = os.urandom(MIB)
        for number in range(size // MIB + 1):
            db.execute("INSERT INTO blob VALUES (?, ?)", (number, number.to_bytes(8, "big") + seed))
    assert path.stat().st_size > size
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_through(data: Path, config: Config | None = None, **fields: object) -> tuple[str, int]:
    """What the reader says of the one database, and its own peak of memory."""
    with reading(request_for(data, config, check="none", **fields)) as (reader, incoming):
        plan_of(incoming)
        peak, sha256 = 0, ""
        for frame in incoming:
            peak = max(peak, peak_memory_bytes(reader._process.pid))
            sha256 = frame.document.get("sha256", sha256)
    return sha256, peak


@pytest.mark.long
@pytest.mark.live_engine
@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_over_a_gibibyte_every_byte_is_there(page_size: int, journal: str, tmp_path: Path) -> None:
    """The page that holds SQLite's locks is never written, and comes as zeros."""
    path = make_large(tmp_path / "data" / "a.db", journal, page_size, GIB + 8 * MIB)
    expected = sha256_of(path)

    digest, peak = read_through(path.parent, {"snapshot": {"max_lock_seconds": 60}}, stored=True)

    assert digest == expected
    assert peak < 96 * MIB
    path.unlink()


@pytest.mark.long
@pytest.mark.live_engine
def test_memory_is_the_same_at_ten_megabytes_and_at_two_gigabytes(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Deflated, as most backups are."""
    make_database(tmp_path / "small" / "a.db", rows=10_000, random_bytes=900)
    large = make_large(tmp_path / "large" / "a.db", "wal", 4096, 2 * GIB)

    _, small_peak = read_through(tmp_path / "small")
    _, large_peak = read_through(large.parent)

    assert abs(large_peak - small_peak) < 16 * MIB
    large.unlink()
