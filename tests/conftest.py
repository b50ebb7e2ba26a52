"""The few things that most tests start from: databases, a data directory, the running service."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("clients", "harness", "processes", "writers")

from harness import Config, MakeDatabase, Service, StartService, make_data_dir, serving  # noqa: E402  # rewritten by now

__all__ = ["MakeDatabase", "StartService"]

# Where the tests run in the background (nohup, a shell's &), these are ignored, and so they would be by every command.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def make_database() -> MakeDatabase:
    """Writes a database of sensor rows, each with so many random bytes that do not compress; closed again."""

    def make(
        path: Path, journal: str = "wal", rows: int = 1000, page_size: int = 4096, random_bytes: int = 0
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(f"PRAGMA page_size={page_size}")
            db.execute(f"PRAGMA journal_mode={journal}")
            db.execute("PRAGMA synchronous=OFF")
            db.execute(
                "CREATE TABLE reading(id INTEGER PRIMARY KEY, sensor TEXT, taken REAL, value REAL, noise BLOB)"
            )
            db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
                " INSERT INTO reading SELECT i, 'sensor-' || (i % 97), 1.7e9 + i * 0.5, abs(random() % 10000) / 100.0,"
                " CASE WHEN ? THEN randomblob(?) END FROM n",
                (rows, random_bytes, random_bytes),
            )
        return path

    return make


@pytest.fixture
def data_dir(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """A WAL database, a rollback-journal database, a floor plan."""
    return make_data_dir(tmp_path / "data", make_database)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StartService]:
    """Starts the real command; each ends with the test: by SIGTERM, status 0, no process left."""
    with contextlib.ExitStack() as running:
        count = 0

        def start(data_dir: Path, config: Config | None = None, *args: str) -> Service:
            nonlocal count
            count += 1
            return running.enter_context(serving(tmp_path / f"service-{count}", data_dir, config, *args))

        yield start


@pytest.fixture(scope="session")
def big_dir(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """24 MB that do not compress, in one database."""
    folder = tmp_path_factory.mktemp("big")
    make_database(folder / "events.db", rows=24_000, random_bytes=900)
    return folder
