"""One backup, from the request to the last byte. THE PAGE TO READ.

    1. start a reader          child.py: a process of its own opens the sources, this one never does
    2. read its plan           what is there, what can be had, at which instant
    3. decide                  an honest error while there still can be one
    4. yield the archive       archive.py: the reader's frames -> ZIP chunks, pulled by whoever sends them
    5. judge                   the outcome: complete, incomplete, or why there is no archive

It is all blocking and pulled from one end: whoever does not take the next chunk stops the reader, over a full
pipe. `cancel` ends it from any thread by killing the reader.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from mothership_backup import __version__, frames
from mothership_backup.archive import Archive, Chunk, PinCost
from mothership_backup.child import ReaderProcess
from mothership_backup.config import Settings
from mothership_backup.decoder import Frame
from mothership_backup.errors import (
    BackupError,
    BusyError,
    ClientLeftError,
    ClosingError,
    CutError,
    IncompleteError,
    NoMatchError,
    NoneReadableError,
    ReaderError,
    TooManyDatabasesError,
)
from mothership_backup.frames import ProtocolError
from mothership_backup.manifest import Engine, Manifest, Plan, read_sources
from mothership_backup.reader.request import Request

NO_VERSION: Final = "unknown"
"""What VERSION says when neither `data.version` nor `data.version_file` is configured."""


@dataclass(frozen=True)
class Options:
    """What one backup is asked for. ``databases`` are patterns; empty: all that the configuration names."""

    compression: Literal["deflate", "stored"]
    check: Literal["none", "quick", "full"]
    strict: bool
    databases: tuple[str, ...] = ()
    files: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """The configured defaults."""
        archive = settings.archive
        return cls(compression=archive.compression, check=archive.check, strict=archive.strict)


@dataclass(frozen=True)
class Outcome:
    """How a backup ended, in the words of the log; ``failures`` are names of sources and why they are missing."""

    word: str
    reason: str
    failures: dict[str, str]
    sent_bytes: int
    duration_seconds: float

    @property
    def failed(self) -> int:
        return len(self.failures)


class Backup:
    """One run. Drive `chunks` from one thread, once; `cancel` it from any.

    ``plan`` and ``content_length`` (stored archives only) are known before the first chunk; ``outcome`` when
    `chunks` has ended, one way or another, and ``pin_cost`` if it has ended well.
    """

    def __init__(self, settings: Settings, options: Options) -> None:
        self.id = uuid.uuid4().hex
        self.plan: Plan | None = None
        self.content_length: int | None = None
        self.outcome: Outcome | None = None
        self.pin_cost: PinCost | None = None
        self._settings = settings
        self.options = options
        self._manifest: Manifest | None = None
        self._reader: ReaderProcess | None = None
        self._cancelled: BackupError | None = None
        self._lock = threading.Lock()
        self._sent_bytes = 0

    def chunks(self) -> Iterator[Chunk]:
        """The archive. The first chunk is empty and means that it is decided; later empty ones mean "goes out now".

        Raises BackupError; what was yielded before is then no archive, and must not look like one.
        """
        with self._judged(), self._started(_request("backup", self._settings, self.options)) as reader:
            incoming = reader.frames()
            archive = self._begin(_read_plan(incoming))
            yield b""
            yield from self._counted(archive.chunks(incoming))
            self.pin_cost = archive.pin_cost

    def preview(self) -> None:
        """Set ``plan`` and ``content_length`` as they would be now, from a plan alone: nothing is staged or sent.

        Raises what `chunks` would raise before its first chunk.
        """
        with self._started(_request("plan", self._settings, self.options)) as reader:
            self._begin(_read_plan(reader.frames()))

    def cancel(self, reason: BackupError) -> None:
        """End it now, from any thread: `chunks` raises ``reason``. The first reason stays."""
        with self._lock:
            if self._cancelled is None:
                self._cancelled = reason
            reader = self._reader
        if reader is not None:
            reader.kill()

    def is_reader_gone(self) -> bool:
        """False while a killed reader lives on (disk sleep): what it holds is not free."""
        return self._reader is None or self._reader.is_gone()

    def sudden_end(self) -> BackupError | None:
        """Why its reader was ended from outside, if it was: `chunks` will raise it, once it is driven so far."""
        return None if self._reader is None else self._reader.sudden_end()

    @property
    def reader_start_seconds(self) -> float | None:
        """From its reader's start to the first sign of it."""
        return None if self._reader is None else self._reader.start_seconds

    @property
    def reader_stderr(self) -> str:
        """What the reader wrote on stderr, for the log."""
        return "" if self._reader is None else self._reader.stderr

    @contextmanager
    def _started(self, request: Request) -> Iterator[ReaderProcess]:
        with ReaderProcess(request) as reader:
            with self._lock:
                self._reader = reader
                if self._cancelled is not None:
                    raise self._cancelled
            yield reader

    def _begin(self, plan: Plan) -> Archive:
        self.plan = plan
        self._decide(plan)
        archive = self._make_archive(plan)
        self.content_length = archive.content_length
        return archive

    def _decide(self, plan: Plan) -> None:
        """The last moment for an honest error status."""
        stored = self.options.compression == "stored"
        wanted = [source for source in plan.sources if source.is_named or source.kind == "database"]
        wanted = [source for source in wanted if source.status != "skipped"]
        failures = {source.path: source.error_message for source in plan.sources if source.status == "failed"}
        told = "; ".join(f"{path}: {message}" for path, message in list(failures.items())[:5])
        if wanted and all(source.status == "failed" for source in wanted):
            raise NoneReadableError(f"none of the {len(wanted)} databases can be read: {told}")
        if self.options.strict and failures:
            raise IncompleteError(f"strict was asked for, and {len(failures)} sources failed: {told}")
        if stored and plan.waves > 1:
            raise TooManyDatabasesError(
                f"{plan.databases} databases are more than can be pinned at once, so the length of a stored archive"
                " (and so of any for HTTP/1.0) cannot be known; name fewer with database=GLOB, or take deflate"
            )

    def _make_archive(self, plan: Plan) -> Archive:
        created = time.time()
        app_version = app_version_of(self._settings, plan)
        self._manifest = Manifest(
            plan,
            backup_id=self.id,
            created_at=datetime.fromtimestamp(created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            check=self.options.check,
            version=__version__,
            app_version=app_version,
        )
        return Archive(
            plan,
            self._manifest,
            stored=self.options.compression == "stored",
            strict=self.options.strict,
            level=self._settings.archive.level,
            created=created,
            app_version=app_version,
            check_timeout_seconds=self._settings.snapshot.check_timeout_seconds,
        )

    def _counted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Holds a stored archive to its promised length: no byte too many goes out, none too few unnoticed."""
        for chunk in chunks:
            self._sent_bytes += len(chunk)
            if self.content_length is not None and self._sent_bytes > self.content_length:
                raise ReaderError("the archive is longer than promised", code="reader_protocol")
            yield chunk
        if self.content_length is not None and self._sent_bytes != self.content_length:
            raise ReaderError("the archive is shorter than promised", code="reader_protocol")

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Sets the outcome, and raises the reason of a cancelled backup in place of what the kill looked like."""
        began = time.monotonic()
        error: BaseException | None = None
        try:
            yield
        except GeneratorExit as left:
            error = self._cancelled or left
            raise
        except BaseException as failure:
            error = self._cancelled or failure
            if error is failure:
                raise
            raise error from failure
        finally:
            failures = self._manifest.failures if self._manifest is not None else {}
            word, reason = _judge(error, bool(failures))
            self.outcome = Outcome(word, reason, failures, self._sent_bytes, time.monotonic() - began)


def app_version_of(settings: Settings, plan: Plan) -> str:
    """The application's version, as VERSION says it."""
    return settings.data.version or plan.app_version or NO_VERSION


def make_plan(settings: Settings, options: Options) -> Plan:
    """What a backup would cover now; nothing is staged. Raises DataDirError, NoMatchError, ReaderError."""
    with ReaderProcess(_request("plan", settings, options)) as reader:
        return _read_plan(reader.frames())


def probe(settings: Settings) -> Engine:
    """What the reader process has to work with. Raises ReaderError."""
    with ReaderProcess(_request("probe", settings, Options.of(settings))) as reader:
        return _read_plan(reader.frames()).engine


def _read_plan(incoming: Iterator[Frame]) -> Plan:
    ends: list[Frame] = []
    try:
        sources = tuple(read_sources(_documents(incoming, ends)))
    except (AttributeError, KeyError, TypeError) as error:
        raise ProtocolError(f"a source that is none: {error!r}") from error
    head = ends[0].document
    return Plan(
        sources=sources,
        engine=Engine(head["sqlite"], head["library"], head["dbpage"], head["deflate"]),
        app_version=head.get("app_version", ""),
        waves=head.get("waves", 1),
        instant=head.get("instant", {}),
    )


def _documents(incoming: Iterator[Frame], ends: list[Frame]) -> Iterator[dict[str, object]]:
    """The plan's sources as they come, never all at once; what ends it is put into ``ends``."""
    for frame in incoming:
        if frame.type == frames.PLAN:
            yield from frame.document["sources"]
        elif frame.type == frames.PLAN_END:
            ends.append(frame)
            return
        elif frame.type != frames.ALIVE:
            break
    raise ProtocolError("no plan came")


def _judge(error: BaseException | None, has_failures: bool) -> tuple[str, str]:
    match error:
        case None:
            return ("incomplete", "a source failed") if has_failures else ("complete", "")
        case ClientLeftError():
            return "client_left", error.message
        case CutError():
            return "cut", error.code
        case BusyError() | ClosingError() | NoMatchError() | TooManyDatabasesError():
            return "refused", error.message
        case BackupError():
            return "failed", error.message
        case GeneratorExit():
            return "cancelled", "nobody took the rest of it"
    return "failed", f"{type(error).__name__}: {error}"


def _request(mode: str, settings: Settings, options: Options) -> Request:
    data, snapshot, limits = settings.data, settings.snapshot, settings.limits
    return Request(
        mode=mode,
        data_dir=str(data.dir.absolute()),
        databases=data.databases,
        include=data.include if options.files else (),
        exclude=data.exclude,
        only=options.databases,
        version_file="" if data.version else data.version_file,
        stored=options.compression == "stored",
        level=settings.archive.level,
        level_was_set="level" in settings.archive.model_fields_set,
        check=options.check,
        engine=snapshot.engine,
        busy_timeout_seconds=snapshot.busy_timeout_seconds,
        max_lock_seconds=snapshot.max_lock_seconds,
        check_timeout_seconds=snapshot.check_timeout_seconds,
        # A share each, so that all running backups together stay below the bound.
        staging_memory_bytes=snapshot.staging_memory_bytes // limits.concurrent_backups,
        staging_dir=_staging_dir(snapshot.staging_dir),
        max_hold_seconds=limits.max_hold_seconds,
        max_wal_growth_bytes=limits.max_wal_growth_bytes,
        min_free_bytes=limits.min_free_bytes,
        read_bytes_per_second=limits.read_bytes_per_second,
        nice=limits.nice,
        threads=limits.threads,
    )


def _staging_dir(configured: str) -> str:
    """The folder for staged copies; empty if there is none. One that is configured is used, or its lack is told."""
    if configured:
        return os.path.abspath(configured)
    for candidate in (os.environ.get("TMPDIR", ""), "/tmp"):
        if candidate and os.path.isdir(candidate):
            return os.path.abspath(candidate)
    return ""
