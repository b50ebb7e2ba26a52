"""An archive and its contents -> a verdict. THE PAGE TO READ.

    1. contents.py has proved structure, names, sizes and the manifest: `read_contents`
    2. each entry is unpacked once: length, CRC-32, SHA-256
    3. each database lands in a private file meanwhile, and SQLite checks it there

The three go on beside each other: a block is hashed while the next one is unpacked, a database is checked while
the next entry is unpacked.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from mothership_backup.errors import ArchiveError
from mothership_backup.reader import snapshot
from mothership_backup.reader.snapshot import Verdict
from mothership_backup.verify import unpack
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.claims import Claimed, Claims
from mothership_backup.verify.contents import Contents
from mothership_backup.verify.directory import Entry

Check = Literal["none", "quick", "full"]
DATABASE_MAGIC: Final = b"SQLite format 3\x00"
_NO_LIMIT_SECONDS: Final = 7 * 24 * 3600.0
_WORTH_A_THREAD_BYTES: Final = 64 * 1024
_SIGNAL_SECONDS: Final = 0.2
_AGAIN_SECONDS: Final = 0.1


class Place(Protocol):
    """Where one entry is unpacked to."""

    fd: int

    def connect(self) -> sqlite3.Connection:
        """For the check, when all of its bytes are there; the caller closes it."""

    def close(self) -> None:
        """It is unpacked and checked, or given up."""


MakePlace = Callable[[Entry, bool], Place | None]
"""For an entry, and whether it is a database. None: its bytes are proved, and kept nowhere."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one source of an archive is. ``problem`` says why its bytes are not what they should be."""

    name: str
    is_database: bool
    size_bytes: int
    sha256: str
    check: Verdict | None
    problem: str = ""

    @property
    def is_damaged(self) -> bool:
        return bool(self.problem) or (self.check is not None and self.check.word == snapshot.DAMAGED)


@dataclass(frozen=True)
class Report:
    """All findings of an archive whose structure is good."""

    claims: Claims | None
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_damaged)

    @property
    def word(self) -> str:
        """``whole``, ``incomplete`` (whole, and the backup itself lacked a source), or ``damaged``."""
        if self.damaged:
            return "damaged"
        return "incomplete" if self.claims is not None and not self.claims.complete else "whole"


def verify(
    archive: ArchiveFile,
    contents: Contents,
    *,
    check: Check,
    make_place: MakePlace,
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> Report:
    """Unpack everything once and judge it; ``progress`` is called with the number of bytes since its last call.

    Raises InputError when there is no room for a database, or the disk fails: that says nothing about the archive.
    """
    with _Work(archive, check, make_place, progress) as work:
        for entry, claimed in contents.sources:
            work.take(entry, claimed)
        for entry in contents.own:  # unpacked and compared already
            progress(entry.size_bytes)
        return Report(contents.claims, tuple(work.findings()))


def _wait_for(check: Future[Verdict]) -> Future[Verdict]:
    """The same, when it is done.

    A signal that comes just before this thread begins to wait is looked at when the wait ends: so it is a short one.
    """
    while not check.done():
        wait([check], _SIGNAL_SECONDS)
    return check


@dataclass
class _Taken:
    """An entry that is unpacked, and whose check may still run."""

    entry: Entry
    is_database: bool
    sha256: str = ""
    problem: str = ""
    check: Future[Verdict] | None = None

    def finding(self) -> Finding:
        verdict = _wait_for(self.check).result() if self.check is not None else None
        size_bytes = self.entry.size_bytes
        return Finding(self.entry.name, self.is_database, size_bytes, self.sha256, verdict, self.problem)


@dataclass
class _Work:
    archive: ArchiveFile
    check: Check
    make_place: MakePlace
    progress: Callable[[int], None]
    _taken: list[_Taken] = field(default_factory=list)
    _checking: Future[Verdict] | None = None
    _connection: sqlite3.Connection | None = None  # of the check that runs
    _is_stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> _Work:
        self._hasher = ThreadPoolExecutor(1, "verify-hash")
        self._checker = ThreadPoolExecutor(1, "verify-check")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop_check()
        self._hasher.shutdown(cancel_futures=True)
        self._checker.shutdown(cancel_futures=True)

    def findings(self) -> Iterator[Finding]:
        return (taken.finding() for taken in self._taken)

    def take(self, entry: Entry, claimed: Claimed | None) -> None:
        if entry.is_folder:
            return
        blocks = unpack.blocks(self.archive, entry)
        taken = _Taken(entry, claimed is not None and claimed.is_database)
        self._taken.append(taken)
        try:
            first = next(blocks, b"")
        except ArchiveError as error:
            taken.problem = error.message
            return
        if claimed is None:
            taken.is_database = first.startswith(DATABASE_MAGIC)
        place = self.make_place(entry, taken.is_database)
        try:
            taken.sha256 = self._unpack(first, blocks, place)
            if claimed is not None and taken.sha256 != claimed.sha256:
                taken.problem = f"{entry.name}: its SHA-256 is not the one in MANIFEST.json"
        except ArchiveError as error:
            taken.problem = error.message
        except BaseException:
            if place is not None:
                place.close()
            raise
        if place is None:
            return
        if taken.is_database and not taken.problem and self.check != "none":
            self._begin_check(taken, place)
        else:
            place.close()

    def _unpack(self, block: bytes, blocks: Iterator[bytes], place: Place | None) -> str:
        """All of it; its SHA-256."""
        digest = hashlib.sha256()
        hashing: Future[None] | None = None
        while block:
            if hashing is not None:
                hashing.result()
            hashing = None
            if len(block) < _WORTH_A_THREAD_BYTES:
                digest.update(block)
            else:
                hashing = self._hasher.submit(digest.update, block)
            if place is not None:
                unpack.write(place.fd, block)
            self.progress(len(block))
            block = next(blocks, b"")
        if hashing is not None:
            hashing.result()
        return digest.hexdigest()

    def _begin_check(self, taken: _Taken, place: Place) -> None:
        """One at a time: what waits for its check takes room."""
        if self._checking is not None:
            _wait_for(self._checking)
        self._checking = taken.check = self._checker.submit(self._run_check, place)

    def _run_check(self, place: Place) -> Verdict:
        def connect() -> sqlite3.Connection:
            connection = place.connect()
            with self._lock:
                if self._is_stopped:
                    raise CancelledError
                self._connection = connection
            return connection

        try:
            return snapshot.check(connect, self.check, _NO_LIMIT_SECONDS)
        finally:
            with self._lock:
                self._connection = None
                place.close()

    def _stop_check(self) -> None:
        """Nobody waits for its verdict any more, and it may take an hour.

        Whatever interrupted this thread may have done so while it began that check: nothing else knows of it yet.
        """
        with self._lock:
            self._is_stopped = True
        while True:
            with self._lock:
                if self._connection is None:
                    return
                self._connection.interrupt()
            time.sleep(_AGAIN_SECONDS)  # an interrupt between two statements is lost
