"""Past backups: the last ones, in memory or in a SQLite file of their own. The only owner of aiosqlite.

A backup never waits for its record and never fails because of it: `add` returns at once, a task writes, and what
cannot be written now (the disk is full, somebody has locked the file) is told once and tried again with the next one.

The file is opened in the service process, whose locks in the data directory it must not touch: it stands elsewhere.
https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiosqlite

from mothership_backup.config import Settings
from mothership_backup.errors import HistoryError, SetupError
from mothership_backup.place import is_inside

log: Final = logging.getLogger("mothership_backup")

IN_MEMORY: Final = ":memory:"
BUSY_SECONDS: Final = 0.5
MAX_WAITING: Final = 100
"""Records that wait for a file that cannot be written; then the oldest are lost."""
APPLICATION_ID: Final = 0x6D736869  # "mshi": nobody else's database is written to
MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        "CREATE TABLE backup (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " started_at REAL NOT NULL, ended_at REAL NOT NULL, client TEXT NOT NULL, credential TEXT NOT NULL,"
        " parameters TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, sent_bytes INTEGER NOT NULL,"
        " total_bytes INTEGER, duration_seconds REAL NOT NULL, database_count INTEGER, failed_sources INTEGER,"
        " source_count INTEGER NOT NULL, sources TEXT NOT NULL)",
    ),
    (  # it outlives the row it comes from
        "CREATE TABLE last_success (only INTEGER PRIMARY KEY CHECK (only = 1), ended_at REAL NOT NULL)",
        "INSERT INTO last_success SELECT 1, max(ended_at) FROM backup WHERE outcome = 'complete'"
        " HAVING count(*) > 0",
    ),
)
"""The step at index N makes version N + 1 (``user_version``) of version N. Never changed, only added to."""

INSERT: Final = (
    "INSERT OR IGNORE INTO backup (id, started_at, ended_at, client, credential, parameters, outcome, reason,"
    " sent_bytes, total_bytes, duration_seconds, database_count, failed_sources, source_count, sources)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SUCCEED: Final = "INSERT OR REPLACE INTO last_success VALUES (1, ?)"
FORGET: Final = "DELETE FROM backup WHERE number <= (SELECT max(number) FROM backup) - ?"
COLUMNS: Final = (
    "number, id, started_at, ended_at, client, credential, parameters, outcome, reason, sent_bytes, total_bytes,"
    " duration_seconds, database_count, failed_sources, source_count"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One backup that has ended. Times are seconds since 1970; ``sources`` are the first of ``source_count``."""

    id: str
    started_at: float
    ended_at: float
    client: str
    credential: str
    parameters: Mapping[str, Any]
    outcome: str
    reason: str
    sent_bytes: int
    total_bytes: int | None  # with the next two: unknown without a plan
    duration_seconds: float
    database_count: int | None
    failed_sources: int | None
    source_count: int
    sources: Sequence[Mapping[str, object]] = ()


class Page(NamedTuple):
    """Records, newest first, without their sources; ``next`` begins the next page."""

    records: tuple[Record, ...]
    next: int | None


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refuse_unsafe(settings: Settings) -> None:
    """Raises SetupError for a file that could be, or stand beside, a live database. Looks, opens nothing."""
    if not settings.history.path:
        return
    path, data_dir = Path(os.path.realpath(settings.history.path)), settings.data.dir
    if is_inside(path, data_dir) or Path(os.path.realpath(data_dir)) in path.parents:
        raise SetupError(
            f"history.path: {path} is inside the data directory {data_dir}, where this process opens nothing: closing"
            " a file there drops the locks that an application in the same process holds; choose a file elsewhere"
        )
    with contextlib.suppress(OSError):  # not there yet
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise SetupError(
                f"history.path: {path} has a second name (a hard link): choose a file of its own"
            )


