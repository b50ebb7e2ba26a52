"""Which SQLite this process has, how a source is opened with it, and what its errors mean.

The type annotations name the standard library's module; sqlean.py has the same interface.
"""

from __future__ import annotations

import os
import sqlite3
from types import ModuleType

from mothership_backup.errors import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BUSY: Final = (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED, without their extensions
DAMAGED: Final = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB
_READONLY: Final = 8
_CANNOT_OPEN: Final = (8, 14)  # SQLITE_READONLY, SQLITE_CANTOPEN: a WAL database without its sidecars
_INTERRUPTED: Final = 9

_SAFE_BYTES: Final = frozenset(b"/-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Library:
    """A SQLite at hand."""

    def __init__(self, module: ModuleType, *, has_dbpage: bool) -> None:
        self.module = module
        self.has_dbpage = has_dbpage

    @property
    def version(self) -> str:
        return str(self.module.sqlite_version)


def choose_library() -> Library:
    """The standard library's SQLite if it has `sqlite_dbpage`, else sqlean.py's, else the first without it."""
    if _has_dbpage(sqlite3):
        return Library(sqlite3, has_dbpage=True)
    try:
        import sqlean
    except ImportError:
        return Library(sqlite3, has_dbpage=False)
    return Library(sqlean, has_dbpage=True) if _has_dbpage(sqlean) else Library(sqlite3, has_dbpage=False)


def _has_dbpage(module: ModuleType) -> bool:
    connection = module.connect(":memory:")
    try:
        connection.execute("SELECT 1 FROM sqlite_dbpage LIMIT 0")
    except module.Error:
        return False
    finally:
        connection.close()
    return True


def connect(library: Library, path: str, *, immutable: bool = False) -> sqlite3.Connection:
    """Open ``path`` read-only, in autocommit, for use from any one thread at a time, without waiting for locks."""
    mode = "?mode=ro&immutable=1" if immutable else "?mode=ro"
    connection: sqlite3.Connection = library.module.connect(
        "file:" + _quote(path) + mode, uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        # A database is input too: nothing in its schema may run, nothing may be mapped (a mapped file that
        # shrinks is a SIGBUS), nothing is spilled to a temporary file; and a schema newer than this SQLite
        # must not keep its pages from being read.
        connection.executescript(
            "PRAGMA writable_schema=ON; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;"
            "PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-512;"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _quote(path: str) -> str:
    """For a URI: unquoted, `a?b.db` opens, and creates, another file."""
    return "".join(chr(byte) if byte in _SAFE_BYTES else f"%{byte:02X}" for byte in os.fsencode(path))


def primary_code(error: Exception) -> int:
    """The result code without its extension; 0 for what is no SQLite error."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def was_interrupted(error: Exception) -> bool:
    return primary_code(error) == _INTERRUPTED


def is_busy(error: Exception) -> bool:
    return primary_code(error) in BUSY


def needs_sidecars(error: Exception) -> bool:
    """A WAL database that this process may not make sidecars for: it is idle, crashed, or in a read-only folder."""
    return primary_code(error) in _CANNOT_OPEN


def describe(error: Exception, path: str) -> SourceError:
    """What a person should know, for an error of SQLite's while it opened or read ``path``."""
    code = primary_code(error)
    if code in BUSY:
        return SourceError(
            "another process holds an exclusive lock on it (a long write transaction, or locking_mode=EXCLUSIVE);"
            " raise busy_timeout_seconds, or end that transaction",
            code="busy",
        )
    # SQLITE_READONLY_ROLLBACK, but sqlean.py tells no extended codes. To read writes nothing but a rollback.
    if code == _READONLY and os.path.lexists(path + "-journal"):
        return SourceError(
            "a transaction was interrupted and left a hot journal; its application must open it once to roll it back",
            code="hot_journal",
        )
    if code in DAMAGED:  # SQLite says so of a disk that cannot read, too (SQLITE_IOERR_CORRUPTFS)
        return SourceError(
            f"SQLite cannot read it: {error} (or its disk has read errors: see the kernel's log)",
            code="damaged",
        )
    if code in _CANNOT_OPEN and not os.path.lexists(path):
        return SourceError("it was removed while the backup ran", code="vanished")
    if code in _CANNOT_OPEN and not os.access(path, os.R_OK, effective_ids=True):
        return SourceError("this user has no right to read it", code="not_readable")
    return SourceError(f"SQLite cannot read it: {error}", code="not_readable")
