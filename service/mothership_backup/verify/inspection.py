"""What is in an archive: its manifest's words, a database's own header where there is none, tables on request."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mothership_backup.verify import unpack
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.claims import Claimed
from mothership_backup.verify.contents import Contents
from mothership_backup.verify.directory import Entry
from mothership_backup.verify.scratch import Scratch
from mothership_backup.verify.verdict import DATABASE_MAGIC

_HEADER_BYTES: Final = 100
_COUNT_SECONDS: Final = 60.0
"""For one table. A made-up one, whose pages stand in each other's place, could be counted for ever."""
_AGAIN_SECONDS: Final = 0.1
_TABLES: Final = """
SELECT name, rootpage FROM sqlite_master
WHERE type = 'table' AND typeof(name) = 'text' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One source, in the archive or not: ``entry`` is None when it is not. ``pages`` are as in the manifest.

    ``status``, ``engine``, ``verdict`` and the error are what the manifest says, and empty without one.
    """

    name: str
    kind: str
    status: str
    entry: Entry | None
    engine: str
    verdict: str
    error_code: str
    error_message: str
    pages: Mapping[str, Any]


class Table(NamedTuple):
    """``rows`` is None when they cannot be counted, and ``problem`` says why."""

    name: str
    rows: int | None
    problem: str = ""


def read_items(archive: ArchiveFile, contents: Contents) -> Iterator[Item]:
    """Every source of the manifest; without one, every entry that is no folder, as its first bytes tell.

    Raises ArchiveError when those cannot be unpacked.
    """
    if contents.claims is None:
        yield from (_look_into(archive, entry) for entry in contents.entries if not entry.is_folder)
        return
    entries = {entry.name: entry for entry, _ in contents.sources}
    for source in contents.claims.sources:
        yield _as_claimed(source, entries[source.name] if source.is_in_archive else None)


def _as_claimed(source: Claimed, entry: Entry | None) -> Item:
    return Item(
        name=source.name,
        kind=source.kind,
        status=source.status,
        entry=entry,
        engine=source.engine,
        verdict=source.verdict,
        error_code=source.error_code,
        error_message=source.error_message,
        pages=source.pages,
    )


def _look_into(archive: ArchiveFile, entry: Entry) -> Item:
    begin = next(unpack.blocks(archive, entry), b"")[:_HEADER_BYTES]
    is_database = begin.startswith(DATABASE_MAGIC) and len(begin) == _HEADER_BYTES
    pages = _pages(begin, entry.size_bytes) if is_database else {}
    kind = "database" if is_database else "file"
    return Item(
        entry.name, kind, "", entry, engine="", verdict="", error_code="", error_message="", pages=pages
    )


def _pages(header: bytes, size_bytes: int) -> dict[str, int]:
    """From the first 100 bytes (fileformat2.html, 1.3); the page count only where it is marked as true (1.3.8)."""
    page_size = struct.unpack_from(">H", header, 16)[0]
    page_size = 65536 if page_size == 1 else page_size
    counter, page_count = struct.unpack_from(">LL", header, 24)
    if struct.unpack_from(">L", header, 92)[0] != counter:
        page_count = size_bytes // page_size if page_size else 0
    user_version, _, application_id = struct.unpack_from(">lLl", header, 60)
    return {
        "page_size": page_size,
        "page_count": page_count,
        "user_version": user_version,
        "application_id": application_id,
    }


def read_tables(archive: ArchiveFile, entry: Entry, scratch: Scratch) -> list[Table]:
    """A database's tables with their rows, counted in a private file; one nameless Table says why there are none.

    Raises ArchiveError when the entry cannot be unpacked, InputError when there is no room for it.
    """
    place = scratch.make(entry)
    try:
        for block in unpack.blocks(archive, entry):
            unpack.write(place.fd, block)
        return _count_all(place.connect())
    finally:
        place.close()


def _count_all(connection: sqlite3.Connection) -> list[Table]:
    try:
        connection.execute("PRAGMA writable_schema=RESET")  # pages are read with it on, which hides damage
        found = connection.execute(_TABLES).fetchall()
    except Exception as error:  # sqlite3.Error of whichever library made the connection
        return [Table("", None, str(error))]
    return [
        # To count it would run its module, which may read whatever the table names.
        Table(name, None, "a virtual table") if not rootpage else _count(connection, name)
        for name, rootpage in found
    ]


def _count(connection: sqlite3.Connection, name: str) -> Table:
    quoted = '"' + name.replace('"', '""') + '"'

    def count() -> int:
        return int(connection.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0])

    try:
        return Table(name, _within(connection, count))
    except TimeoutError:
        return Table(name, None, f"not counted within {_COUNT_SECONDS:.0f} s")
    except Exception as error:  # sqlite3.Error, as above
        return Table(name, None, str(error))


def _within(connection: sqlite3.Connection, count: Callable[[], int]) -> int:
    """Its result, on a thread: a statement in this one would let no signal through. Raises TimeoutError."""
    with ThreadPoolExecutor(1, "count") as thread:
        counting = thread.submit(count)
        try:
            return counting.result(_COUNT_SECONDS)
        except BaseException:
            while not counting.done():
                connection.interrupt()
                wait([counting], _AGAIN_SECONDS)  # an interrupt between two statements is lost
            raise
