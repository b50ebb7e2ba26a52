"""Each engine gives the pages of one moment of its database, and costs the application what DESIGN 3 says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from drive import EXTRA, drive, mounted, root_only
from harness import Archive, Config, MakeDatabase
from processes import Samples, open_paths, wait_until
from support import (
    archive_of,
    backup_of,
    codes,
    execute,
    has_dbpage,
    plan_of,
    reading,
    reference_pages,
    request_for,
    rows,
)
from writers import check_bank, create_bank, writing

PAGE_SIZES = (512, 4096, 65536)
ON_DISK: Config = {"snapshot": {"staging_memory_bytes": 0}}


def bank_in(archive: Archive, folder: Path, name: str = "bank.db") -> int:
    """The commits of the copy, whose every invariant holds."""
    return check_bank(archive.database(name, folder))


# live


@pytest.mark.live_engine
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("vacuum", [0, 1, 2])
def test_live_gives_the_exact_pages(
    page_size: int, vacuum: int, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Byte for byte what SQLite itself serialises, free pages and pages in the WAL included."""
    path = tmp_path / "data" / "a.db"
    path.parent.mkdir()
    execute(path, f"PRAGMA page_size={page_size}", f"PRAGMA auto_vacuum={vacuum}", "VACUUM")
    make_database(path, rows=3000, page_size=page_size)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("PRAGMA wal_autocheckpoint=0")
        live.execute("DELETE FROM reading WHERE id % 3")
        live.execute("CREATE INDEX by_value ON reading(value)")

        archive = archive_of(path.parent, strict=True)

        assert archive.read("a.db") == reference_pages(path)
    source = archive.source("a.db")
    assert source["engine"] == "live"
    assert (source["page_size"], source["journal_mode"]) == (page_size, "wal")
    assert source["size_bytes"] == page_size * source["page_count"]


@pytest.mark.live_engine
@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_live_is_one_moment_while_another_process_writes(compression: str, tmp_path: Path) -> None:
    """The pages taken after hundreds of commits are those of the pin."""
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, "wal")

    with writing("bank", bank, rate=1000) as writer:
        run = backup_of(bank.parent, compression=compression, strict=True)
        chunks = run.chunks()
        next(chunks)
        at_the_pin = rows(bank, "SELECT commits FROM progress")[0][0]
        wait_until("300 commits", lambda: rows(bank, "SELECT commits FROM progress")[0][0] > at_the_pin + 300)
        archive = Archive(b"".join(chunks))
        tally = writer.stop()

    assert bank_in(archive, tmp_path / "out") <= at_the_pin
    assert tally.busy == 0


@pytest.mark.live_engine
def test_live_outlasts_whatever_the_application_does(tmp_path: Path, make_database: MakeDatabase) -> None:
    """VACUUM, DROP, every kind of checkpoint and the end of its connection, after the pin: the pages are the pin's."""
    path = make_database(tmp_path / "data" / "a.db", rows=20_000)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("DELETE FROM reading WHERE id % 2")
        expected = reference_pages(path)
        run = backup_of(path.parent)
        chunks = run.chunks()
        next(chunks)

        live.execute("VACUUM")
        live.execute("DROP TABLE reading")
        for kind in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
            live.execute("PRAGMA busy_timeout=0")
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # a pin makes the stronger ones wait, as it must
                live.execute(f"PRAGMA wal_checkpoint({kind})")
    archive = Archive(b"".join(chunks))

    assert archive.read("a.db") == expected
    assert rows(path, "SELECT count(*) FROM sqlite_schema") == [(0,)]


