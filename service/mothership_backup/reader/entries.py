"""The plan's sources in their order -> DATA frames; wave by wave, with staging and checks beside.

This thread reads and sends, one stages (smallest first), one checks, and those of `packing` hash and deflate. Each
pin is released as soon as its pages, or their copy, and its check are through.
"""

from __future__ import annotations

import hashlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from mothership_backup import frames
from mothership_backup.errors import ReaderError, SourceError
from mothership_backup.reader import copy, packing, snapshot, sqlite
from mothership_backup.reader.instant import Instant, Pin, Pinner
from mothership_backup.reader.output import FrameWriter
from mothership_backup.reader.request import Request
from mothership_backup.reader.source import DATABASE, FILE, IMMUTABLE, LIVE, Source
from mothership_backup.reader.staging import StagedCopy, Stager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_WORTH_THREADS_BYTES: Final = 1024 * 1024  # below it there is one piece
_SMALL_BYTES: Final = 32 * 1024


class Entries:
    """One backup's entries, from the first pin to the END frame."""

    def __init__(
        self,
        request: Request,
        library: sqlite.Library,
        output: FrameWriter,
        pinner: Pinner,
        stager: Stager,
        sources: list[Source],
    ) -> None:
        self._request = request
        self._library = library
        self._output = output
        self._pinner = pinner
        self._sources = sources
        self._wave = 0
        self._instants: list[Instant] = []
        self._pins: dict[str, Pin] = {}
        self._staging = _Staging(stager, pinner)
        self._stager = stager
        self._checks = _Checks(request, output)
        self._packer = packing.Packer(request.threads)
        self._throttle = _Throttle(request.read_bytes_per_second)

    def begin_wave(self, wave: int) -> Instant:
        """Pin the databases of ``wave`` and begin to stage those that need it."""
        self._checks.drain()  # the pins of the wave before are released by its checks
        self._wave = wave
        members = [source for source in self._sources if source.kind == DATABASE and source.wave == wave]
        self._pins, instant = self._pinner.pin_all(members)
        self._instants.append(instant)
        if self._request.mode == "backup":
            self._staging.begin([source for source in members if source.status == "ok"], self._pins)
        return instant

    def wait_for_staging(self) -> None:
        """Until everything is staged; what cannot be is failed, and the plan can say so."""
        for source in self._sources:
            if self._staging.has(source):
                self._staging.fail_if_failed(source)

    def send_all(self) -> None:
        """Every entry, every verdict, and END. Raises ReaderError when an entry fails after its first byte."""
        count = 0
        size_bytes = 0
        # Now: one that fails when its wave begins was planned, and is told.
        planned = [index for index, source in enumerate(self._sources) if source.status == "ok"]
        for index in planned:
            source = self._sources[index]
            if source.kind == DATABASE and source.wave > self._wave:
                self.begin_wave(source.wave)
            if self._send(index, source):
                count += 1
                size_bytes += source.size_bytes
        self._output.flush()
        self._checks.drain()
        self._output.send(
            frames.END,
            {
                "entries": count,
                "size_bytes": size_bytes,
                "instants": [instant.describe() for instant in self._instants],
                **self._pinner.describe_cost(),
            },
        )

    def _send(self, index: int, source: Source) -> bool:
        """False when the source failed before its first byte and was left out."""
        # Of small files many go out at a time, unless each has to wait for the throttle.
        may_wait = source.kind == FILE and source.size_bytes <= _SMALL_BYTES and not self._throttle.is_on
        if not may_wait:
            self._output.flush()
        try:
            if source.error is not None:  # it failed when its wave began
                raise source.error
            staged = self._staging.take(source) if self._staging.has(source) else None
            blocks = self._blocks(source, staged)
            first = next(blocks, b"")
        except (SourceError, self._library.module.Error) as error:
            failure = error if isinstance(error, SourceError) else sqlite.describe(error, source.full_path)
            self._leave_out(index, source, failure)
            return False
        is_checked_beside = staged is None and self._check_beside(index, source)
        try:
            digest = self._send_blocks(source, first, blocks, may_wait=may_wait)
            if source.engine == IMMUTABLE and staged is None:
                self._pins[source.path].look_for_change()
        except (SourceError, self._library.module.Error) as error:
            raise ReaderError(f"{source.path}: {error}", code="source_failed", source=source.path) from error
        self._output.send(frames.END_OF_ENTRY, self._describe_entry(index, source, digest), may_wait=may_wait)
        if is_checked_beside:
            self._let_go(source, None)
        else:
            self._check(index, source, staged)
        return True

    def _leave_out(self, index: int, source: Source, failure: SourceError) -> None:
        self._let_go_of_twin(source)
        self._let_go(source, None)
        if self._request.stored:
            raise ReaderError(
                f"{source.path}: {failure.message} (the archive's length was promised already)",
                code="source_failed",
                source=source.path,
            )
        document = {"code": failure.code, "message": failure.message}
        self._output.send(frames.END_OF_ENTRY, {"index": index, "error": document})

    def _blocks(self, source: Source, staged: StagedCopy | None) -> Iterator[bytes]:
        if staged is not None:
            return staged.blocks()
        if source.engine in (LIVE, IMMUTABLE):
            return snapshot.blocks(self._pins[source.path].connection, source)
        return copy.blocks(source)

    def _send_blocks(self, source: Source, first: bytes, rest: Iterator[bytes], *, may_wait: bool) -> str:
        sha256 = hashlib.sha256()
        level = self._request.level if source.is_packed and not self._request.stored else None
        pieces = self._throttle.pieces(chain([first], rest) if first else rest)
        # Held back on threads, a piece would wait for the throttle with the next one.
        if self._throttle.is_on or source.size_bytes <= _WORTH_THREADS_BYTES:
            packed = packing.one_by_one(pieces, level, sha256)
        else:
            packed = self._packer.on_threads(pieces, level, sha256)
        for piece in packed:
            self._output.send_data(*piece, may_wait=may_wait)
        return sha256.hexdigest()

    def _describe_entry(self, index: int, source: Source, sha256: str) -> dict[str, Any]:
        document: dict[str, Any] = {"index": index, "size_bytes": source.size_bytes, "sha256": sha256}
        if source.kind == DATABASE:
            document["engine"] = source.engine
            document |= source.describe_pages()
        return document

    def _check_beside(self, index: int, source: Source) -> bool:
        """Queue the check of a database that has a twin; its verdict may come before its last page."""
        pin = self._pins.get(source.path)
        if pin is None or pin.twin is None or source.is_cut:
            return False
        twin = pin.twin
        self._checks.add(index, lambda: twin, lambda: self._pinner.release_twin(pin))
        return True

    def _check(self, index: int, source: Source, staged: StagedCopy | None) -> None:
        """Queue the check, which lets the snapshot go; at once where none is asked for, or none is needed."""
        self._let_go_of_twin(source)
        if source.is_cut:
            self._let_go(source, staged)
            text = "the file is shorter than its header says"
            self._output.send(frames.CHECK, {"index": index, "verdict": snapshot.DAMAGED, "text": text})
            return
        if source.kind != DATABASE or self._request.check == "none":
            self._let_go(source, staged)
            return

        def connect() -> sqlite3.Connection:
            if staged is not None:
                return staged.open_for_check()
            return self._pins[source.path].connection

        self._checks.add(index, connect, lambda: self._let_go(source, staged))

    def _let_go_of_twin(self, source: Source) -> None:
        if source.path in self._pins:
            self._pinner.release_twin(self._pins[source.path])

    def _let_go(self, source: Source, staged: StagedCopy | None) -> None:
        if staged is not None:
            self._stager.release(staged)
        if source.path in self._pins:
            self._pinner.release(self._pins[source.path])


