"""Past backups: what is kept, where, for how long, and that it never stands in the way."""

from __future__ import annotations

import json
import logging
import os
import resource
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from mothership_backup.config import Data, Settings
from mothership_backup.config import History as Keys
from mothership_backup.errors import HistoryError, SetupError
from mothership_backup.history import APPLICATION_ID, MIGRATIONS, History, Record

VERSION_1 = """
CREATE TABLE backup (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
 started_at REAL NOT NULL, ended_at REAL NOT NULL, client TEXT NOT NULL, credential TEXT NOT NULL,
 parameters TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, sent_bytes INTEGER NOT NULL,
 total_bytes INTEGER, duration_seconds REAL NOT NULL, database_count INTEGER, failed_sources INTEGER,
 source_count INTEGER NOT NULL, sources TEXT NOT NULL);
INSERT INTO backup VALUES
 (1, 'aa', 100, 101.5, '', '', '{}', 'complete', '', 5, 9, 1.5, 1, 0, 0, '[]'),
 (2, 'bb', 200, 202.5, '', '', '{}', 'failed', 'x', 0, NULL, 2.5, NULL, NULL, 0, '[]');
PRAGMA application_id = 0x6D736869;
PRAGMA user_version = 1;
"""


def record(number: int, outcome: str = "complete") -> Record:
    return Record(
        id=f"{number:032x}",
        started_at=1000.0 + number,
        ended_at=1000.5 + number,
        client="127.0.0.1",
        credential="cron",
        parameters={"compression": "deflate", "database": [], "files": True},
        outcome=outcome,
        reason="" if outcome == "complete" else "a reason",
        sent_bytes=number,
        total_bytes=2 * number,
        duration_seconds=0.5,
        database_count=1,
        failed_sources=0,
        source_count=1,
        sources=({"name": "events.db", "status": "ok"},),
    )


def settings(file: Path | str = "", data_dir: Path = Path("/nowhere/data"), keep: int = 1000) -> Settings:
    return Settings(data=Data(dir=data_dir), history=Keys(path=str(file), keep=keep))


async def numbers(history: History) -> list[int]:
    return [record.sent_bytes for record in (await history.page(100)).records]


@pytest.mark.parametrize("is_file", [False, True], ids=["memory", "file"])
async def test_a_record_comes_back_as_it_was(tmp_path: Path, is_file: bool) -> None:
    """With its sources when it is asked for by its id, without them in a list."""
    async with (history := History(settings(tmp_path / "h.db" if is_file else ""))).opened():
        history.add(record(7))
        [listed] = (await history.page(10)).records

        assert await history.find(record(7).id) == record(7)
        assert await history.find("unknown") is None
        assert (listed.id, listed.sources, listed.source_count) == (record(7).id, (), 1)
        assert (history.last, history.last_success_at) == (record(7), 1007.5)


async def test_pages(tmp_path: Path) -> None:
    """Newest first; each page begins where the one before has ended, whatever came meanwhile."""
    async with (history := History(settings())).opened():
        for number in range(1, 8):
            history.add(record(number))
        first = await history.page(3)
        history.add(record(8))
        second = await history.page(3, first.next)
        third = await history.page(3, second.next)

    pages = [[record.sent_bytes for record in page.records] for page in (first, second, third)]
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]
    assert third.next is None


async def test_a_restart_keeps_a_file(tmp_path: Path) -> None:
    """Rows, the last one, and the last success; nobody else may read it."""
    file = tmp_path / "history.db"
    async with (history := History(settings(file))).opened():
        history.add(record(1))
        history.add(record(2, "failed"))

    async with (history := History(settings(file))).opened():
        assert await numbers(history) == [2, 1]
        assert history.last is not None
        assert (history.last.outcome, history.last_success_at) == ("failed", 1001.5)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("history.db*")}
        assert modes == {0o600}


async def test_no_more_than_keep(tmp_path: Path) -> None:
    """The oldest rows go; the last success is remembered longer than its row."""
    file = tmp_path / "history.db"
    async with (history := History(settings(file, keep=3))).opened():
        history.add(record(1))
        await history.page(1)
        for number in range(2, 10):
            history.add(record(number, "cut"))
        assert await numbers(history) == [9, 8, 7]

    async with (history := History(settings(file, keep=2))).opened():
        assert history.last_success_at == 1001.5
        history.add(record(10, "cut"))
        assert await numbers(history) == [10, 9]


