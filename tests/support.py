"""What the tests of the core share: a backup driven without HTTP, in this process or in one of another kind.

Run as a program it drives one backup and prints what became of it: as another user, without a capability, or
with sqlean and isal made unimportable, so that its reader has neither.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Archive, Config
from mothership_backup import backup, frames
from mothership_backup.backup import Backup, Options
from mothership_backup.child import ReaderProcess
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError
from mothership_backup.frames import Frame
from mothership_backup.manifest import Engine, Manifest, Plan, read_sources
from mothership_backup.reader.request import Request

NOBODY = 65534
EXTRA = ("sqlean", "isal")
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
    return backup._request("backup", settings, Options.of(settings))._replace(**fields)


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


def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="mothership-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclasses.dataclass(frozen=True)
class Driven:
    """What a backup in another process said of itself."""

    outcome: str
    error: dict[str, str] | None
    engines: dict[str, str]
    codes: dict[str, str]
    archive: Archive | None


def drive(
    data_dir: Path,
    config: Config | None = None,
    *,
    user: int | None = None,
    command: Sequence[str] = (),
    without: Iterable[str] = (),
    without_chown: bool = False,
    **options: Any,
) -> Driven:
    """One backup in a process of another kind. ``command`` is put before it (`unshare -m …`)."""
    words = [*command, sys.executable, __file__, str(data_dir), json.dumps(config or {}), json.dumps(options)]
    words += [f"--without={name}" for name in without] + ["--without-chown"] * without_chown
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=60,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
            check=False,
        )
        output.seek(0)
        head, data = output.readline(), output.read()
    assert done.returncode == 0, done.stderr.decode()
    return Driven(**json.loads(head), archive=Archive(data) if data else None)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data_dir", type=Path)
    arguments.add_argument("config", type=json.loads)
    arguments.add_argument("options", type=json.loads)
    arguments.add_argument("--without", action="append", default=[])
    arguments.add_argument("--without-chown", action="store_true")
    given = arguments.parse_args()
    for name in given.without:
        sys.modules[name] = None  # type: ignore[assignment]  # how the import system marks what must not be found
    if given.without_chown and ctypes.CDLL(None, use_errno=True).prctl(24, 0, 0, 0, 0):  # PR_CAPBSET_DROP
        raise OSError(ctypes.get_errno(), "CAP_CHOWN cannot be dropped")
    said: dict[str, Any] = {"error": None, "engines": {}, "codes": {}}
    data = b""
    run = backup_of(given.data_dir, given.config, **given.options)
    try:
        data = b"".join(run.chunks())
        archive = Archive(data)
        said["engines"] = engines(archive.manifest)
        said["codes"] = codes(archive)
    except BackupError as error:
        said["error"] = {"code": error.code, "message": error.message}
    assert run.outcome is not None
    sys.stderr.write(run.reader_stderr)
    print(json.dumps(said | {"outcome": run.outcome.word}), flush=True)
    sys.stdout.buffer.write(data)


def engines(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name -> engine of every database in the archive."""
    return {s["name"]: s["engine"] for s in manifest["sources"] if "engine" in s and s["kind"] == "database"}


if __name__ == "__main__":
    main()