class _Staging:
    """A thread that stages one database after the other, and the copies until they are taken."""

    def __init__(self, stager: Stager, pinner: Pinner) -> None:
        self._stager = stager
        self._pinner = pinner
        self._results: dict[str, StagedCopy | Exception | None] = {}
        self._begun: set[str] = set()
        self._changed = threading.Condition()

    def begin(self, sources: list[Source], pins: dict[str, Pin]) -> None:
        """Start to stage those of ``sources`` that are not read live, smallest first."""
        members = sorted(
            (source for source in sources if source.engine != LIVE), key=lambda source: source.size_bytes
        )
        self._begun |= {source.path for source in members}
        if members:
            threading.Thread(target=self._run, args=(members, pins), name="staging", daemon=True).start()

    def has(self, source: Source) -> bool:
        return source.path in self._begun

    def take(self, source: Source) -> StagedCopy | None:
        """Wait for the copy; None for an immutable source that is read directly. Raises what staging raised."""
        with self._changed:
            self._changed.wait_for(lambda: source.path in self._results)
            result = self._results.pop(source.path)
        if isinstance(result, Exception):
            raise result
        return result

    def fail_if_failed(self, source: Source) -> None:
        """Wait for the copy, leave it where it is, and mark ``source`` failed if it cannot be had."""
        with self._changed:
            self._changed.wait_for(lambda: source.path in self._results)
            result = self._results[source.path]
        if isinstance(result, SourceError):
            source.fail(result)

    def _run(self, members: list[Source], pins: dict[str, Pin]) -> None:
        for source in members:
            result: StagedCopy | Exception | None
            try:
                result = self._stage(source, pins.get(source.path))
            except Exception as error:  # raised again in the thread that takes it
                result = error
            with self._changed:
                self._results[source.path] = result
                self._changed.notify_all()

    def _stage(self, source: Source, pin: Pin | None) -> StagedCopy | None:
        if source.engine == IMMUTABLE and not self._stager.fits_memory(source.size_bytes):
            return None
        try:
            return self._stager.stage(source, pin)
        finally:
            if pin is not None:
                self._pinner.release(pin)