async def test_migration_from_version_1(tmp_path: Path) -> None:
    """A file of an older version keeps its rows and gets what is new."""
    file = tmp_path / "history.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript(VERSION_1)

    async with (history := History(settings(file))).opened():
        assert [record.id for record in (await history.page(10)).records] == ["bb", "aa"]
        assert history.last_success_at == 101.5
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("CREATE TABLE theirs(x); PRAGMA user_version = 0;", "another application"),
        (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99;", "newer version"),
    ],
)
async def test_a_foreign_file_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, reason: str
) -> None:
    """It is told, and the history is in memory."""
    file = tmp_path / "theirs.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript(script)
    before = file.read_bytes()

    async with (history := History(settings(file))).opened():
        history.add(record(1))
        assert await numbers(history) == [1]

    assert file.read_bytes() == before
    [line] = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert reason in line
    assert str(file) in line


@pytest.mark.parametrize("kind", ["no folder", "a folder", "no database"])
async def test_a_file_that_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It is told, and does not keep the service from its backups."""
    file = tmp_path / "h"
    if kind == "no folder":
        file = tmp_path / "missing" / "h"
    elif kind == "a folder":
        file.mkdir()
    else:
        file.write_bytes(b"no database at all" * 100)

    async with (history := History(settings(file))).opened():
        history.add(record(1))
        assert await numbers(history) == [1]

    assert len([entry for entry in caplog.records if entry.levelno == logging.ERROR]) == 1


@pytest.mark.parametrize("way", ["plain", "below", "linked folder", "linked file", "no such folder yet"])
def test_refused_inside_the_data_directory(tmp_path: Path, way: str) -> None:
    """Whatever it is called: the process must not open a file there."""
    data_dir = tmp_path / "data"
    (data_dir / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data_dir)
    (tmp_path / "h.db").symlink_to(data_dir / "real.db")
    files = {
        "plain": data_dir / "h.db",
        "below": data_dir / "sub" / "h.db",
        "linked folder": tmp_path / "link" / "h.db",
        "linked file": tmp_path / "h.db",
        "no such folder yet": tmp_path / "later" / "h.db",
    }
    where = tmp_path / "later" if way == "no such folder yet" else data_dir

    with pytest.raises(SetupError, match=r"history\.path: .* is inside the data directory"):
        History(settings(files[way], where))


def test_refused_with_a_second_name(tmp_path: Path) -> None:
    """The other name may be a live database's."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "events.db").touch()
    os.link(tmp_path / "data" / "events.db", tmp_path / "h.db")

    with pytest.raises(SetupError, match="hard link"):
        History(settings(tmp_path / "h.db", tmp_path / "data"))


async def test_a_locked_file_is_told_once_and_caught_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written waits, can be looked at, and is written when the lock is gone."""
    file = tmp_path / "history.db"
    async with (history := History(settings(file))).opened():
        history.add(record(1))
        await history.page(1)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            history.add(record(2))
            assert await numbers(history) == [1]
            history.add(record(3))
            assert await numbers(history) == [1]
            assert await history.find(record(3).id) == record(3)
            assert history.last == record(3)
            other.execute("ROLLBACK")

        assert await numbers(history) == [3, 2, 1]

    errors = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "locked" in errors[0]


async def test_a_full_disk_is_told_once_and_caught_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a locked file; the kernel's limit on a file's size stands for the disk's."""
    async with (history := History(settings(tmp_path / "history.db"))).opened():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            for number in (1, 2):
                history.add(record(number))
                assert await numbers(history) == []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert await numbers(history) == [2, 1]

    assert len([entry for entry in caplog.records if entry.levelno == logging.ERROR]) == 1


async def test_a_broken_file_is_an_error_of_ours(tmp_path: Path) -> None:
    """Who asks for the history hears of it, and nobody else."""
    file = tmp_path / "history.db"
    async with (history := History(settings(file))).opened():
        with closing(sqlite3.connect(file)) as other:
            other.execute("DROP TABLE backup")
        history.add(record(1))

        with pytest.raises(HistoryError):
            await history.page(1)


async def test_a_closed_history_takes_records() -> None:
    """A backup may end after it, or before it is opened."""
    history = History(settings())
    history.add(record(1))
    async with history.opened():
        assert await numbers(history) == [1]
    history.add(record(2))

    assert history.last == record(2)
    with pytest.raises(HistoryError):
        await history.find("0")


async def test_sources_are_json(tmp_path: Path) -> None:
    """Another tool can read the file."""
    file = tmp_path / "history.db"
    async with (history := History(settings(file))).opened():
        history.add(record(1))
    with closing(sqlite3.connect(file)) as db:
        [(text,)] = db.execute("SELECT sources FROM backup").fetchall()

    assert json.loads(text) == [{"name": "events.db", "status": "ok"}]
