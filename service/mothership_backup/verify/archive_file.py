"""A file, or a stream that is spooled to a private one first -> an open archive."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from mothership_backup.errors import ArchiveError, InputError

STANDARD_INPUT: Final = "-"
_PIECE_BYTES: Final = 1024 * 1024


class ArchiveFile:
    """An archive that can be read anywhere. ``name`` is what a message calls it."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.size_bytes = os.fstat(fd).st_size

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Exactly so many bytes. Raises ArchiveError when they are not there, InputError when the disk fails."""
        pieces = []
        while size_bytes:
            try:
                piece = os.pread(self.fd, size_bytes, offset)
            except OSError as error:
                raise InputError(f"{self.name}: cannot be read: {error.strerror}") from error
            if not piece:
                raise ArchiveError("it ends too early, or was cut while it was read", code="truncated")
            pieces.append(piece)
            offset += len(piece)
            size_bytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def refuse(code: str, reason: str) -> NoReturn:
    """Raises ArchiveError."""
    raise ArchiveError(reason, code=code)


@contextmanager
def open_archive(name: str, *, max_bytes: int | None = None) -> Iterator[ArchiveFile]:
    """The archive at this path; ``-`` is standard input. What is no regular file is spooled, nameless, to `$TMPDIR`.

    Raises InputError when it cannot be opened or spooled, ArchiveError when it is longer than ``max_bytes``.
    """
    stream = _open(name)
    shown = shown_name(name)
    try:
        there = os.fstat(stream.fileno())
        if stat.S_ISREG(there.st_mode):
            _look_at_length(there.st_size, max_bytes)
            yield ArchiveFile(stream.fileno(), shown)
            return
        with tempfile.TemporaryFile(prefix="mothership-backup-") as spool:
            _spool(stream, spool, shown, max_bytes)
            yield ArchiveFile(spool.fileno(), shown)
    finally:
        stream.close()


def shown_name(name: str) -> str:
    """What a message calls the archive of this name."""
    return "standard input" if name == STANDARD_INPUT else name


def _open(name: str) -> BinaryIO:
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("standard input is closed")
        if sys.stdin.isatty():
            raise InputError("standard input is a terminal: name a FILE, or send an archive into a pipe")
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    try:
        return Path(name).open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error


def _spool(stream: BinaryIO, spool: BinaryIO, name: str, max_bytes: int | None) -> None:
    size_bytes = 0
    try:
        # Not stream.read(): of a descriptor that does not block it makes an end.
        while piece := os.read(stream.fileno(), _PIECE_BYTES):
            size_bytes += len(piece)
            _look_at_length(size_bytes, max_bytes)
            spool.write(piece)
        spool.flush()
    except OSError as error:
        remedy = "; set TMPDIR to a folder with more room" if error.errno == errno.ENOSPC else ""
        folder = tempfile.gettempdir()
        raise InputError(f"{name}: cannot be spooled to {folder}: {error.strerror}{remedy}") from error


def _look_at_length(size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise ArchiveError(f"it is longer than --max-bytes ({max_bytes})", code="too_large")
