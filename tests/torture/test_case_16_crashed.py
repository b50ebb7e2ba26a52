"""Case 16: what a killed application leaves: a WAL with committed rows, a hot journal with half a transaction."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from harness import MakeDatabase, StartService
from support import execute, rows
from torture.harness import fetch, prove, under_fire
from writers import Writer, check_bank, create_bank

HALF_A_TRANSACTION = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=5")  # spills, so that the journal is synced and hot
db.execute("BEGIN")
db.execute("UPDATE reading SET value = 0")
print("ready", flush=True)
sys.stdin.read()
"""


def bytes_of(*paths: Path) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def kill_in_mid_transaction(path: Path) -> None:
    command = [sys.executable, "-c", HALF_A_TRANSACTION, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()


@pytest.mark.parametrize("compression", [pytest.param("deflate", marks=pytest.mark.long), "stored"])
def test_what_a_killed_writer_committed_is_there(
    compression: str, tmp_path: Path, service: StartService
) -> None:
    """All of it, by the count of a recovery elsewhere; database and WAL keep their bytes."""
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, "wal")
    running = service(bank.parent)
    with under_fire(running, bank.parent):
        writer = Writer("bank", bank, rate=1000)
        with contextlib.closing(sqlite3.connect(bank, isolation_level=None)) as other:
            while other.execute("SELECT commits FROM progress").fetchone()[0] < 300:
                pass
            writer.kill()  # this connection keeps the WAL from being checkpointed, and is closed after the copies
            names = [bank, bank.with_name("bank.db-wal")]
            kept = [shutil.copy(path, tmp_path / path.name) for path in names]
        for source, target in zip(kept, names, strict=True):
            shutil.copy(source, target)
        stood = bytes_of(*names)

        archive = fetch(running, tmp_path / "a.zip", f"strict=true&compression={compression}")

        assert bytes_of(*names) == stood
        counts: list[int] = []
        prove(archive, tmp_path / "out", {"bank.db": lambda path: counts.append(check_bank(path))})
        assert counts == [check_bank(tmp_path / "bank.db")]
        assert counts[0] >= 300


def test_a_hot_journal_is_named_and_its_owner_can_still_roll_back(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Not strict: left out by name, with the remedy; strict: an error status. Nobody's bytes change.

    To open it as SQLite does by itself would roll it back, and so write to the application's database.
    """
    data = tmp_path / "data"
    crashed = make_database(data / "crashed.db", journal="delete", rows=20_000)
    make_database(data / "good.db")
    before = rows(crashed, "SELECT count(*), total(value) FROM reading")
    running = service(data)
    with under_fire(running, data, next_query=None):
        kill_in_mid_transaction(crashed)
        sources = (crashed, data / "crashed.db-journal")
        stood = bytes_of(*sources)

        manifest = prove(fetch(running, tmp_path / "a.zip"), tmp_path / "out", strict=False)
        refused = running.request("/api/backup?strict=true")

        assert bytes_of(*sources) == stood
    error = next(s for s in manifest["sources"] if s["name"] == "crashed.db")["error"]
    assert "journal" in error["message"]
    assert not (tmp_path / "out" / "crashed.db").exists()
    assert (tmp_path / "out" / "good.db").exists()
    assert refused.status == 500
    assert "crashed.db" in refused.json()["detail"]

    execute(crashed, "SELECT count(*) FROM reading")  # its owner rolls it back
    assert not (data / "crashed.db-journal").exists()
    prove(fetch(running, tmp_path / "b.zip", "strict=true"), tmp_path / "healed")
    assert rows(tmp_path / "healed" / "crashed.db", "SELECT count(*), total(value) FROM reading") == before
