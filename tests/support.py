"""What the tests of the core share: a backup driven without HTTP, its reader alone, plans made up."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness import Archive, Config
from mothership_backup import backup, frames
from mothership_backup.backup import Backup, Options
from mothership_backup.child import ReaderProcess
from mothership_backup.config import Settings
from mothership_backup.decoder import Frame
from mothership_backup.errors import BackupError
from mothership_backup.manifest import Engine, Manifest, Plan, read_sources
from mothership_backup.reader.request import Request

ENGINE = Engine("3.50.4", "sqlean", True, "isal")
INSTANT = {
    "exact": True,
    "first_pinned_at": "2026-11-23T02:00:00.123Z",
    "last_pinned_at": "2026-11-23T02:00:00.124Z",
}
PAGES = {
    "journal_mode": "wal",
    "page_size": 4096,
    "page_count": 244_508,
    "user_version": -(2**31),
    "application_id": 2**31 - 1,
    "taken_at": "2026-11-23T02:00:00.123Z",
}


def settings_for(data_dir: Path, config: Config | None = None) -> Settings:
    """Settings for this directory; ``config`` as in a configuration file."""
    sections = {name: dict(keys) for name, keys in (config or {}).items()}
    return Settings.model_validate(sections | {"data": {"dir": str(data_dir)} | sections.get("data", {})})


def backup_of(data_dir: Path, config: Config | None = None, **options: Any) -> Backup:
    """A backup that nobody has driven yet; ``options`` are fields of Options."""
    settings = settings_for(data_dir, config)
    return Backup(settings, dataclasses.replace(Options.of(settings), **options))


def request_for(data_dir: Path, config: Config | None = None, **fields: Any) -> Request:
    """What the service would ask its reader for; ``fields`` are the request's own."""
    settings = settings_for(data_dir, config)
    request = backup._request("backup", settings, Options.of(settings))
    return Request(**(vars(request) | fields))


def take(run: Backup) -> Archive:
    """The whole archive, which must come to its end."""
    archive = Archive(b"".join(run.chunks()))
    assert run.outcome is not None
    assert run.outcome.word == ("complete" if archive.manifest["complete"] else "incomplete")
    assert run.content_length in (None, len(archive.data))
    return archive


def archive_of(data_dir: Path, config: Config | None = None, **options: Any) -> Archive:
    return take(backup_of(data_dir, config, **options))


def error_of(data_dir: Path, config: Config | None = None, **options: Any) -> BackupError:
    """What the backup failed with; it must not end well."""
    with pytest.raises(BackupError) as caught:
        take(backup_of(data_dir, config, **options))
    return caught.value


def codes(archive: Archive) -> dict[str, str]:
    """Name -> why it is not in the archive, or not good."""
    return {
        source["name"]: source["error"]["code"]
        for source in archive.manifest["sources"]
        if source["status"] != "ok"
    }


def described(path: str, **fields: Any) -> dict[str, Any]:
    """As the reader tells a database of its plan."""
    document = {
        "path": path,
        "kind": "database",
        "status": "ok",
        "size_bytes": 1_001_504_768,
        "mtime_ns": 1,
        "mode": 420,
    }
    document |= {"is_named": True, "engine": "live", "is_packed": True, "wave": 1}
    return document | PAGES | fields


def planned(documents: list[dict[str, Any]]) -> Plan:
    return Plan(tuple(read_sources(documents)), ENGINE, "1.2", 1, INSTANT)


def manifest_of(plan: Plan, check: str = "quick", app_version: str = "1.2") -> Manifest:
    created_at = "2026-11-23T02:00:00.123Z"
    return Manifest(
        plan, backup_id="a" * 32, created_at=created_at, check=check, version="0.1.0", app_version=app_version
    )


def names_of(archive: Archive) -> set[str]:
    """What of the sources is in the archive."""
    return set(archive.names) - {"VERSION", "MANIFEST.json", "SHA256SUMS"}


def touch(*paths: Path) -> None:
    """Files of one byte."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@contextmanager
def reading(request: Request) -> Iterator[tuple[ReaderProcess, Iterator[Frame]]]:
    """A reader without the service's archive: its frames are taken one by one."""
    with ReaderProcess(request) as reader:
        yield reader, reader.frames()


def until(incoming: Iterable[Frame], frame_type: int) -> Frame:
    """The next frame of this type."""
    return next(frame for frame in incoming if frame.type == frame_type)


def plan_of(incoming: Iterator[Frame]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The sources and the rest of a plan, as the reader says them."""
    sources: list[dict[str, Any]] = []
    for frame in incoming:
        if frame.type == frames.PLAN:
            sources += frame.document["sources"]
        if frame.type == frames.PLAN_END:
            return sources, frame.document
    raise AssertionError("no plan came")


def execute(path: Path, *statements: str) -> None:
    """Each in its own transaction, on a connection of its own, which this process closes again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(query).fetchall()


def reference_pages(path: Path) -> bytes:
    """The snapshot of now, by the backup API of another library than the reader's pages."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return db.serialize()


def has_dbpage() -> bool:
    """Whether the standard library's own SQLite has `sqlite_dbpage`: then nothing is ever copied."""
    with closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("SELECT 1 FROM sqlite_dbpage LIMIT 0")
        except sqlite3.OperationalError:
            return False
    return True


def engines(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name -> engine of every database in the archive."""
    return {s["name"]: s["engine"] for s in manifest["sources"] if "engine" in s and s["kind"] == "database"}


def each_look_is_due() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is looked at."""
    return count(1).__next__
