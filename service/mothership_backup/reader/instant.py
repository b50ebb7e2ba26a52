"""Pins: all WAL databases at one instant, with the proof.

A pin is a read transaction: it sees the database as it was when the pin was set, while writers go on. Each
database is opened and read once first (that parses its schema and maps its `-shm`), then all are pinned in one
tight loop. The proof: `PRAGMA data_version` on a second connection of each tells whether anybody committed
between before the first pin and after the last (sqlite.org/pragma.html#pragma_data_version).

The largest keep that second connection as a twin, pinned too, if nobody committed until then either: it sees the
same snapshot, and so a check can run beside the reading.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from mothership_backup.errors import SourceError
from mothership_backup.reader import sqlite
from mothership_backup.reader.request import Request
from mothership_backup.reader.source import COPIED, IMMUTABLE, LIVE, STAGED, Source
from mothership_backup.reader.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_MAX_TRIES: Final = 20
_MAX_TRY_SECONDS: Final = 0.2
_RETRY_SECONDS: Final = 0.01
_HEADER_BYTES: Final = 100
_WORTH_A_TWIN_BYTES: Final = 16 * 1024 * 1024
_MOST_TWINS: Final = 8  # about 250 KiB each
_SETTLED_SECONDS: Final = 2.0  # ctime has the kernel tick's resolution: an older one cannot hide a write


class Pin:
    """One database with its connection, pinned or about to be."""

    def __init__(self, source: Source, connection: sqlite3.Connection) -> None:
        self.source = source
        self.connection = connection
        self.is_open = True
        self.twin: sqlite3.Connection | None = None
        self.wal_path = source.full_path + "-wal"
        self.wal_bytes = 0
        self.held_since = 0.0
        self.settled: os.stat_result | None = None  # an immutable source's state before it was opened

    @property
    def is_for_holding(self) -> bool:
        """A WAL database's: its writers go on meanwhile."""
        return self.source.is_wal and self.source.engine in (LIVE, COPIED) and self.settled is None

    @property
    def is_kept(self) -> bool:
        """Needed after the plan; what is to be staged after all is opened again for its copy."""
        return self.source.status == "ok" and (self.is_for_holding or self.settled is not None)

    def begin(self) -> None:
        """Take the snapshot; raises SQLite's BUSY at once."""
        self.connection.execute("BEGIN")
        self.connection.execute("PRAGMA schema_version").fetchone()
        self.held_since = time.monotonic()

    def look_for_change(self) -> None:
        """Raises SourceError if an immutable source was written to since before it was opened.

        A `-wal` that appears meanwhile is no harm: the file itself did not change.
        """
        if self.settled is None:
            return
        try:
            now = os.lstat(self.source.full_path)
        except FileNotFoundError as error:
            raise SourceError("it was removed while it was read without locks", code="changed") from error
        before = self.settled
        if (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
            before.st_ino,
            before.st_size,
            before.st_mtime_ns,
            before.st_ctime_ns,
        ):
            raise SourceError("it was written to while it was read without locks; try again", code="changed")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


class Instant:
    """When the pins of a wave were set, and whether nobody committed meanwhile."""

    def __init__(self, first_pinned_at: str, last_pinned_at: str, *, is_exact: bool) -> None:
        self.is_exact = is_exact
        self.first_pinned_at = first_pinned_at
        self.last_pinned_at = last_pinned_at

    def describe(self) -> dict[str, Any]:
        return {
            "exact": self.is_exact,
            "first_pinned_at": self.first_pinned_at,
            "last_pinned_at": self.last_pinned_at,
        }