class History:
    """The record of one mount. ``last`` and ``last_success_at`` are always at hand; the rest is asked for."""

    def __init__(self, settings: Settings) -> None:
        refuse_unsafe(settings)
        self.last: Record | None = None
        self.last_success_at: float | None = None
        self._settings = settings
        self._keep = settings.history.keep
        self._db: aiosqlite.Connection | None = None
        self._waiting: dict[str, Record] = {}
        self._writing: asyncio.Task[None] | None = None
        self._is_failing = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """A file that cannot be used is told, and the history is in memory then. Raises SetupError."""
        self._db = await self._open()
        try:
            await self._recall(self._db)
            yield
        finally:
            try:
                await self._settle()
            finally:
                db, self._db = self._db, None
                await db.close()

    def add(self, record: Record) -> None:
        """Keep one more. Returns at once and raises nothing."""
        self.last = record
        if record.outcome == "complete":
            self.last_success_at = record.ended_at
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
        self._waiting[record.id] = record
        self._write_soon()

    async def page(self, limit: int, before: int | None = None) -> Page:
        """The newest records, or those before a page's ``next``. Raises HistoryError."""
        await self._settle()
        query = f"SELECT {COLUMNS} FROM backup WHERE number < ? ORDER BY number DESC LIMIT ?"
        rows = await self._fetch(query, (2**63 - 1 if before is None else before, limit + 1))
        records = tuple(_record(row) for row in rows[:limit])
        return Page(records, rows[limit - 1]["number"] if len(rows) > limit else None)

    async def find(self, backup_id: str) -> Record | None:
        """One record with its sources. Raises HistoryError."""
        if waiting := self._waiting.get(backup_id):
            return waiting
        rows = await self._fetch(f"SELECT {COLUMNS}, sources FROM backup WHERE id = ?", (backup_id,))
        return _record(rows[0]) if rows else None

    # Opening.

    async def _open(self) -> aiosqlite.Connection:
        path = self._settings.history.path
        if path:
            try:
                return await self._open_file(path)
            except (aiosqlite.Error, HistoryError, OSError) as error:
                log.error("history.path: %s: %s; the history is in memory until the next start", path, error)
        return await _connect(IN_MEMORY)

    async def _open_file(self, path: str) -> aiosqlite.Connection:
        with ThreadPoolExecutor(1, "mothership-backup-history") as thread:  # a disk may be slow
            await asyncio.get_running_loop().run_in_executor(thread, _prepare, self._settings)
        return await _connect(path)

    async def _recall(self, db: aiosqlite.Connection) -> None:
        try:
            newest = await self.page(1)
            rows = await db.execute_fetchall("SELECT ended_at FROM last_success")
        except (aiosqlite.Error, HistoryError) as error:
            self._tell(error)
            return
        self.last = newest.records[0] if newest.records else None
        self.last_success_at = next((row["ended_at"] for row in rows), None)

    # Reading and writing.

    async def _fetch(self, query: str, values: Sequence[object]) -> Sequence[aiosqlite.Row]:
        if self._db is None:
            raise HistoryError("the history is closed")
        try:
            return list(await self._db.execute_fetchall(query, values))
        except aiosqlite.Error as error:
            raise HistoryError(f"the history cannot be read: {error}") from error

    def _write_soon(self) -> None:
        if self._db is not None and self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write(self._db))

    async def _settle(self) -> None:
        """What waits has been written, or cannot be."""
        self._write_soon()
        if self._writing is not None:
            await asyncio.wait([self._writing])  # who leaves meanwhile does not cancel it

    async def _write(self, db: aiosqlite.Connection) -> None:
        while self._waiting:
            records = tuple(self._waiting.values())
            try:
                await self._store(db, records)
            except aiosqlite.Error as error:
                self._tell(error)
                return
            for record in records:
                self._waiting.pop(record.id, None)
            if self._is_failing:
                self._is_failing = False
                log.info("history: %s can be written again", self._settings.history.path)

    async def _store(self, db: aiosqlite.Connection, records: Sequence[Record]) -> None:
        async with _transaction(db):
            for record in records:
                await db.execute(INSERT, _row(record))
                if record.outcome == "complete":
                    await db.execute(SUCCEED, (record.ended_at,))
            await db.execute(FORGET, (self._keep,))

    def _tell(self, error: Exception) -> None:
        if not self._is_failing:
            log.error(
                "history: %s: %s; backups go on, and the last %d records wait in memory (told once)",
                self._settings.history.path or IN_MEMORY,
                error,
                MAX_WAITING,
            )
        self._is_failing = True


def _prepare(settings: Settings) -> None:
    """Make a new file nobody else's to read: it tells who fetched what. SQLite's sidecars get the same mode."""
    refuse_unsafe(settings)  # once more: a folder may have been mounted there meanwhile
    with contextlib.suppress(FileExistsError):
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        os.close(os.open(settings.history.path, flags, 0o600))


async def _connect(path: str) -> aiosqlite.Connection:
    db = await aiosqlite.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.row_factory = aiosqlite.Row
        await _migrate(db)
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        await db.close()
        raise
    return db


async def _migrate(db: aiosqlite.Connection) -> None:
    """Raises HistoryError for somebody else's database, or one of a newer version of ours."""
    async with _transaction(db):
        version = await _pragma(db, "user_version")
        application = await _pragma(db, "application_id")
        tables = [row async for row in await db.execute("SELECT 1 FROM sqlite_master LIMIT 1")]
        if application != APPLICATION_ID and (application or version or tables):
            raise HistoryError("it is a database of another application")
        if version > len(MIGRATIONS):
            raise HistoryError(f"it was written by a newer version (its user_version is {version})")
        for step in MIGRATIONS[version:]:
            for statement in step:
                await db.execute(statement)
        if version < len(MIGRATIONS):
            await db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            await db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


async def _pragma(db: aiosqlite.Connection, name: str) -> int:
    [row] = await db.execute_fetchall(f"PRAGMA {name}")
    return int(row[0])


@asynccontextmanager
async def _transaction(db: aiosqlite.Connection) -> AsyncIterator[None]:
    """All of it or nothing."""
    await db.execute("BEGIN IMMEDIATE")
    try:
        yield
        await db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(aiosqlite.Error):  # a full disk has rolled it back already
            await db.execute("ROLLBACK")
        raise


def _row(record: Record) -> tuple[object, ...]:
    return (
        record.id,
        record.started_at,
        record.ended_at,
        record.client,
        record.credential,
        json.dumps(dict(record.parameters)),
        record.outcome,
        record.reason,
        record.sent_bytes,
        record.total_bytes,
        record.duration_seconds,
        record.database_count,
        record.failed_sources,
        record.source_count,
        json.dumps([dict(source) for source in record.sources]),
    )


def _record(row: aiosqlite.Row) -> Record:
    values = {key: row[key] for key in row.keys() if key != "number"}  # noqa: SIM118  # a Row iterates its values
    values["parameters"] = json.loads(values["parameters"])
    values["sources"] = tuple(json.loads(values.get("sources", "[]")))
    return Record(**values)
