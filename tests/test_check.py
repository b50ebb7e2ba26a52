"""The check says of each snapshot whether it is good, and only real damage counts against the backup."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drive import EXTRA, drive
from harness import Config, MakeDatabase
from mothership_backup import frames
from mothership_backup.decoder import Frame
from mothership_backup.errors import CutError
from support import (
    archive_of,
    backup_of,
    execute,
    has_dbpage,
    plan_of,
    reading,
    request_for,
    take,
    until,
)
from test_pace import slow_to_check

IN_MEMORY: Config = {}
ON_DISK: Config = {"snapshot": {"staging_memory_bytes": 0}}
WHERE = pytest.mark.parametrize(
    ("journal", "config"),
    [("wal", IN_MEMORY), ("delete", IN_MEMORY), ("delete", ON_DISK)],
    ids=["live", "memory", "disk"],
)


def flip_a_page(path: Path, page_size: int = 4096) -> None:
    """A page in the middle of a tree becomes nonsense."""
    with path.open("r+b") as file:
        file.seek(page_size * 7)
        file.write(b"\xaa" * 200)


def unsort(path: Path) -> None:
    """An index that says something else than its table: only the full check looks for that."""
    execute(
        path,
        "CREATE TABLE t(a, b)",
        "CREATE INDEX by_a ON t(a)",
        "INSERT INTO t VALUES (1, 10), (2, 20)",
    )
    execute(
        path,
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX by_a ON t(b)' WHERE name = 'by_a'",
    )


def add_collation(path: Path) -> None:
    """What only its application can sort."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.create_collation("HOUSE", lambda a, b: (a > b) - (a < b))
        db.execute("CREATE TABLE named(name TEXT COLLATE HOUSE UNIQUE)")
        db.execute("INSERT INTO named VALUES ('kitchen'), ('attic')")


def add_future(path: Path) -> None:
    """A schema that a newer SQLite wrote."""
    sql = "CREATE TABLE future(a) FROM TOMORROW"
    execute(
        path,
        "PRAGMA writable_schema=ON",
        f"INSERT INTO sqlite_schema VALUES ('table', 'future', 'future', 0, '{sql}')",
    )


