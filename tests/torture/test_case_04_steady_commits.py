"""Case 4: a commit each 5 ms on 135 MB. A copy that starts again at each commit never ends; ours is done in seconds."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from harness import MakeDatabase, StartService
from torture.harness import fetch, load, prove, under_fire
from writers import check_bank, create_bank

ROWS = 135_000  # of about a kilobyte
CANARY_PAGES = 100


class TooLateError(Exception):
    """The canary's time is over."""


def stepped_copy(source: Path, target: Path, bound_seconds: float) -> float:
    """Seconds of an unpinned copy in steps, as many a tool makes it; TooLateError after the bound."""
    began = time.monotonic()

    def progress(*_: int) -> None:
        if time.monotonic() - began > bound_seconds:
            raise TooLateError

    with (
        contextlib.closing(sqlite3.connect(source)) as db,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        copy.execute("PRAGMA synchronous=OFF")
        db.backup(copy, pages=CANARY_PAGES, progress=progress)
    return time.monotonic() - began


@pytest.mark.long
@pytest.mark.live_engine
def test_steady_commits_do_not_hold_a_backup_up(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """The canary gets three times what it needs on a quiet database, and at least as long as the backup took."""
    bank = make_database(tmp_path / "data" / "bank.db", rows=ROWS, random_bytes=950)
    create_bank(bank, "wal")
    assert bank.stat().st_size > 135_000_000
    running = service(bank.parent)
    quiet_seconds = stepped_copy(bank, tmp_path / "quiet.db", 60)

    with under_fire(running, bank.parent), load("bank", bank, rate=200, burst=1, least=400) as writer:
        began = time.monotonic()
        archive = fetch(running, tmp_path / "a.zip", "strict=true")
        seconds = time.monotonic() - began
        with pytest.raises(TooLateError):
            stepped_copy(bank, tmp_path / "canary.db", max(3 * quiet_seconds, seconds, 3))

    assert seconds < 20
    assert writer.tally.busy == 0
    assert writer.tally.longest_seconds < 1
    prove(archive, tmp_path / "out", {"bank.db": check_bank})
