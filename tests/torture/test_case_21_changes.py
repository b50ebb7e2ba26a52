"""Case 21: whatever happens to a database during its snapshot: the snapshot of its instant, or a failure that shows.

What happens to plain files is in tests/test_copy.py, what goes before its wave in tests/test_waves.py.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients import assert_looks_failed, fetch_and
from harness import Config, MakeDatabase, StartService
from support import rows
from torture.harness import curl_for, fetch, prove, under_fire

SLOW: Config = {"limits": {"read_bytes_per_second": 8_000_000}}
CONTENT = "SELECT count(*), total(id), total(value), total(length(noise)) FROM reading"


def statements(*texts: str) -> Callable[[Path], None]:
    """As an application would: it gives up where it is kept out."""

    def change(path: Path) -> None:
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as db,
        ):
            for text in texts:
                db.execute(text)

    return change


def delete(path: Path) -> None:
    for end in ("-wal", "-shm", "-journal", ""):
        Path(f"{path}{end}").unlink(missing_ok=True)


def replace(path: Path) -> None:
    other = path.with_name("other.tmp")
    shutil.copy(path.parent.parent / "other.db", other)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "vacuum": statements("DELETE FROM reading WHERE id % 3", "VACUUM"),
    "drop": statements("DROP TABLE reading", "VACUUM"),
    "page-size": statements("PRAGMA journal_mode=delete", "PRAGMA page_size=8192", "VACUUM"),
    "to-rollback": statements("PRAGMA journal_mode=delete", "DELETE FROM reading WHERE id % 3"),
    "to-wal": statements("PRAGMA journal_mode=wal", "DELETE FROM reading WHERE id % 3"),
    "delete": delete,
    "replace": replace,
}
MUST_BE_WHOLE = ("vacuum", "drop", "page-size", "to-rollback", "to-wal")


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_change_in_mid_stream(
    journal: str, change: str, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """What curl takes for whole holds the rows of one moment: for a WAL database that of the start."""
    data = tmp_path / "data"
    make_database(data / "a-first.db", rows=3000, random_bytes=900)
    victim = make_database(data / "victim.db", journal=journal, rows=4500, random_bytes=900)
    make_database(tmp_path / "other.db", journal=journal, rows=5, random_bytes=900)
    running, target = service(data, SLOW), tmp_path / "a.zip"
    before: list[Any] = rows(victim, CONTENT)

    next_query = "strict=true&database=a-first.db"
    with under_fire(running, data, keeps_listing=change != "delete", next_query=next_query):
        status = fetch_and(lambda: CHANGES[change](victim), curl_for(running, target, "strict=true"), target)

    if journal == "wal" and change in MUST_BE_WHOLE:
        assert status == 0, running.log()
    if status:
        assert_looks_failed(target.read_bytes(), target)
        return
    prove(target, tmp_path / "out")
    copy = tmp_path / "out" / "victim.db"
    if journal == "wal":
        assert rows(copy, CONTENT) == before
        return
    # Its own moment may lie before or after the change.
    if rows(copy, "SELECT count(*) FROM sqlite_schema WHERE name = 'reading'") != [(0,)]:
        allowed = [before] + ([rows(victim, CONTENT)] if victim.exists() and change != "drop" else [])
        assert rows(copy, CONTENT) in allowed
    else:
        assert change == "drop"


@pytest.mark.long
def test_databases_that_come_and_go_during_the_walk(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Those that stay are always there; what went is left out by name or was never seen; nothing is refused."""
    data = tmp_path / "data"
    make_database(data / "stays.db", rows=2000, random_bytes=500)
    seed = make_database(tmp_path / "seed.db", rows=50)
    running = service(data)
    done, rounds = threading.Event(), 0

    def come_and_go() -> None:
        nonlocal rounds
        while not done.is_set():
            for number in range(30):
                shutil.copy(seed, data / f"brief-{number:02d}.db")
            for number in range(30):
                delete(data / f"brief-{number:02d}.db")
            rounds += 1

    with under_fire(running, data):
        thread = threading.Thread(target=come_and_go)
        thread.start()
        try:
            for number in range(12):
                out = tmp_path / f"out-{number}"
                manifest = prove(fetch(running, tmp_path / "a.zip"), out, strict=False)
                assert (out / "stays.db").exists()
                failed = {
                    s["name"]: s["error"]["code"] for s in manifest["sources"] if s["status"] == "failed"
                }
                assert "stays.db" not in failed
                for name, code in failed.items():
                    assert not (out / name).exists(), code
        finally:
            done.set()
            thread.join()

    assert rounds >= 12