@WHERE
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("kind", ["quick", "full"])
def test_a_good_database_is_ok(
    kind: str, page_size: int, journal: str, config: Config, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Of each engine, at each page size."""
    make_database(tmp_path / "data" / "a.db", journal=journal, rows=500, page_size=page_size)

    archive = archive_of(tmp_path / "data", config, check=kind, strict=True)

    assert archive.source("a.db")["check"] == {"kind": kind, "verdict": "ok"}


@WHERE
@pytest.mark.parametrize("page_size", [512, 4096])
def test_a_flipped_page_is_damage(
    page_size: int, journal: str, config: Config, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Its bytes are in the archive all the same: they may be the only ones. The others are not touched by it."""
    path = make_database(tmp_path / "data" / "a.db", journal=journal, rows=5000, page_size=page_size)
    make_database(tmp_path / "data" / "b.db", rows=5)
    flip_a_page(path, page_size)

    archive = archive_of(tmp_path / "data", config)

    damaged = archive.source("a.db")
    assert (damaged["status"], damaged["check"]["verdict"]) == ("failed", "damaged")
    assert damaged["check"]["text"]
    assert damaged["error"]["code"] == "damaged"
    assert b"\xaa" * 200 in archive.read("a.db")
    assert archive.source("b.db")["status"] == "ok"
    assert archive.manifest["complete"] is False


def test_a_flipped_page_of_a_copied_database_is_damage(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Where there is no sqlite_dbpage."""
    if has_dbpage():
        pytest.skip("this Python's own SQLite has sqlite_dbpage")
    path = make_database(tmp_path / "data" / "a.db", rows=5000)
    flip_a_page(path)

    driven = drive(tmp_path / "data", without=EXTRA)

    assert driven.outcome == "incomplete"
    assert driven.codes == {"a.db": "damaged"}
    assert driven.engines == {"a.db": "copied"}


@pytest.mark.parametrize("compression", ["deflate", "stored"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_strict_ends_a_damaged_backup(
    journal: str, compression: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """It shows only when the pages are out: the backup is cut, with its reason and the database's name."""
    path = make_database(tmp_path / "data" / "a.db", journal=journal, rows=5000)
    flip_a_page(path)
    run = backup_of(tmp_path / "data", strict=True, compression=compression)

    with pytest.raises(CutError) as caught:
        take(run)

    assert (caught.value.code, caught.value.source) == ("check", "a.db")
    assert run.outcome is not None
    assert (run.outcome.word, run.outcome.reason) == ("cut", "check")


def test_without_a_check_nothing_is_judged(tmp_path: Path, make_database: MakeDatabase) -> None:
    """The pages are what they are."""
    flip_a_page(make_database(tmp_path / "data" / "a.db", rows=5000))

    archive = archive_of(tmp_path / "data", check="none", strict=True)

    assert archive.source("a.db")["check"] == {"kind": "none"}


def test_only_the_full_check_compares_indexes_with_their_tables(tmp_path: Path) -> None:
    """That is what it takes its time for."""
    (tmp_path / "data").mkdir()
    unsort(tmp_path / "data" / "a.db")

    assert archive_of(tmp_path / "data", check="quick").source("a.db")["check"]["verdict"] == "ok"
    assert archive_of(tmp_path / "data", check="full").source("a.db")["check"]["verdict"] == "damaged"


@WHERE
@pytest.mark.parametrize("prepare", [add_collation, add_future])
def test_what_cannot_be_judged_is_not_damage(
    prepare: Callable[[Path], None], journal: str, config: Config, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Good databases make the check raise; the backup is complete, and the manifest has SQLite's words."""
    prepare(make_database(tmp_path / "data" / "a.db", journal=journal, rows=50))

    for kind in ("quick", "full"):
        archive = archive_of(tmp_path / "data", config, check=kind, strict=True)

        assert archive.source("a.db")["check"]["verdict"] == "unable"
        assert archive.source("a.db")["check"]["text"]
        assert archive.source("a.db")["status"] == "ok"


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_check_without_time_is_unfinished(compression: str, tmp_path: Path) -> None:
    """`check_timeout_seconds` is for all of a backup's checks together."""
    slow_to_check(tmp_path / "data" / "a.db", 20)
    slow_to_check(tmp_path / "data" / "b.db", 20)
    began = time.monotonic()

    archive = archive_of(
        tmp_path / "data", {"snapshot": {"check_timeout_seconds": 1}}, strict=True, compression=compression
    )

    assert time.monotonic() - began < 20
    assert archive.source("a.db")["check"]["verdict"] == "unfinished"
    assert archive.source("b.db")["check"]["verdict"] == "unfinished"
    assert archive.manifest["complete"] is True


def checkpoint_is_free(path: Path) -> bool:
    """Whether a TRUNCATE checkpoint, which waits for every reader, gets through at once."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        (is_busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy


@pytest.mark.live_engine
@pytest.mark.parametrize("check", ["none", "quick"])
def test_a_pin_is_let_go_with_its_check(check: str, tmp_path: Path, make_database: MakeDatabase) -> None:
    """While the next database is still being sent, the first one's writers have their WAL back."""
    # Each larger than what the pipe between reader and service holds.
    first = make_database(tmp_path / "data" / "a.db", rows=8_000, random_bytes=500)
    second = make_database(tmp_path / "data" / "b.db", rows=20_000, random_bytes=500)
    with (
        contextlib.closing(sqlite3.connect(first, isolation_level=None)) as one,
        contextlib.closing(sqlite3.connect(second, isolation_level=None)) as two,
    ):
        for live in (one, two):
            live.execute("DELETE FROM reading WHERE id = 1")
        with reading(request_for(tmp_path / "data", check=check)) as (_, incoming):
            plan_of(incoming)
            for live in (one, two):
                live.execute("DELETE FROM reading WHERE id = 2")
            assert not checkpoint_is_free(first)

            gone = released(incoming, check)

            assert gone
            assert checkpoint_is_free(first)
            assert not checkpoint_is_free(second)
            until(incoming, frames.END)


def released(incoming: Iterator[Frame], check: str) -> Frame:
    """The frame after which the first database is free: its verdict, or the second's first bytes."""
    if check != "none":
        return until(incoming, frames.CHECK)
    until(incoming, frames.END_OF_ENTRY)
    return until(incoming, frames.DATA)
