"""All WAL databases are pinned at one instant, and the manifest says so only when it is proved."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Archive, MakeDatabase
from mothership_backup import frames
from mothership_backup.errors import NoneReadableError
from support import archive_of, backup_of, codes, error_of, execute, plan_of, reading, request_for, rows
from writers import Writer, create_step, read_marker, writing

SILENT: dict[str, Any] = {"check": "none", "files": False}

# What the reader does between two looks at `data_version`, with a commit of another process in the gap.
PINNED = """
import json, os, sqlite3, subprocess, sys
from mothership_backup.reader import instant, sqlite
from mothership_backup.reader.discover import Discovery
from mothership_backup.reader.request import Request
from mothership_backup.reader.watch import Watch

folder, commits = sys.argv[1], int(sys.argv[2])
request = Request("plan", data_dir=folder)
watch = Watch(os.getppid())
watch.begin(request)
sources = Discovery(folder, databases=["*.db"], include=[], exclude=[], only=[]).sources
command = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript('UPDATE marker SET n = n + 1')"

class Disturbed(instant.Pinner):
    left = commits
    tries = 0

    def _begin_all(self, pins):
        self.tries += 1
        pins[0].begin()
        if self.left:
            self.left -= 1
            subprocess.run([sys.executable, "-c", command, pins[-1].source.full_path], check=True)
        for pin in pins[1:]:
            pin.begin()

instant._MAX_TRY_SECONDS = 60
pinner = Disturbed(request, sqlite.choose_library(), watch)
pins, found = pinner.pin_all(sources)
markers = [pin.connection.execute("SELECT n FROM marker").fetchone()[0] for pin in pins.values()]
print(json.dumps({"exact": found.is_exact, "tries": pinner.tries, "markers": markers}))
"""

TWIN = (
    PINNED.partition("instant._MAX")[0].replace('Request("plan",', 'Request("backup",')
    + """
pinner = Disturbed(request, sqlite.choose_library(), watch)
(pin,) = pinner.pin_all(sources)[0].values()
pinned = [pin.connection] + ([pin.twin] if pin.twin else [])
subprocess.run([sys.executable, "-c", command, pin.source.full_path], check=True)
print(json.dumps([connection.execute("SELECT n FROM marker").fetchone()[0] for connection in pinned]))
"""
)


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """Two databases of a hundred tables, a marker in each."""
    paths = [tmp_path / "data" / "a.db", tmp_path / "data" / "b.db"]
    paths[0].parent.mkdir()
    for path in paths:
        create_step(path, "wal")
    return paths


def markers_of(archive: Archive, folder: Path) -> tuple[int, int]:
    return read_marker(archive.database("a.db", folder)), read_marker(archive.database("b.db", folder))


def test_two_databases_written_in_step_are_never_steps_apart(steps: list[Path], tmp_path: Path) -> None:
    """Where the manifest says `exact`; and it says so most of the time."""
    exact = 0
    with writing("pair", *steps, rate=2000) as writer:
        for _ in range(15):
            archive = archive_of(steps[0].parent, **SILENT)
            if archive.manifest["instant"]["exact"]:
                exact += 1
                first, second = markers_of(archive, tmp_path / "out")
                assert 0 <= first - second <= 1
        tally = writer.stop()

    assert exact >= 5
    assert tally.commits > 100


def run_pinner(script: str, folder: Path, commits: int) -> Any:
    """What the script prints; in a process of its own, as a reader is one."""
    command = [sys.executable, "-c", script, str(folder), str(commits)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One database that is worth a twin."""
    path = tmp_path / "data" / "large.db"
    path.parent.mkdir()
    create_step(path, "wal")
    execute(
        path, "CREATE TABLE filler AS SELECT zeroblob(17000000) AS bytes", "PRAGMA wal_checkpoint(TRUNCATE)"
    )
    return path


@pytest.mark.live_engine
@pytest.mark.parametrize(("commits", "markers"), [(0, [0, 0]), (1, [0])])
def test_a_twin_sees_what_its_pin_sees(commits: int, markers: list[int], large: Path) -> None:
    """Also once others have committed. After a commit between the two there is none."""
    assert run_pinner(TWIN, large.parent, commits) == markers


@pytest.mark.live_engine
def test_a_large_database_is_checked_while_it_is_read(large: Path) -> None:
    """Its verdict comes before its last page, and the pin ends with the pages."""
    with reading(request_for(large.parent, read_bytes_per_second=8_000_000)) as (_, incoming):
        types = [frame.type for frame in incoming]

    assert types.index(frames.CHECK) < types.index(frames.END_OF_ENTRY)
    assert types[-1] == frames.END


