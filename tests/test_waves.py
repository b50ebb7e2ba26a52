"""More databases than can be pinned at once are taken in waves: all of them, in bounded memory, without a silence."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from drive import drive
from harness import Archive, MakeDatabase, tool
from mothership_backup.backup import Options, make_plan
from mothership_backup.errors import TooManyDatabasesError
from processes import peak_memory_bytes
from support import archive_of, backup_of, codes, error_of, execute, reading, request_for, rows, settings_for
from test_pace import slow_to_check

MIB = 1024 * 1024


def copies(folder: Path, seed: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        shutil.copy(seed, folder / f"{number:04d}.db")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """450 databases, of both journal modes."""
    folder = tmp_path_factory.mktemp("many")
    copies(folder / "data", make_database(folder / "wal.db", rows=20), 400)
    rollback = make_database(folder / "rollback.db", journal="delete", rows=20)
    for number in range(50):
        shutil.copy(rollback, folder / "data" / f"{number * 9:04d}-r.db")
    return folder / "data"


def test_deflate_takes_all_of_them(many: Path, tmp_path: Path) -> None:
    """In their order, each whole and checked; the manifest does not call it one instant."""
    archive = archive_of(many, strict=True)

    assert len(archive.names) == 450 + 3
    assert archive.names[:-3] == sorted(archive.names[:-3])
    assert archive.zip.testzip() is None
    assert {source["check"]["verdict"] for source in archive.manifest["sources"]} == {"ok"}
    assert archive.manifest["instant"]["waves"] == 3
    assert archive.manifest["instant"]["exact"] is False
    for name in ("0000.db", "0215.db", "0399.db"):
        assert rows(archive.database(name, tmp_path / "out"), "SELECT count(*) FROM reading") == [(20,)]


def test_stored_says_that_they_are_too_many(many: Path) -> None:
    """Its length cannot be promised; the remedy is in the message, and it works."""
    error = error_of(many, compression="stored")

    assert isinstance(error, TooManyDatabasesError)
    assert "database=GLOB" in error.message
    fewer = archive_of(many, compression="stored", databases=("00*",), strict=True)
    assert {name[:2] for name in fewer.names if name.endswith(".db")} == {"00"}


def test_a_plan_covers_all_and_counts_what_it_knows(many: Path) -> None:
    """The sizes of later waves are not known before their time."""
    settings = settings_for(many)
    plan = make_plan(settings, Options.of(settings))

    assert plan.waves == 3
    assert plan.databases == 450
    first_wave = [source for source in plan.sources if source.wave == 1]
    assert len(first_wave) == 200
    assert plan.total_bytes == sum(source.size_bytes for source in first_wave)


@pytest.mark.live_engine
def test_memory_is_bounded_by_a_wave(many: Path) -> None:
    """The reader's peak for 450 of them is that for 200."""
    peaks = []
    for only in (("000*", "00[1-9]*", "01*"), ()):
        with reading(request_for(many, only=only)) as (reader, incoming):
            # Of a process that has ended there is no peak to read any more.
            peaks.append(max(peak_memory_bytes(reader._process.pid) for _ in incoming))

    assert 0 < peaks[1] < peaks[0] + 24 * MIB
    assert max(peaks) < 128 * MIB


def test_the_limit_of_descriptors_makes_waves_smaller(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A service that may open few files takes fewer at a time, and still all."""
    copies(tmp_path / "data", make_database(tmp_path / "seed.db", rows=5), 30)
    limited = [tool("prlimit"), "--nofile=450:450"]

    driven = drive(tmp_path / "data", command=limited, strict=True)
    stored = drive(tmp_path / "data", command=limited, compression="stored")

    assert driven.archive is not None
    assert len(driven.engines) == 30
    assert driven.archive.manifest["instant"]["waves"] == 3
    assert stored.error is not None
    assert stored.error["code"] == "too_many_databases"


def test_what_goes_before_its_wave_is_told(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Removed or replaced between the plan and the wave: left out by name, and nothing else is."""
    data = copies(tmp_path / "data", make_database(tmp_path / "seed.db", rows=5), 200)
    large = make_database(tmp_path / "data" / "0100-large.db", rows=8_000, random_bytes=500)
    names = ["9-removed.db", "9-replaced.db", "9-rollback-removed.db"]
    for name in names[:2]:
        shutil.copy(tmp_path / "seed.db", data / name)
    make_database(data / names[2], journal="delete", rows=5)
    run = backup_of(data)
    chunks = run.chunks()
    head = [next(chunks)]
    (data / names[0]).unlink()
    (data / names[2]).unlink()
    shutil.copy(tmp_path / "seed.db", tmp_path / "new.db")
    (tmp_path / "new.db").replace(data / names[1])

    archive = Archive(b"".join([*head, *chunks]))

    assert codes(archive) == {names[0]: "vanished", names[1]: "replaced", names[2]: "vanished"}
    assert archive.source(large.name)["status"] == "ok"
    assert run.outcome is not None
    assert run.outcome.failed == 3


@pytest.mark.live_engine
def test_a_database_that_changes_its_journal_mode_before_its_wave(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """It was a WAL database at the plan and is none now: staged, and no writer is kept out."""
    data = copies(tmp_path / "data", make_database(tmp_path / "seed.db", rows=5), 200)
    make_database(data / "0100-large.db", rows=8_000, random_bytes=500)
    shutil.copy(tmp_path / "seed.db", data / "9-switched.db")
    run = backup_of(data, strict=True)
    chunks = run.chunks()
    head = [next(chunks)]
    execute(data / "9-switched.db", "PRAGMA journal_mode=delete")

    archive = Archive(b"".join([*head, *chunks]))

    assert archive.source("9-switched.db")["status"] == "ok"
    assert archive.source("9-switched.db")["journal_mode"] == "rollback"


def test_a_slow_check_between_two_waves_is_no_silence(tmp_path: Path, make_database: MakeDatabase) -> None:
    """The next wave waits for the checks of the one before; a client must not give up meanwhile."""
    data = copies(tmp_path / "data", make_database(tmp_path / "seed.db", rows=5), 201)
    (data / "0198.db").unlink()
    slow_to_check(data / "0198.db", 3)
    longest = 0.0
    last = time.monotonic()
    sent = bytearray()
    for number, chunk in enumerate(backup_of(data).chunks()):
        if len(chunk):
            now = time.monotonic()
            longest = max(longest, now - last) if number > 1 else 0.0
            last = now
            sent += chunk

    assert longest < 2
    assert Archive(bytes(sent)).manifest["complete"] is True
