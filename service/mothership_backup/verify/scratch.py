"""Private files for databases that are checked and thrown away: nameless, so that nothing of them stays behind."""

from __future__ import annotations

import os
import sqlite3
import tempfile

from mothership_backup.errors import InputError
from mothership_backup.reader import sqlite
from mothership_backup.verify.directory import Entry


class ScratchFile:
    """An empty file that was opened by SQLite and unlinked before its first byte."""

    def __init__(self, library: sqlite.Library) -> None:
        self.fd, path = tempfile.mkstemp(prefix="mothership-backup-")  # 0600
        try:
            self._connection = sqlite.connect(library, path)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.unlink(path)

    def connect(self) -> sqlite3.Connection:
        # A file without a name can have no WAL: it must not ask for one (fileformat2.html, 1.3.3). What is neither
        # WAL nor rollback stays, since SQLite opens no such file.
        versions = os.pread(self.fd, 2, 18)
        os.pwrite(self.fd, versions.replace(b"\x02", b"\x01"), 18)
        return self._connection

    def close(self) -> None:
        self._connection.close()
        os.close(self.fd)


class Scratch:
    """Makes them in `$TMPDIR`, for databases only."""

    def __init__(self) -> None:
        self._library = sqlite.choose_library()

    def __call__(self, entry: Entry, is_database: bool) -> ScratchFile | None:
        """As `MakePlace` says. Raises InputError when there is no room for it."""
        return self.make(entry) if is_database else None

    def make(self, entry: Entry) -> ScratchFile:
        """Raises InputError when there is no room for it."""
        folder = tempfile.gettempdir()
        there = os.statvfs(folder)
        free_bytes = there.f_bavail * there.f_frsize
        if entry.size_bytes > free_bytes:
            raise InputError(
                f"{entry.name} has {entry.size_bytes} bytes, and {folder} has room for {free_bytes}:"
                " set TMPDIR to a larger folder, or take --check none"
            )
        return ScratchFile(self._library)
