"""`snapshot.engine`: what an installation may choose when it cannot bear a held pin, or a copy."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path

import pytest

from drive import EXTRA, drive
from harness import Archive, Config, MakeDatabase
from support import archive_of, backup_of, engines, reference_pages

STAGED: Config = {"snapshot": {"engine": "staged"}}
HELD_CHUNKS = 2  # the decision, and the head of the first entry


def truncate_checkpoint(path: Path) -> tuple[int, int, int]:
    """Whether it was kept from its end, and the frames in the WAL; busy at once."""
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as db:
        busy, in_wal, moved = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return busy, in_wal, moved


@pytest.mark.parametrize(
    ("config", "may_truncate"),
    [
        pytest.param({}, False, marks=pytest.mark.live_engine),
        (STAGED, True),
    ],
)
def test_a_truncate_checkpoint_waits_for_a_pin_and_not_for_a_staged_copy(
    config: Config, may_truncate: bool, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """The client has read no page yet: live the snapshot is held for it, staged it is not."""
    path = make_database(tmp_path / "data" / "a.db", rows=20_000, random_bytes=900)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("CREATE TABLE later(x)")
        before = reference_pages(path)
        chunks = backup_of(path.parent, config, check="none").chunks()
        held = list(itertools.islice(chunks, HELD_CHUNKS))
        application.execute("INSERT INTO later VALUES (1)")

        busy, _, _ = truncate_checkpoint(path)
        archive = Archive(b"".join([*held, *chunks]))

    assert (busy == 0) is may_truncate
    assert len(archive.read("a.db")) == len(before)


def test_staged_databases_are_of_no_one_instant_and_say_so(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Each is whole, and nothing is claimed of the two together."""
    for name in ("a.db", "b.db"):
        make_database(tmp_path / "data" / name)

    archive = archive_of(tmp_path / "data", STAGED, strict=True)

    assert set(engines(archive.manifest).values()) <= {"staged", "copied"}
    assert archive.manifest["instant"]["exact"] is False
    assert {source["check"]["verdict"] for source in archive.manifest["sources"]} == {"ok"}


@pytest.mark.live_engine
def test_live_is_live(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Where it can be had, nothing else changes."""
    make_database(tmp_path / "data" / "a.db")

    archive = archive_of(tmp_path / "data", {"snapshot": {"engine": "live"}}, strict=True)

    assert engines(archive.manifest) == {"a.db": "live"}


def test_live_does_not_fall_back_to_a_copy(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Without sqlite_dbpage it fails by name, with the remedy."""
    make_database(tmp_path / "data" / "wal.db")
    make_database(tmp_path / "data" / "rollback.db", journal="delete")

    driven = drive(tmp_path / "data", {"snapshot": {"engine": "live"}}, without=EXTRA)

    assert driven.archive is not None
    assert driven.archive.source("rollback.db")["status"] == "ok"
    assert driven.archive.source("wal.db")["error"]["code"] == "no_live_engine"
