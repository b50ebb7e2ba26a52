"""Databases of another owner: read where that is safe, refused by name where not, and never harmed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from drive import NOBODY, Driven, drive, python_of, read_only, root_only, shared_folder
from harness import MakeDatabase
from processes import open_paths, wait_until
from support import execute, rows
from writers import Writer, check_bank, create_bank

OWNER = 54321
SETTLED_SECONDS = 2.2

RESTLESS = """
import sqlite3, sys
print("ready", flush=True)
count = 0
while not sys.stdin.closed:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
    db.execute("INSERT INTO reading(sensor) VALUES ('restless')")
    db.close()
    count += 1
    print(count, flush=True)
"""


@dataclass
class Shared:
    """Databases of OWNER's, in a folder that everybody may write to."""

    data: Path

    def give_away(self) -> None:
        """All of it to OWNER, as it would be."""
        for path in (self.data, *self.data.iterdir()):
            os.chown(path, OWNER, OWNER)
            path.chmod(0o777 if path.is_dir() else 0o644)

    def settle(self) -> None:
        """Until no change is younger than the guard of the immutable engine asks for."""
        latest = max(path.stat().st_ctime for path in self.data.iterdir())
        wait_until("the files to have been left alone", lambda: time.time() - latest > SETTLED_SECONDS)

    def listing(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.data.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its application may take a sidecar away
                found[path.name] = (path.stat().st_uid, path.stat().st_size)
        return found


@contextlib.contextmanager
def sharing() -> Iterator[Shared]:
    root_only()
    probe = "import sys; from mothership_backup.reader.landlock import deny_create_and_remove as d; sys.exit(not d())"
    path = os.pathsep.join(path for path in sys.path if path)
    if subprocess.run([sys.executable, "-c", probe], env={"PYTHONPATH": path}, check=False).returncode:
        pytest.skip("this kernel has no Landlock")
    with shared_folder() as folder:
        (folder / "data").mkdir()
        yield Shared(folder / "data")


@pytest.fixture
def shared() -> Iterator[Shared]:
    with sharing() as shared:
        yield shared


@pytest.fixture(scope="module")
def idle(make_database: MakeDatabase) -> Iterator[Shared]:
    """One database that nobody has open, for those who leave no trace."""
    with sharing() as shared:
        make_database(shared.data / "a.db", rows=100)
        shared.give_away()
        shared.settle()
        yield shared


def backed_up(driven: Driven, name: str = "a.db", count: int = 100) -> str:
    """Its engine; the copy has so many rows."""
    assert driven.outcome == "complete", driven
    assert driven.archive is not None
    with shared_folder() as out:
        copy = driven.archive.database(name, out)
        assert rows(copy, "SELECT count(*) FROM reading") == [(count,)]
    return driven.engines[name]


def test_an_idle_one_is_read_without_a_trace(idle: Shared) -> None:
    """Opened as usual, it would get sidecars that its owner cannot write to."""
    stood = idle.listing()

    for compression, check in (("deflate", "quick"), ("stored", "full")):
        driven = drive(idle.data, user=NOBODY, strict=True, compression=compression, check=check)

        assert backed_up(driven) in ("immutable", "copied")
        assert idle.listing() == stood
    large = drive(idle.data, {"snapshot": {"staging_memory_bytes": 0}}, user=NOBODY, strict=True)
    assert backed_up(large) in ("immutable", "copied")
    assert idle.listing() == stood


def test_root_without_the_right_to_give_files_away_is_anybody(idle: Shared) -> None:
    """Hardened containers and units drop CAP_CHOWN; what SQLite makes as root would stay root's."""
    stood = idle.listing()

    engine = backed_up(drive(idle.data, without_chown=True, strict=True))

    assert engine in ("immutable", "copied")
    assert idle.listing() == stood


def test_root_gives_its_sidecars_to_the_owner(shared: Shared, make_database: MakeDatabase) -> None:
    """With CAP_CHOWN SQLite does that by itself."""
    make_database(shared.data / "a.db", rows=100)
    shared.give_away()

    assert backed_up(drive(shared.data, strict=True)) in ("live", "copied")
    assert {owner for owner, _ in shared.listing().values()} == {OWNER}


def test_a_live_one_is_read_live_and_its_owner_writes_on(shared: Shared, make_database: MakeDatabase) -> None:
    """Its sidecars are there, and its own."""
    path = make_database(shared.data / "a.db", rows=100)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("INSERT INTO reading(sensor) VALUES ('in the WAL')")
        shared.give_away()
        stood = shared.listing()
        engine = backed_up(drive(shared.data, user=NOBODY, strict=True), count=101)

        assert engine in ("live", "copied")
        assert shared.listing() == stood
        live.execute("DELETE FROM reading")
    assert rows(path, "SELECT count(*) FROM reading") == [(0,)]


def test_one_that_just_changed_is_not_trusted_yet(shared: Shared, make_database: MakeDatabase) -> None:
    """A time stamp as young as the clock's tick could hide a write; the message says to try again."""
    make_database(shared.data / "a.db", rows=100)
    make_database(shared.data / "b.db", journal="delete", rows=100)
    shared.give_away()
    quick = {"busy_timeout_seconds": 0.2, "staging_memory_bytes": 0}
    patient = quick | {"busy_timeout_seconds": 6}

    driven = drive(shared.data, {"snapshot": quick}, user=NOBODY)
    waited = drive(shared.data, {"snapshot": patient}, user=NOBODY, strict=True)

    assert driven.codes == {"a.db": "busy"}
    assert driven.engines["b.db"] in ("staged", "copied")
    assert backed_up(waited) in ("immutable", "copied")
    assert shared.listing().keys() == {"a.db", "b.db"}


def leave_crashed(folder: Path, *suffixes: str) -> None:
    """A database as a killed writer left it, with these of its sidecars."""
    path = folder / "bank.db"
    create_bank(path, "wal")
    writer = Writer("bank", path, rate=1000)
    wait_until("100 commits", lambda: rows(path, "SELECT commits FROM progress")[0][0] > 100)
    with contextlib.closing(sqlite3.connect(path)) as other:  # so that nobody is the last to close
        other.execute("SELECT count(*) FROM account").fetchone()
        writer.kill()
        for suffix in ("", *suffixes):
            shutil.copy(f"{path}{suffix}", f"{folder}/crashed.db{suffix}")
    path.unlink()


def test_one_whose_writer_was_killed_needs_its_owner(shared: Shared) -> None:
    """Its WAL holds commits that only a writer may recover: a named failure, its bytes as they were."""
    leave_crashed(shared.data, "-wal")
    shared.give_away()
    stood = {name: (shared.data / name).read_bytes() for name in shared.listing()}

    error = drive(shared.data, user=NOBODY).error

    assert error is not None
    assert error["code"] == "none_readable"
    assert "owner" in error["message"]
    assert {name: (shared.data / name).read_bytes() for name in shared.listing()} == stood


def test_one_whose_writer_was_killed_is_whole_with_its_index(shared: Shared, tmp_path: Path) -> None:
    """With its -shm there too, SQLite reads the WAL through an index in its own memory."""
    leave_crashed(shared.data, "-wal", "-shm")
    shared.give_away()
    stood = {name: (shared.data / name).read_bytes() for name in shared.listing()}

    driven = drive(shared.data, user=NOBODY, strict=True)

    assert driven.archive is not None
    assert check_bank(driven.archive.database("crashed.db", tmp_path / "out")) >= 100
    assert {name: (shared.data / name).read_bytes() for name in shared.listing()} == stood


def test_an_application_that_opens_and_closes_all_the_time_is_never_locked_out(
    shared: Shared, make_database: MakeDatabase
) -> None:
    """Between the look and the open its sidecars may go; then ours must not come."""
    path = make_database(shared.data / "a.db", rows=100)
    shared.give_away()
    python, environ = python_of(OWNER)
    application = subprocess.Popen(
        [python, "-c", RESTLESS, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=OWNER,
        group=OWNER,
        extra_groups=[],
        env=os.environ | environ,
    )
    assert application.stdout is not None
    assert application.stdout.readline() == b"ready\n"
    try:
        outcomes = [drive(shared.data, user=NOBODY, check="none") for _ in range(4)]
        owners = {owner for owner, _ in shared.listing().values()}
        assert application.poll() is None, "the application was refused"
    finally:
        application.kill()
        output, errors = application.communicate()

    assert errors == b""
    assert int(output.split()[-2]) > 20
    assert owners == {OWNER}
    assert {driven.outcome for driven in outcomes} <= {"complete", "failed"}


def test_a_read_only_mount_is_read_without_locks(idle: Shared) -> None:
    """Nobody can make a sidecar there, root neither."""
    stood = idle.listing()

    assert backed_up(drive(idle.data, command=read_only(idle.data), strict=True)) in ("immutable", "copied")
    assert idle.listing() == stood


def test_a_wal_that_was_left_on_a_read_only_mount(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Without it the database would be old, and no check could see that: a named failure."""
    root_only()
    path = make_database(tmp_path / "a.db", rows=100)
    data = tmp_path / "data"
    data.mkdir()
    make_database(data / "b.db", journal="delete", rows=5)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("DELETE FROM reading WHERE id > 50")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{data}/crashed.db{suffix}")

    driven = drive(data, command=read_only(data))

    assert driven.codes == {"crashed.db": "needs_recovery"}
    assert driven.engines.keys() == {"b.db"}
    assert {path.name for path in data.iterdir()} == {"b.db", "crashed.db", "crashed.db-wal"}


def readers_of(path: Path) -> list[int]:
    """Processes that have it open, as far as this user can see."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if str(path) in open_paths(pid)]


@pytest.mark.long
@pytest.mark.live_engine
def test_one_that_is_written_to_while_it_is_read_without_locks(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Too large to stage in memory, it is read as it lies; a change then ends the backup and names it."""
    root_only()
    path = make_database(tmp_path / "data" / "a.db", rows=5_000, random_bytes=500)
    Shared(path.parent).settle()
    config = {"limits": {"read_bytes_per_second": 2_000_000}, "snapshot": {"staging_memory_bytes": 0}}
    data = path.parent
    with ThreadPoolExecutor() as pool:
        running = pool.submit(lambda: drive(data, config, command=read_only(data), check="none"))
        wait_until("the reader to have it open", lambda: readers_of(path))
        first_look = time.monotonic()  # which only tells its kind
        wait_until("its pages to be read", lambda: time.monotonic() - first_look > 0.4 and readers_of(path))
        execute(path, "UPDATE reading SET value = 1")
        driven = running.result()

    assert driven.error is not None
    assert driven.error["code"] == "source_failed"
    assert "a.db" in driven.error["message"]
    assert "written to" in driven.error["message"]
