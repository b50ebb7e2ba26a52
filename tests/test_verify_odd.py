"""What real data directories hold, and how much of it: backed up, it verifies (HARD_CASES 19, 20 and 22)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archives import judged
from harness import Archive, MakeDatabase, tool
from mothership_backup.verify.verdict import Report
from processes import Samples, peak_memory_bytes
from support import archive_of, execute
from test_check import flip_a_page
from test_cli import command, environment
from test_odd_sources import ODD
from torture.test_case_22_sizes import make_sparse

MIB = 1024**2
GIB = 1024**3
COMPRESSIONS = pytest.mark.parametrize("compression", ["deflate", "stored"])


def verified(data: Path, compression: str = "deflate") -> tuple[Archive, Report]:
    """The archive of a data directory, and what verify says of it."""
    archive = archive_of(data, compression=compression)
    return archive, judged(archive.save(data.parent / f"{compression}.zip"), "full")


def verdicts(report: Report) -> dict[str, str]:
    return {
        finding.name: "damaged" if finding.is_damaged else finding.check.word if finding.check else ""
        for finding in report.findings
    }


@COMPRESSIONS
def test_odd_names(compression: str, tmp_path: Path, make_database: MakeDatabase) -> None:
    """Marks, spaces, bytes that are no UTF-8, control characters, twins; 255 bytes; in a folder too."""
    seed = make_database(tmp_path / "seed.db", journal="delete", rows=5)
    (tmp_path / "data" / "floor_plan").mkdir(parents=True)
    for name in (*ODD, b"a" * 252 + b".db", "é:x.db".encode()):
        (tmp_path / "data" / os.fsdecode(name)).write_bytes(seed.read_bytes())
        (tmp_path / "data" / "floor_plan" / os.fsdecode(name)).write_bytes(name)

    archive, report = verified(tmp_path / "data", compression)

    assert report.word == "whole"
    assert [finding.name for finding in report.findings] == archive.names[:-3]
    assert list(verdicts(report).values()).count("ok") == len(ODD) + 2
    assert len(report.findings) == 2 * len(ODD) + 4


@COMPRESSIONS
def test_odd_kinds(compression: str, tmp_path: Path, make_database: MakeDatabase) -> None:
    """Damaged is what SQLite finds damaged; what is no database is a file and whole."""
    data = tmp_path / "data"
    make_database(data / "good.db")
    flip_a_page(make_database(data / "flipped.db", rows=5000))
    truncated = make_database(data / "truncated.db", rows=5000)
    os.truncate(truncated, truncated.stat().st_size // 2)
    os.mkfifo(data / "fifo.db")
    (data / "folder.db").mkdir()
    (data / "empty.db").touch()
    (data / "short.db").write_bytes(b"SQLite format 3" + b"x" * 21)
    (data / "database.db").write_text(json.dumps({"id": 1}) + "\n")
    (data / "cipher.db").write_bytes(os.urandom(4096 * 8))
    (data / "livecipher.db").write_bytes(os.urandom(4096 * 8))
    (data / "livecipher.db-wal").write_bytes(os.urandom(4096))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(data / "socket.db"))

        archive, report = verified(data, compression)

    found = verdicts(report)
    assert report.word == "damaged"
    assert found.pop("flipped.db") == "damaged"
    assert ("truncated.db" in archive.names) == (found.pop("truncated.db", None) == "damaged")
    assert found == {"good.db": "ok", "cipher.db": "", "database.db": "", "empty.db": "", "short.db": ""}
    assert report.claims is not None
    assert {source.name for source in report.claims.missing} == {
        "flipped.db",
        "truncated.db",
        "livecipher.db",
    }


def test_links_are_missing(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Never followed, so the archive is whole and incomplete."""
    twin = make_database(tmp_path / "data" / "twin.db")
    (tmp_path / "data" / "twin-2.db").hardlink_to(twin)
    (tmp_path / "data" / "loop.db").symlink_to("loop.db")
    make_database(tmp_path / "data" / "good.db")

    _, report = verified(tmp_path / "data")

    assert (report.word, verdicts(report)) == ("incomplete", {"good.db": "ok"})


@pytest.mark.parametrize("page_size", [512, 1024, 65536])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_odd_databases(journal: str, page_size: int, tmp_path: Path, make_database: MakeDatabase) -> None:
    """Any page size; without rows, without tables, with free pages, with every auto_vacuum, encoding and search."""
    data = tmp_path / "data"
    make_database(data / "rows.db", journal=journal, page_size=page_size)
    make_database(data / "none.db", journal=journal, page_size=page_size, rows=0)
    for number in (1, 2):
        path = data / f"vacuum-{number}.db"
        vacuum, mode = f"PRAGMA auto_vacuum={number}", f"PRAGMA journal_mode={journal}"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in (f"PRAGMA page_size={page_size}", vacuum, "PRAGMA encoding='UTF-16le'", mode):
                db.execute(statement)
            db.execute("CREATE TABLE t(a, b)")
            db.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
            db.execute("INSERT INTO t SELECT value, zeroblob(2000) FROM json_each('[1,2,3,4,5,6,7,8]')")
            db.execute("INSERT INTO words SELECT 'word ' || a FROM t")
            db.execute("DELETE FROM t WHERE a > 2")
    execute(data / "rows.db", "CREATE TABLE gone AS SELECT * FROM reading", "DROP TABLE gone")

    _, report = verified(data)

    assert report.word == "whole"
    assert set(verdicts(report).values()) == {"ok"}


