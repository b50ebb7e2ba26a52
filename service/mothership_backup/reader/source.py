"""A source: a database or file below the data directory, as the reader sees it."""

from __future__ import annotations

import functools
import os

from mothership_backup.errors import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

DATABASE: Final = "database"
FILE: Final = "file"
LINK: Final = "link"
FOLDER: Final = "folder"
OTHER: Final = "other"

LIVE: Final = "live"
STAGED: Final = "staged"
COPIED: Final = "copied"
IMMUTABLE: Final = "immutable"
PLAIN: Final = "plain"


class FileStatus:
    """What is kept of an `os.stat_result`, under its names. That one is six times as large, and there may be 70,000."""

    __slots__ = ("st_dev", "st_ino", "st_mode", "st_mtime_ns", "st_nlink", "st_size", "st_uid")

    def __init__(self, status: os.stat_result) -> None:
        self.st_dev = _shared(status.st_dev)
        self.st_ino = status.st_ino
        self.st_mode = _shared(status.st_mode)
        self.st_nlink = status.st_nlink
        self.st_uid = _shared(status.st_uid)
        self.st_size = status.st_size
        self.st_mtime_ns = status.st_mtime_ns


@functools.lru_cache(256)
def _shared(number: int) -> int:
    """One object for a number that most files have in common."""
    return number


class Source:
    """What is known of one source.

    ``path`` is relative to ``root``, the data directory, with surrogates for bytes that are no UTF-8.
    """

    __slots__ = (
        "application_id", "engine", "error", "fd", "file_bytes", "is_cut", "is_named", "is_packed",
        "is_wal", "kind", "mtime_ns", "page_count", "page_size", "path", "root", "size_bytes", "stat",
        "status", "taken_at", "user_version", "wave",
    )  # fmt: skip

    def __init__(self, path: str, root: str, kind: str, status: os.stat_result) -> None:
        self.path = path
        self.root = root
        self.kind = kind
        self.stat = FileStatus(status)
        self.status = "ok"
        self.size_bytes = self.stat.st_size
        self.file_bytes = (
            self.stat.st_size
        )  # of the database file when its snapshot was taken; more may be in its WAL
        self.mtime_ns = self.stat.st_mtime_ns
        self.engine = PLAIN
        self.is_named = False  # by a pattern for databases, not as part of an included folder
        self.is_wal = False
        self.is_cut = False  # the file is shorter than its own header says
        self.is_packed = True  # deflated in a deflate archive; False: stored there too
        self.wave = 1
        self.error: SourceError | None = None
        self.fd = (
            -1
        )  # a plain file's descriptor, kept open since the plan so that a rename over it is no harm
        self.page_size = 0
        self.page_count = 0
        self.user_version = 0
        self.application_id = 0
        self.taken_at = ""

    def fail(self, error: SourceError) -> None:
        """Wanted, and it cannot be had."""
        self.status = "failed"
        self.error = error

    def skip(self, code: str, message: str) -> None:
        """Seen, and not wanted."""
        self.status = "skipped"
        self.error = SourceError(message, code=code)

    @property
    def full_path(self) -> str:
        return os.path.join(self.root, self.path)

    @property
    def folder(self) -> str:
        """The path of the folder that it lies in; empty for the data directory itself."""
        return self.path.rpartition("/")[0]

    @property
    def identity(self) -> tuple[int, int]:
        """What makes two paths the same file."""
        return self.stat.st_dev, self.stat.st_ino

    def describe(self) -> dict[str, Any]:
        """For the plan, and for the manifest after it."""
        document: dict[str, Any] = {
            "path": self.path,
            "kind": self.kind,
            "status": self.status,
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
            "mode": self.stat.st_mode & 0o7777,
            "is_named": self.is_named,
        }
        if self.error is not None:
            document["error"] = {"code": self.error.code, "message": self.error.message}
            return document
        document |= {"engine": self.engine, "is_packed": self.is_packed, "wave": self.wave}
        if self.kind == DATABASE:
            document |= self.describe_pages()
        return document

    def describe_pages(self) -> dict[str, Any]:
        """What the manifest says of a database's snapshot."""
        return {
            "journal_mode": "wal" if self.is_wal else "rollback",
            "page_size": self.page_size,
            "page_count": self.page_count,
            "user_version": self.user_version,
            "application_id": self.application_id,
            "taken_at": self.taken_at,
        }
