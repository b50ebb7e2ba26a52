"""A database's snapshot -> its pages, in blocks of 1 MiB, page 1 first; and the check of it.

`sqlite_dbpage` gives the exact pages of the transaction's snapshot (sqlite.org/dbpage.html), the lock-byte page
as zeros. No copy is made, and `interrupt()` is obeyed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator

from mothership_backup.deflate import BLOCK_BYTES
from mothership_backup.errors import ReaderError
from mothership_backup.reader import sqlite
from mothership_backup.reader.source import Source

OK = "ok"
DAMAGED = "damaged"
UNABLE = "unable"
UNFINISHED = "unfinished"

_PRAGMAS = {"quick": "quick_check", "full": "integrity_check"}
_MAX_FINDINGS = 5
_MAX_TEXT = 120


class Verdict:
    """What a check found; ``text`` is SQLite's own, shortened."""

    def __init__(self, word: str, text: str = "") -> None:
        self.word = word
        self.text = text


def blocks(connection: sqlite3.Connection, source: Source) -> Iterator[bytes]:
    """The pages of the snapshot that ``connection`` sees.

    Raises SQLite's errors, and ReaderError if the pages are not as many as the plan said, or the file was cut.
    """
    expected = source.page_count * source.page_size
    cursor = connection.execute("SELECT data FROM sqlite_dbpage('main')")
    pages_per_block = max(1, BLOCK_BYTES // max(1, source.page_size))
    sent = 0
    while rows := cursor.fetchmany(pages_per_block):
        block = b"".join([row[0] for row in rows])
        sent += len(block)
        yield block
    if sent != expected:
        raise ReaderError(
            f"{source.path}: {sent} bytes of pages where the snapshot has {expected}",
            code="source_failed",
            source=source.path,
        )
    look_for_truncation(source)


def look_for_truncation(source: Source) -> None:
    """Raises ReaderError if somebody cut the file while its snapshot was read: SQLite reads what is gone as zeros.

    SQLite itself never cuts it below the size of a snapshot that is pinned; a checkpoint after a VACUUM cuts it to
    just that. Of a file that another took the place of, the old one is still read, and nobody can cut that by name.
    """
    try:
        now = os.stat(source.full_path)
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == source.identity and now.st_size < min(
        source.file_bytes, source.size_bytes
    ):
        raise ReaderError(
            f"{source.path}: somebody cut it to {now.st_size} bytes while it was read",
            code="source_failed",
            source=source.path,
        )


def check(connect: Callable[[], sqlite3.Connection], kind: str, timeout_seconds: float) -> Verdict:
    """Run SQLite's ``quick`` or ``full`` check on what ``connect()`` gives; never raises SQLite's errors."""
    try:
        connection = connect()
    except Exception as error:  # sqlite3.Error of whichever library makes the connection
        return _verdict_of(error)
    timer = threading.Timer(timeout_seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        # Pages are read with writable_schema on, which hides a damaged schema: parse it anew, strictly.
        connection.execute("PRAGMA writable_schema=RESET")
        rows = connection.execute(f"PRAGMA {_PRAGMAS[kind]}({_MAX_FINDINGS})").fetchall()
    except Exception as error:
        return _verdict_of(error)
    finally:
        timer.cancel()
    findings = [str(row[0]) for row in rows]
    return Verdict(OK) if findings == ["ok"] else Verdict(DAMAGED, "; ".join(findings)[:_MAX_TEXT])


def _verdict_of(error: Exception) -> Verdict:
    text = str(error)[:_MAX_TEXT]
    if sqlite.was_interrupted(error):
        return Verdict(UNFINISHED, "check_timeout_seconds was over")
    # A schema that needs a newer SQLite is told as malformed, with the code of a damaged one.
    if sqlite.primary_code(error) in sqlite.DAMAGED and "malformed database schema" not in text:
        return Verdict(DAMAGED, text)
    return Verdict(UNABLE, text)