# Much of it.


@pytest.mark.long
def test_as_many_entries_as_16_bits_can_count(tmp_path: Path, make_database: MakeDatabase) -> None:
    """65,535 of them, the number that means more, and one more."""
    plan = tmp_path / "data" / "floor_plan"
    plan.mkdir(parents=True)
    make_database(tmp_path / "data" / "a.db", rows=100)
    for number in range(65_535 - 4):
        (plan / f"{number}.svg").write_bytes(b"%d" % number)
    for count in (65_535, 65_536):
        archive, report = verified(tmp_path / "data", "deflate")

        assert (len(archive.names), report.word) == (count, "whole")
        assert len(report.findings) == count - 3
        (plan / "one more").touch()


@pytest.mark.long
@pytest.mark.live_engine
def test_an_entry_over_4_gib(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Its length, CRC-32 and SHA-256 are proved, and so is what comes behind it."""
    data = tmp_path / "data"
    data.mkdir()
    seed = make_database(tmp_path / "seed.db", rows=100, page_size=65536)
    make_sparse(data / "a.db", seed, 4 * GIB + 64 * MIB, 65536)
    make_database(data / "b.db", rows=100)
    path = tmp_path / "a.zip"
    assert command("backup", path, "--data-dir", data, "--check", "none").returncode == 0

    good = judged(path, "none")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)  # in the zeros of the large one
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))

    assert good.word == "whole"
    assert good.findings[0].size_bytes == 4 * GIB + 64 * MIB
    assert [finding.name for finding in judged(path, "none").damaged] == ["a.db"]


def peak_of(*arguments: str | Path) -> int:
    """The most memory that a command took; it must end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mothership_backup", *map(str, arguments)],
        env=environment({}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with Samples(lambda: [peak_memory_bytes(process.pid)]) as samples:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return int(max(samples.seen))


@pytest.mark.long
def test_memory_does_not_follow_the_archive(tmp_path: Path, make_database: MakeDatabase) -> None:
    """300 MB that do not compress."""
    make_database(tmp_path / "data" / "a.db", rows=300_000, random_bytes=900)
    path = tmp_path / "a.zip"
    assert command("backup", path, "--data-dir", tmp_path / "data", "--check", "none").returncode == 0
    assert path.stat().st_size > 250 * MIB

    peaks = {check: peak_of("verify", path, "--check", check) for check in ("none", "quick", "full")}

    print({check: f"{peak / MIB:.0f} MiB" for check, peak in peaks.items()})
    assert max(peaks.values()) < 128 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """The archive of a database of sensor rows, 250 MB of them: at 1 GB the ratios were 0.43 and 1.08."""
    folder = tmp_path_factory.mktemp("large")
    database = make_database(folder / "data" / "a.db", rows=7_000_000)
    print(f"database: {database.stat().st_size / 1e9:.2f} GB")
    path = folder / "a.zip"
    assert command("backup", path, "--data-dir", folder / "data", "--check", "none").returncode == 0
    print(f"archive: {path.stat().st_size / 1e9:.2f} GB")
    database.unlink()
    return path


def seconds_of(*words: str | Path) -> float:
    began = time.monotonic()
    done = subprocess.run(
        [str(word) for word in words], env=environment({}), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


@pytest.mark.long
def test_it_takes_no_longer_than_twice_what_unzip_takes(large: Path) -> None:
    """In turn, as a ratio within one run: unzip looks at CRC-32 only."""
    verify = (sys.executable, "-m", "mothership_backup", "verify", large)
    commands: dict[str, Callable[[], float]] = {
        "unzip": lambda: seconds_of(tool("unzip"), "-tqq", large),
        "none": lambda: seconds_of(*verify, "--check", "none"),
        "quick": lambda: seconds_of(*verify, "--check", "quick"),
    }
    taken = {name: statistics.median(runs) for name, runs in in_turn(commands, 3).items()}

    print({name: f"{seconds:.2f} s, {seconds / taken['unzip']:.2f} x" for name, seconds in taken.items()})
    assert taken["none"] <= 2 * taken["unzip"]
    assert taken["quick"] <= 2 * taken["unzip"]


def in_turn(commands: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    runs: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, measure in commands.items():
            runs[name].append(measure())
    return runs