class _Checks:
    """A thread that checks one database after the other, within ``check_timeout_seconds`` in all."""

    def __init__(self, request: Request, output: FrameWriter) -> None:
        self._kind = request.check
        self._output = output
        self._seconds_left = request.check_timeout_seconds
        self._jobs: queue.Queue[tuple[int, Callable[[], sqlite3.Connection], Callable[[], None]]] = (
            queue.Queue()
        )
        self._error: Exception | None = None
        self._is_running = False

    def add(self, index: int, connect: Callable[[], sqlite3.Connection], let_go: Callable[[], None]) -> None:
        if not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, name="checks", daemon=True).start()
        self._jobs.put((index, connect, let_go))

    def drain(self) -> None:
        """Wait until every queued check is through. Raises what one of them raised."""
        self._jobs.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            index, connect, let_go = self._jobs.get()
            try:
                self._check(index, connect, let_go)
            except Exception as error:  # raised again by drain
                self._error = error
            finally:
                self._jobs.task_done()

    def _check(
        self, index: int, connect: Callable[[], sqlite3.Connection], let_go: Callable[[], None]
    ) -> None:
        began = time.monotonic()
        try:
            verdict = snapshot.check(connect, self._kind, max(0.001, self._seconds_left))
        finally:
            let_go()
            self._seconds_left -= time.monotonic() - began
        self._output.send(frames.CHECK, {"index": index, "verdict": verdict.word, "text": verdict.text})


class _Throttle:
    """Spreads reads so that they stay below a number of bytes a second; 0: does nothing."""

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._due = time.monotonic()

    @property
    def is_on(self) -> bool:
        return self._bytes_per_second > 0

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """``blocks`` in pieces of half a second, each when its time has come: no client waits long for the next."""
        if not self.is_on:
            yield from blocks
            return
        piece_bytes = max(1, self._bytes_per_second // 2)
        for block in blocks:
            for begin in range(0, len(block), piece_bytes):
                piece = block[begin : begin + piece_bytes]
                now = time.monotonic()
                self._due = max(self._due, now)
                if self._due > now:
                    time.sleep(self._due - now)
                self._due += len(piece) / self._bytes_per_second
                yield piece
