"""Staged and copied databases: copied aside under a lock as short as can be, sent from there.

A held read lock on a rollback-journal database would block its writers for the length of the download. The copy
lies in memory (a memfd) while the budget lasts, else in a nameless file in ``staging_dir``: made with mode 0600
and unlinked before its first byte, so that nothing of it stays behind, whatever ends this process.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import re
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from mothership_backup.deflate import BLOCK_BYTES
from mothership_backup.errors import ReaderError, SourceError
from mothership_backup.reader import snapshot, sqlite
from mothership_backup.reader.instant import Pin, look_for_cut, read_properties, utc_now
from mothership_backup.reader.request import Request
from mothership_backup.reader.source import COPIED, Source
from mothership_backup.reader.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_RETRY_SECONDS: Final = 0.01
_PAGES_PER_STEP: Final = 256
_NAME: Final = re.compile("mothership-backup-[0-9a-f]{16}")
_STALE_SECONDS: Final = 60.0


class StagedCopy:
    """The bytes of one staged database. Close it when it has been sent and checked."""

    def __init__(self, fd: int, memory_bytes: int, connection: sqlite3.Connection | None) -> None:
        self.fd = fd
        self.memory_bytes = memory_bytes
        self.connection = connection  # opened before the unlink, for the check; None: in memory
        self.size_bytes = 0

    def blocks(self) -> Iterator[bytes]:
        offset = 0
        while block := os.pread(self.fd, BLOCK_BYTES, offset):
            offset += len(block)
            yield block

    def open_for_check(self) -> sqlite3.Connection:
        """A connection on the copy itself, when its bytes were sent: its header is changed for it.

        In memory by the standard library's SQLite: sqlean.py cannot deserialize.
        """
        if self.size_bytes:  # a database in its first transaction has no page, and so no header
            # A copy without a name can have no WAL: it must not ask for one (fileformat2.html, 1.3.3).
            os.pwrite(self.fd, b"\x01\x01", 18)
        if self.connection is not None:
            return self.connection
        self.connection = connection = sqlite3.connect(":memory:", check_same_thread=False)
        if self.size_bytes:
            connection.deserialize(b"".join(self.blocks()))
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        return connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        os.close(self.fd)


class PrivateFiles:
    """Makes files in ``staging_dir`` from a thread of its own.

    It is started before Landlock takes the right to create files from all others.
    """

    def __init__(self, staging_dir: str) -> None:
        self._dir = staging_dir
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="private-files", daemon=True).start()

    def make(self, library: sqlite.Library) -> tuple[int, sqlite3.Connection, sqlite3.Connection]:
        """An empty unlinked file: its descriptor, a connection that fills it, one that checks it. Raises OSError."""
        made: queue.SimpleQueue[tuple[int, sqlite3.Connection, sqlite3.Connection] | Exception] = (
            queue.SimpleQueue()
        )

        def job() -> None:
            try:
                made.put(self._make(library))
            except Exception as error:  # goes to the thread that asked
                made.put(error)

        self._jobs.put(job)
        result = made.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self) -> None:
        with suppress(OSError):  # a folder that cannot be listed is told when a file is made in it
            self._sweep()
        while True:
            self._jobs.get()()

    def _sweep(self) -> None:
        """Remove what readers left that were killed between a file's making and its unlinking: empty ones of ours."""
        long_ago = time.time() - _STALE_SECONDS
        with os.scandir(self._dir) as entries:
            for entry in entries:
                if not _NAME.fullmatch(entry.name):
                    continue
                status = entry.stat(follow_symlinks=False)
                is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                if is_ours and status.st_size == 0 and status.st_mtime < long_ago:
                    os.unlink(entry.path)

    def _make(self, library: sqlite.Library) -> tuple[int, sqlite3.Connection, sqlite3.Connection]:
        path = os.path.join(self._dir, f"mothership-backup-{os.urandom(8).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            filler = library.module.connect(path, isolation_level=None, check_same_thread=False)
            filler.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=MEMORY;")
            # Not immutable: for such a connection the file would stay as empty as it is now.
            return fd, filler, sqlite.connect(library, path)
        except BaseException:
            os.close(fd)
            raise
        finally:
            os.unlink(path)


class Stager:
    """Stages databases one at a time, smallest first, each locked only for its own copy."""

    def __init__(self, request: Request, library: sqlite.Library, watch: Watch) -> None:
        self._request = request
        self._library = library
        self._watch = watch
        self._files = PrivateFiles(request.staging_dir) if request.staging_dir else None
        self._memory_bytes = 0
        self._memory_lock = threading.Lock()

    def stage(self, source: Source, pin: Pin | None) -> StagedCopy:
        """Copy ``source`` aside; ``pin`` is a WAL database's, whose snapshot it takes, or an immutable one's.

        Raises SourceError (``busy``, ``lock_too_long``, ``no_room``, ``changed``, …) when it cannot be had.
        """
        try:
            if pin is not None:
                copy = self._copy(source, pin.connection, math.inf)  # the watch bounds how long a pin is held
                return self._unchanged(copy, pin)
            connection = self._open(source)
            try:
                return self._copy_locked(source, connection)
            finally:
                connection.close()
        except self._library.module.Error as error:
            raise sqlite.describe(error, source.full_path) from error
        except ReaderError as error:  # its pages are not what they were said to be; none of them went out
            raise SourceError(error.message, code="not_readable") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(source) from error
            raise SourceError(
                f"it cannot be staged in {self._request.staging_dir}: {error}", code="staging"
            ) from error

    def fits_memory(self, size_bytes: int) -> bool:
        with self._memory_lock:
            return self._memory_bytes + size_bytes <= self._request.staging_memory_bytes

    def release(self, copy: StagedCopy) -> None:
        """The copy was sent and checked."""
        copy.close()
        with self._memory_lock:
            self._memory_bytes -= copy.memory_bytes

    def _unchanged(self, copy: StagedCopy, pin: Pin) -> StagedCopy:
        try:
            pin.look_for_change()
        except BaseException:
            self.release(copy)
            raise
        return copy

    def _open(self, source: Source) -> sqlite3.Connection:
        """Opened and locked; busy ones are tried again for a while."""
        deadline = time.monotonic() + self._request.busy_timeout_seconds
        while True:
            try:
                return self._open_and_begin(source)
            except self._library.module.Error as error:
                if not sqlite.is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _open_and_begin(self, source: Source) -> sqlite3.Connection:
        connection = sqlite.connect(self._library, source.full_path)
        try:
            self._watch.copy_began()
            connection.execute("BEGIN")
            connection.execute("PRAGMA schema_version").fetchone()
        except BaseException:
            connection.close()
            self._watch.copy_ended()
            raise
        return connection

    def _copy_locked(self, source: Source, connection: sqlite3.Connection) -> StagedCopy:
        deadline = time.monotonic() + self._request.max_lock_seconds
        try:
            now = os.lstat(source.full_path)
            if (now.st_dev, now.st_ino) != source.identity:
                raise SourceError("another file took its name while the backup ran", code="replaced")
            source.taken_at = utc_now()
            read_properties(connection, source)
            if source.engine != COPIED:
                look_for_cut(connection, source)
            return self._copy(source, connection, deadline)
        finally:
            self._watch.copy_ended()
            if connection.in_transaction:  # an I/O error may have ended it
                connection.execute("ROLLBACK")

    def _copy(self, source: Source, connection: sqlite3.Connection, deadline: float) -> StagedCopy:
        copy, filler = self._room_for(source)
        try:
            if source.engine == COPIED:
                if filler is None:
                    raise self._no_room(source)
                if source.page_count:  # of a database in its first transaction, SQLite would make a page
                    self._copy_by_backup(source, connection, filler, deadline)
            else:
                self._copy_pages(source, connection, copy.fd, deadline)
            copy.size_bytes = os.fstat(copy.fd).st_size
        except BaseException:
            self.release(copy)
            raise
        finally:
            if filler is not None:
                filler.close()
        if copy.size_bytes != source.size_bytes:
            self.release(copy)
            raise SourceError(
                f"{copy.size_bytes} bytes were copied of {source.size_bytes}", code="not_readable"
            )
        return copy

    def _copy_pages(self, source: Source, connection: sqlite3.Connection, fd: int, deadline: float) -> None:
        for block in snapshot.blocks(connection, source):
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
            self._look_at(deadline, source)

    def _copy_by_backup(
        self, source: Source, connection: sqlite3.Connection, filler: sqlite3.Connection, deadline: float
    ) -> None:
        """Under the transaction that ``connection`` holds: unpinned steps would start again at every commit."""
        connection.backup(filler, pages=_PAGES_PER_STEP, progress=lambda *_: self._look_at(deadline, source))
        snapshot.look_for_truncation(source)

    def _look_at(self, deadline: float, source: Source) -> None:
        if time.monotonic() > deadline:
            remedy = "raise that" if source.is_wal else "switch the database to WAL"
            raise SourceError(
                f"its copy took longer than its lock may be held (max_lock_seconds = {self._request.max_lock_seconds});"
                f" {remedy}, or name a faster staging_dir",
                code="lock_too_long",
                source=source.path,
            )

    def _room_for(self, source: Source) -> tuple[StagedCopy, sqlite3.Connection | None]:
        size_bytes = source.size_bytes
        if source.engine != COPIED and sys.platform == "linux":
            with self._memory_lock:
                if self._memory_bytes + size_bytes <= self._request.staging_memory_bytes:
                    fd = os.memfd_create("staged", os.MFD_CLOEXEC)
                    self._memory_bytes += size_bytes
                    return StagedCopy(fd, size_bytes, None), None
        if self._files is None or not self._has_room(size_bytes):
            raise self._no_room(source)
        fd, filler, checker = self._files.make(self._library)
        if source.engine == COPIED:
            return StagedCopy(fd, 0, checker), filler
        filler.close()
        return StagedCopy(fd, 0, checker), None

    def _has_room(self, size_bytes: int) -> bool:
        there = os.statvfs(self._request.staging_dir)
        free_bytes = there.f_bavail * there.f_frsize
        is_same_disk = os.stat(self._request.staging_dir).st_dev == os.stat(self._request.data_dir).st_dev
        return free_bytes - size_bytes >= (self._request.min_free_bytes if is_same_disk else 0)

    def _no_room(self, source: Source) -> SourceError:
        where = self._request.staging_dir or "(no staging_dir: neither $TMPDIR nor /tmp is there)"
        how = "it has a rollback journal"
        if source.is_wal:
            how = 'snapshot.engine is "staged"'
        if source.engine == COPIED:
            how = "this SQLite has no sqlite_dbpage"
        return SourceError(
            f"{how}, and there is no room to copy its {source.size_bytes} bytes aside in {where};"
            " switch the database to WAL, name a staging_dir with more room, or install the extra 'fast'",
            code="no_room",
            source=source.path,
        )