@pytest.mark.live_engine
def test_damage_that_is_found_meanwhile(large: Path) -> None:
    """A strict backup ends with it; any other goes on and tells."""
    with large.open("r+b") as file:
        file.seek(-5 * 4096, os.SEEK_END)
        file.write(b"\xff" * 4096)  # in the chain of the filler's pages

    archive = archive_of(large.parent)
    error = error_of(large.parent, strict=True)

    assert archive.manifest["sources"][0]["check"]["verdict"] == "damaged"
    assert error.code == "check"


@pytest.mark.parametrize(("commits", "is_exact"), [(0, True), (1, True), (3, True), (20, False)])
def test_a_commit_between_two_pins_is_seen(commits: int, is_exact: bool, steps: list[Path]) -> None:
    """They are set again; after twenty tries the backup goes on, and does not claim what it has not."""
    found = run_pinner(PINNED, steps[0].parent, commits)

    assert found == {"exact": is_exact, "tries": min(commits + 1, 20), "markers": [0, commits]}


def test_one_database_is_one_instant(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Nothing has to be proved; none at all is one too."""
    make_database(tmp_path / "data" / "a.db", rows=2)

    instant = archive_of(tmp_path / "data").manifest["instant"]

    assert instant["exact"] is True
    assert instant["first_pinned_at"] <= instant["last_pinned_at"]


@contextlib.contextmanager
def exclusively_locked(*paths: Path) -> Iterator[None]:
    """By other processes, for as long as it takes."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(writing("exclusive", path))
        yield


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_busy_databases_are_waited_for_together(
    journal: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Eight that are locked for ever cost one busy timeout, not eight; the others are there."""
    data = tmp_path / "data"
    locked = [make_database(data / f"locked-{number}.db", journal=journal, rows=2) for number in range(8)]
    make_database(data / "good.db", rows=2)
    with contextlib.ExitStack() as stack:
        if journal == "delete":
            stack.enter_context(exclusively_locked(*locked))
        else:
            for path in locked:  # a WAL database lets readers in, unless its application is alone on purpose
                live = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
                live.execute("PRAGMA locking_mode=EXCLUSIVE")
                live.execute("DELETE FROM reading")
        began = time.monotonic()
        archive = archive_of(data, {"snapshot": {"busy_timeout_seconds": 1}}, check="none")
        seconds = time.monotonic() - began

    assert 1 <= seconds < 2.5
    assert codes(archive) == dict.fromkeys((path.name for path in locked), "busy")
    assert "busy_timeout_seconds" in archive.source("locked-0.db")["error"]["message"]
    assert archive.source("good.db")["status"] == "ok"


def test_strict_says_before_the_first_byte_that_one_is_busy(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """And without strict, when all are."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=2)
    config = {"snapshot": {"busy_timeout_seconds": 0}}

    with exclusively_locked(path):
        none_readable = error_of(path.parent, config)
        make_database(tmp_path / "data" / "b.db", rows=2)
        incomplete = error_of(path.parent, config, strict=True)

    assert isinstance(none_readable, NoneReadableError)
    assert incomplete.code == "incomplete"
    assert "a.db" in incomplete.message


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_lock_that_goes_in_time_costs_only_the_wait(
    compression: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """An application's long write transaction ends within the busy timeout."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=2)
    make_database(tmp_path / "data" / "b.db", rows=2)
    writer = Writer("exclusive", path)
    request = request_for(
        path.parent, {"snapshot": {"busy_timeout_seconds": 20}}, stored=compression == "stored"
    )
    with reading(request) as (_, incoming):
        alive = next(incoming)  # a second of waiting
        writer.stop()
        sources, _ = plan_of(incoming)

    assert alive.type == frames.ALIVE
    assert [source["status"] for source in sources] == ["ok", "ok"]


def test_a_backup_waits_for_nobody_who_only_writes_to_a_wal(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """A write transaction of a WAL database keeps no reader out, and what it has not committed is not there."""
    path = make_database(tmp_path / "data" / "a.db", rows=7)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("BEGIN IMMEDIATE")
        live.execute("DELETE FROM reading")

        archive = archive_of(path.parent, {"snapshot": {"busy_timeout_seconds": 0}}, strict=True)

    assert rows(archive.database("a.db", tmp_path / "out"), "SELECT count(*) FROM reading") == [(7,)]


def test_a_database_that_became_a_rollback_one_is_not_held(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Its next backup stages it: the journal mode is looked at each time."""
    path = make_database(tmp_path / "data" / "a.db", rows=7)
    before = archive_of(path.parent).source("a.db")
    execute(path, "PRAGMA journal_mode=delete")

    run = backup_of(path.parent)
    chunks = run.chunks()
    head = [next(chunks), next(chunks)]
    execute(path, "PRAGMA busy_timeout=0", "BEGIN EXCLUSIVE", "COMMIT")
    after = Archive(b"".join([*head, *chunks])).source("a.db")

    assert (before["journal_mode"], after["journal_mode"]) == ("wal", "rollback")