def utc_now() -> str:
    """ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Pinner:
    """Opens sources and pins them; one for all waves of a backup."""

    def __init__(self, request: Request, library: sqlite.Library, watch: Watch) -> None:
        self._library = library
        self._watch = watch
        self._busy_timeout_seconds = request.busy_timeout_seconds
        self._wanted_engine = request.engine
        self._has_twins = request.mode == "backup" and request.check != "none"
        self._lock = threading.Lock()

    def pin_all(self, sources: Sequence[Source]) -> tuple[dict[str, Pin], Instant]:
        """Open, look at and (WAL only) pin each source; what fails says so in the source itself.

        Busy ones are retried together, for ``busy_timeout_seconds`` in all. A rollback-journal database is only
        looked at: a held read lock would block its writers. So is every one with ``engine = "staged"``, and then
        several are of no one instant. Returns the pins by path.
        """
        pins: dict[str, Pin] = {}
        self._retry(sources, lambda source: self._open_into(pins, source))
        instant = self._pin_at_one_instant([pin for pin in pins.values() if pin.is_for_holding])
        self._retry(
            [pin.source for pin in pins.values()], lambda source: self._read_properties(pins[source.path])
        )
        for path in [path for path, pin in pins.items() if not pin.is_kept]:
            self.release_twin(pins[path])
            self.release(pins.pop(path))
        if self._wanted_engine == STAGED and sum(source.is_wal for source in sources) > 1:
            instant.is_exact = False
        return pins, instant

    def describe_cost(self) -> dict[str, Any]:
        """What the pins have cost the applications so far, for the metrics."""
        return {
            "pin_seconds": self._watch.longest_pin_seconds,
            "wal_growth_bytes": self._watch.largest_growth_bytes,
        }

    def release(self, pin: Pin) -> None:
        """End the snapshot and close its connection; its twin goes on. Safe to call again."""
        pin.connection.close()
        with self._lock:
            pin.is_open = False
            is_last = pin.twin is None
        if is_last:
            self._watch.release(pin)

    def release_twin(self, pin: Pin) -> None:
        """The same for its twin, if it has one."""
        if pin.twin is None:
            return
        pin.twin.close()
        with self._lock:
            pin.twin = None
            is_last = not pin.is_open
        if is_last:
            self._watch.release(pin)

    def _retry(self, sources: Sequence[Source], attempt: Callable[[Source], None]) -> None:
        deadline = time.monotonic() + self._busy_timeout_seconds
        waiting = [source for source in sources if source.status == "ok"]
        while waiting:
            is_last = time.monotonic() >= deadline
            still: list[Source] = []
            for source in waiting:
                try:
                    attempt(source)
                except self._library.module.Error as error:
                    if sqlite.is_busy(error) and not is_last:
                        still.append(source)
                    else:
                        source.fail(sqlite.describe(error, source.full_path))
                except _NotYetError as error:
                    still.append(source) if not is_last else source.fail(error)
                except SourceError as error:
                    source.fail(error)
            waiting = still
            if waiting:
                time.sleep(_RETRY_SECONDS)

    def _open_into(self, pins: dict[str, Pin], source: Source) -> None:
        """Open and read once. Raises SQLite's errors, SourceError, or _NotYetError when a later try may do."""
        if not source.is_wal:
            self._look_at(source)
            return
        source.engine = LIVE if self._library.has_dbpage else COPIED
        if self._wanted_engine == LIVE != source.engine:
            message = "snapshot.engine is \"live\", and no SQLite at hand has sqlite_dbpage; install the extra 'fast'"
            raise SourceError(message, code="no_live_engine")
        try:
            if self._wanted_engine == STAGED:
                self._look_at(source)
            else:
                pins[source.path] = self._open(source)
        except self._library.module.Error as error:
            if not sqlite.needs_sidecars(error):
                raise
            pins[source.path] = self._open_immutable(source, error)

    def _look_at(self, source: Source) -> None:
        """A database to be staged: read now what the plan says, and let it go until its copy."""
        source.engine = STAGED if self._library.has_dbpage else COPIED
        pin = self._open(source)
        try:
            read_properties(pin.connection, source)
            source.taken_at = utc_now()
        finally:
            pin.connection.close()

    def _open(self, source: Source) -> Pin:
        connection = sqlite.connect(self._library, source.full_path)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            now = os.lstat(source.full_path)
            if (now.st_dev, now.st_ino) != source.identity:
                raise SourceError("another file took its name while the backup looked at it", code="replaced")
        except FileNotFoundError as error:
            connection.close()
            raise SourceError("it was removed while the backup looked at it", code="vanished") from error
        except BaseException:
            connection.close()
            raise
        return Pin(source, connection)

    def _open_immutable(self, source: Source, cause: Exception) -> Pin:
        """Read without locks what nobody can be writing: no sidecar is there, and nothing changed of late."""
        try:
            before = os.lstat(source.full_path)
        except FileNotFoundError:
            raise sqlite.describe(cause, source.full_path) from cause
        if os.path.lexists(source.full_path + "-wal") or os.path.lexists(source.full_path + "-journal"):
            raise SourceError(
                f"it has a WAL that this user cannot read consistently ({cause}): its application is gone without"
                " closing it, or its -shm is out of reach; start the application, or run as the database's owner",
                code="needs_recovery",
            ) from cause
        if time.time() - before.st_ctime < _SETTLED_SECONDS:
            raise _NotYetError(
                "it changed less than two seconds ago and is not open now; try again", code="busy"
            )
        connection = sqlite.connect(self._library, source.full_path, immutable=True)
        source.engine = IMMUTABLE if self._library.has_dbpage else COPIED
        pin = Pin(source, connection)
        pin.settled = before
        return pin

    def _pin_at_one_instant(self, pins: list[Pin]) -> Instant:
        # One alone is of one instant by itself.
        witnesses = self._open_witnesses(pins if len(pins) > 1 else self._worth_a_twin(pins))
        try:
            give_up = time.monotonic() + _MAX_TRY_SECONDS
            for attempt in range(1, _MAX_TRIES + 1):
                before = self._data_versions(witnesses)
                began = utc_now()
                self._begin_all(pins)
                ended = utc_now()
                is_exact = len(pins) < 2 or (
                    len(before) == len(pins)
                    and before == self._data_versions(witnesses)
                    and all(pin.connection.in_transaction for pin in pins)
                )
                if is_exact or attempt == _MAX_TRIES or time.monotonic() > give_up:
                    break
                for pin in pins:
                    pin.rollback()
            self._keep_twins(pins, witnesses, before)
        finally:
            for pin, witness in zip(pins, witnesses, strict=False):
                if pin.twin is not witness:
                    witness.close()
        return Instant(began, ended, is_exact=is_exact)

    def _worth_a_twin(self, pins: list[Pin]) -> list[Pin]:
        """The largest of those whose pages are read while it would be checked."""
        if not self._has_twins:
            return []
        large = [
            pin
            for pin in pins
            if pin.source.engine == LIVE and pin.source.stat.st_size >= _WORTH_A_TWIN_BYTES
        ]
        return sorted(large, key=lambda pin: pin.source.stat.st_size, reverse=True)[:_MOST_TWINS]

    def _keep_twins(self, pins: list[Pin], witnesses: list[sqlite3.Connection], before: list[int]) -> None:
        worthy = self._worth_a_twin(pins)
        for pin, witness, version in zip(pins, witnesses, before, strict=False):
            if pin in worthy and pin.connection.in_transaction and self._begins_at(witness, version):
                pin.twin = witness

    def _begins_at(self, witness: sqlite3.Connection, version: int) -> bool:
        """Pin ``witness``; False, and it is not, if anybody committed since it saw ``version``."""
        try:
            witness.execute("BEGIN")
            if witness.execute("PRAGMA data_version").fetchone()[0] == version:
                return True
            witness.execute("ROLLBACK")
        except self._library.module.Error:
            pass  # closed in any case, and the check comes later
        return False

    def _open_witnesses(self, pins: list[Pin]) -> list[sqlite3.Connection]:
        """A second connection of each database. One that cannot be had is none: then nothing is proved."""
        witnesses: list[sqlite3.Connection] = []
        for pin in pins:
            try:
                witnesses.append(sqlite.connect(self._library, pin.source.full_path))
            except self._library.module.Error:
                break
        return witnesses

    def _data_versions(self, witnesses: list[sqlite3.Connection]) -> list[int]:
        """One a witness; fewer where one cannot be asked, which proves nothing."""
        versions: list[int] = []
        for witness in witnesses:
            try:
                versions.append(int(witness.execute("PRAGMA data_version").fetchone()[0]))
            except self._library.module.Error:
                break
        return versions

    def _begin_all(self, pins: list[Pin]) -> None:
        """The tight loop. A pin that is busy now is set after the others, and then the instant is not exact."""
        for pin in pins:
            try:
                pin.begin()
            except self._library.module.Error:
                pin.rollback()

    def _read_properties(self, pin: Pin) -> None:
        """What the plan says of a database, read inside its snapshot."""
        source, connection = pin.source, pin.connection
        if pin.is_for_holding and not connection.in_transaction:
            pin.begin()
        source.taken_at = utc_now()
        if pin.is_for_holding:
            pin.wal_bytes = _size(pin.wal_path)
            self._watch.hold(pin)
        read_properties(connection, source)
        if source.engine in (LIVE, IMMUTABLE):
            look_for_cut(connection, source)
        if source.engine == LIVE:
            self._refuse_changed_mode(source, connection)

    def _refuse_changed_mode(self, source: Source, connection: sqlite3.Connection) -> None:
        """A pin on what has become a rollback-journal database meanwhile would block its writers."""
        row = connection.execute(
            "SELECT substr(data, 20, 1) FROM sqlite_dbpage('main') WHERE pgno = 1"
        ).fetchone()
        if row is not None and row[0] == b"\x01":
            connection.execute("ROLLBACK")
            source.is_wal = False
            source.engine = STAGED