@pytest.mark.live_engine
def test_a_schema_newer_than_this_sqlite_is_copied(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Its pages are pages; only the check cannot judge them."""
    path = make_database(tmp_path / "data" / "a.db", rows=10)
    execute(
        path,
        "PRAGMA writable_schema=ON",
        "INSERT INTO sqlite_schema VALUES ('table', 'future', 'future', 0, 'CREATE TABLE future(a) FROM TOMORROW')",
    )

    archive = archive_of(path.parent, strict=True)

    assert archive.source("a.db")["check"]["verdict"] == "unable"
    assert archive.manifest["complete"] is True


# staged


@pytest.mark.live_engine
@pytest.mark.parametrize("config", [None, ON_DISK], ids=["memory", "disk"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_staged_gives_the_exact_pages(
    page_size: int, config: Config | None, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """From memory and from a file without a name; checked there, when the lock is long gone."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=3000, page_size=page_size)

    archive = archive_of(path.parent, config, strict=True, check="full")

    assert archive.read("a.db") == path.read_bytes()
    source = archive.source("a.db")
    assert (source["engine"], source["journal_mode"]) == ("staged", "rollback")
    assert source["check"] == {"kind": "full", "verdict": "ok"}


@pytest.mark.parametrize("config", [None, ON_DISK], ids=["memory", "disk"])
@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_rollback_journal_database_is_free_while_its_copy_is_sent(
    compression: str, journal: str, config: Config | None, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Its lock is held for the copy alone: here nobody takes the second chunk, and another process commits."""
    path = make_database(tmp_path / "data" / "a.db", journal=journal, rows=20_000, random_bytes=300)
    run = backup_of(path.parent, config, compression=compression)
    chunks = run.chunks()
    data = [next(chunks), next(chunks)]  # the local header: the copy is there

    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM reading")
        other.execute("COMMIT")
        archive = Archive(b"".join([*data, *chunks]))

    with contextlib.closing(sqlite3.connect(archive.database("a.db", tmp_path / "out"))) as copy:
        assert copy.execute("SELECT count(*) FROM reading").fetchone() == (20_000,)


def test_nothing_that_is_staged_has_a_name(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Not in `staging_dir`, not beside the source; memory while there is room for it, then the disk."""
    data, staging = tmp_path / "data", tmp_path / "staging"
    staging.mkdir()
    small = make_database(data / "small.db", journal="delete", rows=10)
    make_database(data / "large.db", journal="delete", rows=40_000, random_bytes=300)
    config: Config = {
        "snapshot": {"staging_dir": str(staging), "staging_memory_bytes": 2 * small.stat().st_size},
        "limits": {"read_bytes_per_second": 8_000_000},
    }
    seen: set[str] = set()
    with Samples(lambda: [*os.listdir(staging), *os.listdir(data)]) as samples:
        run = backup_of(data, config)
        for _ in run.chunks():
            if run._reader is not None:
                seen.update(path for path in open_paths(run._reader._process.pid) if "deleted" in path)

    in_files = [path for path in seen if path.startswith(str(staging))]
    assert in_files
    if run.plan is not None and run.plan.engine.dbpage:
        assert [path for path in seen if "memfd:" in path]
    assert {name for name in samples.seen if not name.startswith("mothership-backup-")} <= {
        "small.db",
        "large.db",
    }
    assert os.listdir(staging) == []


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_copy_that_takes_too_long_fails_by_name_with_the_remedy(
    journal: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """`max_lock_seconds` bounds each lock; what is no lock on writers (WAL) it does not bound."""
    path = make_database(tmp_path / "data" / "a.db", journal=journal, rows=20_000, random_bytes=300)
    make_database(tmp_path / "data" / "b.db", rows=5)

    archive = archive_of(path.parent, {"snapshot": {"max_lock_seconds": 0.001}})

    if journal == "wal":
        assert codes(archive) == {}
    else:
        assert codes(archive) == {"a.db": "lock_too_long"}
        message = archive.source("a.db")["error"]["message"]
        assert "WAL" in message
        assert "staging_dir" in message
        execute(path, "PRAGMA busy_timeout=0", "DELETE FROM reading")


def test_without_room_a_database_fails_by_name(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A staging_dir on a full file system: the others are there, and stored says so before its first byte."""
    root_only()
    data, small = tmp_path / "data", tmp_path / "small"
    small.mkdir()
    make_database(data / "a.db", journal="delete", rows=10_000, random_bytes=300)
    (data / "note.db").write_bytes(b"plain")
    config: Config = {"snapshot": {"staging_dir": str(small), "staging_memory_bytes": 0}}
    command = mounted(f'mount -t tmpfs -o size=1m none {small} && exec "$@"')

    driven = drive(data, config, command=command, databases=["note.db", "a.db"])
    strict = drive(data, config, command=command, compression="stored", strict=True)

    assert driven.outcome == "incomplete"
    assert driven.codes == {"a.db": "no_room"}
    assert strict.error is not None
    assert strict.error["code"] == "incomplete"
    assert str(small) in strict.error["message"]


def test_staging_leaves_the_application_its_room(tmp_path: Path, make_database: MakeDatabase) -> None:
    """On the databases' own disk `min_free_bytes` stay free of copies."""
    make_database(tmp_path / "data" / "a.db", journal="delete", rows=10)
    (tmp_path / "data" / "b.db").touch()
    (tmp_path / "staging").mkdir()
    config: Config = {
        "snapshot": {"staging_dir": str(tmp_path / "staging"), "staging_memory_bytes": 0},
        "limits": {"min_free_bytes": 2**62},
    }

    assert codes(archive_of(tmp_path / "data", config)) == {"a.db": "no_room"}


# copied


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_without_dbpage_and_isal_databases_are_copied(
    journal: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """In a process where neither can be imported: whole, checked, and the manifest says how."""
    if has_dbpage():
        pytest.skip("this Python's own SQLite has sqlite_dbpage")
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, journal)
    for page_size in (512, 65536):
        make_database(tmp_path / "data" / f"{page_size}.db", journal=journal, rows=500, page_size=page_size)

    for compression in ("deflate", "stored"):
        with writing("bank", bank, rate=500) as writer:
            driven = drive(bank.parent, without=EXTRA, strict=True, compression=compression)
            tally = writer.stop()

        assert set(driven.engines.values()) == {"copied"}
        assert driven.archive is not None
        assert bank_in(driven.archive, tmp_path / "out") > 0
        verdicts = {source["check"]["verdict"] for source in driven.archive.manifest["sources"]}
        assert verdicts == {"ok"}
        for name in ("512.db", "65536.db"):
            copy = driven.archive.database(name, tmp_path / "out")
            assert rows(copy, "SELECT count(*) FROM reading") == [(500,)]
        assert tally.busy == 0


def test_a_plan_never_stages(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A HEAD request or `databases` locks nothing for the length of a copy."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=1000)
    digest = hashlib.sha256(path.read_bytes()).digest()

    with reading(request_for(path.parent, mode="plan")) as (_, incoming):
        sources, _ = plan_of(incoming)
        execute(path, "PRAGMA busy_timeout=0", "BEGIN EXCLUSIVE", "COMMIT")
        rest = [frame.type for frame in incoming]

    assert [source["status"] for source in sources] == ["ok"]
    assert len(rest) == 1
    assert hashlib.sha256(path.read_bytes()).digest() == digest
