"""What is backed up: one database of sensor rows of any size, many small ones, many files."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

MB = 1_000_000
ROW_BYTES = 112  # as measured: of the pages, with all that SQLite adds
PIECE_ROWS = 200_000

CREATE = "CREATE TABLE reading(id INTEGER PRIMARY KEY, topic TEXT, taken TEXT, content TEXT, uuid BLOB)"
# The more regular the rows, the longer zlib looks for matches at level 6: bare counters and round numbers would
# make the reference three times as slow.
INSERT = """
WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n LIMIT :count)
INSERT INTO reading SELECT
    i,
    'home/room-' || (i % 97) || '/temperature',
    strftime('%Y-%m-%d %H:%M:%S', 1700000000 + i * 0.5, 'unixepoch'),
    '{"value": ' || (20 + random() / 1e18) || ', "unit": "C"}',
    randomblob(16)
FROM n
"""


def make_sensors(path: Path, size_mb: float) -> Path:
    """A WAL database of sensor rows, at least so large, closed and checkpointed; DEFLATE makes 0.36 of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.execute(CREATE)
        first = 1
        while (missing := size_mb * MB - _size_bytes(db)) > 0:
            count = min(PIECE_ROWS, int(missing / ROW_BYTES) + 100)
            db.execute(INSERT, {"first": first, "count": count})
            first += count
    return path


def _size_bytes(db: sqlite3.Connection) -> int:
    (pages,), (page_size,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages * page_size)


def kept_sensors(size_mb: float) -> Path:
    """The same in a data directory that stays for the next run, under the system's temporary directory."""
    folder = Path(tempfile.gettempdir()) / f"mothership-bench-{size_mb:g}-mb"
    if not folder.exists():
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
        make_sensors(unfinished / "sensors.db", size_mb)
        unfinished.rename(folder)
    return folder


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """An application has it open, so that there is a WAL, and its pages are in the kernel's cache."""
    with contextlib.closing(sqlite3.connect(path)) as db, path.open("rb") as file:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        while file.read(MB):
            pass
        yield


def make_many(folder: Path, count: int) -> Path:
    """So many small databases of about two hundred rows."""
    first = make_sensors(folder / "0.db", 0.01)
    for number in range(1, count):
        shutil.copyfile(first, folder / f"{number}.db")
    return folder


def make_files(folder: Path, count: int) -> Path:
    """One small database and so many files of a kilobyte beside it, a thousand to a folder."""
    make_sensors(folder / "sensors.db", 0.01)
    for number in range(count):
        path = folder / "floor_plan" / str(number // 1000) / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"node": {number}}}\n' * 64)
    return folder
