"""The new files: complete, with the owner and mode of what they replace, and not yet in their places."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from mothership_backup.errors import RestoreError
from mothership_backup.reader import sqlite
from mothership_backup.restore.plan import Item, Plan
from mothership_backup.restore.swap import make_folder_like
from mothership_backup.verify.directory import Entry

_MARK: Final = "staging"
"""In a work folder as long as nothing but staging has happened in it: then it may be thrown away."""


class StagedFile:
    """One new file at ``path``, for the place of ``old`` if that is there. It gets its attributes when it is closed."""

    def __init__(self, path: Path, entry: Entry, old: Path | None, library: sqlite.Library) -> None:
        self._path = path
        self._entry = entry
        self._old = old
        self._library = library
        self._connection: sqlite3.Connection | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)

    def connect(self) -> sqlite3.Connection:
        """Immutable, so that no sidecar is made: nobody else knows the file."""
        self._connection = sqlite.connect(self._library, os.fspath(self._path), immutable=True)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        try:
            self._set_attributes()
            os.utime(self.fd, ns=(self._entry.mtime_ns, self._entry.mtime_ns))
        finally:
            os.close(self.fd)

    def _set_attributes(self) -> None:
        """Those of the old file; a new one is its folder's owner's, and no more open than the folder."""
        if self._old is not None:
            old = os.stat(self._old, follow_symlinks=False)
            made = os.fstat(self.fd)
            if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(self.fd, old.st_uid, old.st_gid)
            shutil.copystat(self._old, self._path, follow_symlinks=False)  # ACLs and labels too
            return
        folder = os.stat(self._path.parent)
        if os.geteuid() == 0:
            os.fchown(self.fd, folder.st_uid, folder.st_gid)
        os.fchmod(self.fd, (self._entry.mode or 0o644) & folder.st_mode & 0o777 | 0o600)


class Staging:
    """Makes them below ``new``, for the items of a plan. Raises OSError."""

    def __init__(self, plan: Plan, new: Path) -> None:
        self._folder = plan.folder
        self._items = {item.entry.name: item for item in plan.items}
        self._new = new
        self._library = sqlite.choose_library()

    def __call__(self, entry: Entry, is_database: bool) -> StagedFile | None:
        item = self._items.get(entry.name)
        if item is None:
            return None
        self._make_parents(item)
        old = self._folder / item.path if item.replaces else None
        return StagedFile(self._new / item.path, entry, old, self._library)

    def _make_parents(self, item: Item) -> None:
        """Like those in DIR, where there are such."""
        below = Path()
        for part in Path(item.path).parts[:-1]:
            below /= part
            if not (self._new / below).is_dir():
                live = self._folder / below
                _make_folder(self._new / below, live if live.is_dir() else (self._new / below).parent)


def _make_folder(path: Path, like: Path) -> None:
    make_folder_like(path, like, stat.S_IMODE(like.stat().st_mode))
    shutil.copystat(like, path)  # a default ACL decides who may read the files in it


@contextmanager
def work_folder(plan: Plan, stamp: str) -> Iterator[Path]:
    """A private folder on the disk of DIR, with ``new`` and ``old`` in it; gone at the end, unless `began` was told.

    What killed restores have left of their staging is removed first. Raises RestoreError for what the disk says.
    """
    beside = plan.room_in
    work = work_path(plan, stamp)
    prefix = work.name.removesuffix(stamp)
    with ExitStack() as stack:
        try:
            for leftover in beside.iterdir():
                if leftover.name.startswith(prefix):
                    _remove_if_stale(leftover)
            work.mkdir(mode=0o700)
            stack.callback(_remove_marked, work)
            stack.callback(os.close, _mark(work))
            for name in ("new", "old"):
                if plan.folder.is_dir():
                    _make_folder(work / name, plan.folder)
                else:
                    make_folder_like(work / name, beside, 0o755 & stat.S_IMODE(beside.stat().st_mode))
            yield work
        except OSError as error:
            raise _explained(beside, error) from error


def work_path(plan: Plan, stamp: str) -> Path:
    """In DIR where names are swapped, else beside it, and named after it."""
    if plan.way == "names":
        return plan.folder / f".restore-{stamp}"
    return plan.folder.with_name(f".{plan.folder.name}.restore-{stamp}")


def began(work: Path) -> None:
    """From now on what is in the folder may be the only copy of something."""
    (work / _MARK).unlink()


def _mark(work: Path) -> int:
    mark = os.open(work / _MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(mark, fcntl.LOCK_EX)
    return mark


def _remove_marked(work: Path) -> None:
    if (work / _MARK).exists():
        shutil.rmtree(work)


def _remove_if_stale(work: Path) -> None:
    """One whose staging has been killed: its mark is there, and nobody holds it; or it is empty still."""
    if not os.path.lexists(work / _MARK):
        with suppress(OSError):  # not empty: what is in it may be the only copy of something
            work.rmdir()
        return
    with suppress(FileNotFoundError):
        mark = os.open(work / _MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RestoreError(f"another restore is at work in {work}", code="in_progress") from error
        finally:
            os.close(mark)
        shutil.rmtree(work)


def _explained(folder: Path, error: OSError) -> RestoreError:
    place = error.filename or folder
    if error.errno in (errno.EPERM, errno.EACCES):
        message = f"{place}: {error.strerror}: run the restore as the owner of the files, or as root"
        return RestoreError(message, code="no_right")
    return RestoreError(f"{place}: {error.strerror or error}; nothing was restored", code="failed")