class _NotYetError(SourceError):
    """A later try may do."""


def read_properties(connection: sqlite3.Connection, source: Source) -> None:
    """Sizes and versions of the snapshot that ``connection`` sees."""

    def value(pragma: str) -> int:
        return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    source.page_size = value("page_size")
    source.page_count = value("page_count")
    source.user_version = value("user_version")
    source.application_id = value("application_id")
    source.size_bytes = source.page_size * source.page_count
    source.file_bytes = _size(source.full_path)
    source.mtime_ns = max(source.stat.st_mtime_ns, _mtime_ns(source.full_path + "-wal"))


def look_for_cut(connection: sqlite3.Connection, source: Source) -> None:
    """Note a database that was cut before: `writable_schema` lets SQLite read what is left without a word.

    The header's own size counts only if it was written with the last change (fileformat2.html, 1.3.7).
    """
    row = connection.execute(
        "SELECT substr(data, 1, 100) FROM sqlite_dbpage('main') WHERE pgno = 1"
    ).fetchone()
    if row is not None and len(row[0]) == _HEADER_BYTES and row[0][24:28] == row[0][92:96]:
        source.is_cut = int.from_bytes(row[0][28:32], "big") > source.page_count


def _size(path: str) -> int:
    status = _stat(path)
    return status.st_size if status is not None else 0


def _mtime_ns(path: str) -> int:
    status = _stat(path)
    return status.st_mtime_ns if status is not None else 0


def _stat(path: str) -> os.stat_result | None:
    """None for what is not there; a sidecar's name may even be too long to be there."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise
