"""FILE.part: what has come so far. Private, held by a lock, and gone at the end unless it was kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from mothership_backup.errors import FetchError, OutputError
from mothership_backup.fetch.names import Template
from mothership_backup.place import may_be_replaced, put_in_place

SUFFIX: Final = ".part"
INCOMPLETE: Final = ".incomplete"
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Part:
    """Beside FILE, or beside what FILE links to. From its `with` on, or from the first answer that names FILE.

    Raises FetchError when another run holds it, OutputError when it cannot be written.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.size_bytes = 0
        self._file = Path()
        self._path = Path()
        self._fd = -1

    def __enter__(self) -> Self:
        if self.template.needs_prefix:
            with _told(self.template.folder):
                os.stat(self.template.folder)
        else:
            self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @property
    def fd(self) -> int:
        """For reading it back."""
        if self._fd < 0:
            raise RuntimeError("no part was begun")
        return self._fd

    def begin(self, disposition: str) -> None:
        """Empty, for an answer with this Content-Disposition: nothing of an earlier try is in it."""
        named = self.template.with_prefix(disposition)
        if self._fd < 0 or named != self.template:
            self._close()
            self.template = named
            self._open()
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        with _told(self._path):
            while view:
                written = os.write(self.fd, view)
                self.size_bytes += written
                view = view[written:]

    def keep(self, *, complete: bool) -> Path:
        """On the disk as FILE, or as FILE.incomplete; the path as FILE was given."""
        suffix = "" if complete else INCOMPLETE
        with _told(f"{self.template.path}{suffix}"):
            put_in_place(self.fd, self._path, self._file.with_name(self._file.name + suffix))
        os.close(self._fd)  # and with it the lock: the name is free for the next run
        self._fd = -1
        return Path(f"{self.template.path}{suffix}")

    def _open(self) -> None:
        path = self.template.path
        if not may_be_replaced(path):
            raise OutputError(f"{path} is not a regular file, and no archive can take its place")
        self._file = Path(os.path.realpath(path))  # a link's target is replaced, as with a plain write
        self._path = self._file.with_name(self._file.name + SUFFIX)
        with _told(self._path):
            self._fd = _open_locked(self._path)

    def _close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up
                os.unlink(self._path)
        finally:
            os.close(fd)


def _open_locked(path: Path) -> int:
    """A new file; what a killed run left behind is removed, not written to, since it may be anybody's."""
    while True:
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            _remove_leftover(path)
            continue
        try:
            _lock(fd, path)
            if _is_there(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another run took it for a leftover, before it was locked


def _remove_leftover(path: Path) -> None:
    try:
        fd = os.open(path, _FLAGS | os.O_NONBLOCK)  # a FIFO blocks nobody
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OutputError(f"{path} is in the way, and not a regular file: remove it")
        _lock(fd, path)
        if _is_there(fd, path):
            os.unlink(path)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FetchError(f"another run writes {path} now") from None


def _is_there(fd: int, path: Path) -> bool:
    """Whether the name still means this file: only who holds its lock may take it away."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _told(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
