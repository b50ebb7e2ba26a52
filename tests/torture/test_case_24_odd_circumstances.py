"""Case 24: a full disk, a clock that jumps, files of another age. (1,000 aborted downloads: test_case_05_resets.py.)

Seen on a copy without the protection: with `time.time()` in place of `time.monotonic()` in watch.py and instant.py
the look at the code failed. The clock of the reader cannot be set here: the jump is the service's alone. Dates
outside of DOS times are held twice, by us and by zipstream-ng: without ours the test still passes.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mothership_backup
from clients import EXTRACTORS, files_below
from harness import Config, MakeDatabase, StartService, run, tool
from support import archive_of, backup_of, codes, execute
from torture.faulty import ending_of
from torture.harness import load, under_fire
from writers import check_bank, create_bank

MIB = 1024**2
DAY = 86_400


@contextlib.contextmanager
def small_disk(size_bytes: int) -> Iterator[Path]:
    """A tmpfs of its own; skips without the right to mount one."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        options = f"size={size_bytes}"
        if os.geteuid() != 0 or run("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        try:
            yield folder
        finally:
            run("umount", "-l", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all but so many bytes."""
    there = os.statvfs(folder)
    path = folder / "ballast"
    path.write_bytes(bytes(there.f_bavail * there.f_frsize - leave))
    return path


# The disk is full.


@pytest.mark.live_engine  # a live one needs no staging, which is what the test tells apart
def test_a_full_staging_disk_is_told_by_name(tmp_path: Path, make_database: MakeDatabase) -> None:
    """What must be copied aside fails with its remedy; what is read live does not need it; then it works again."""
    make_database(tmp_path / "data" / "live.db", rows=2_000, random_bytes=900)
    make_database(tmp_path / "data" / "rollback.db", journal="delete", rows=2_000, random_bytes=900)
    with small_disk(8 * MIB) as disk:
        config: Config = {"snapshot": {"staging_memory_bytes": 0, "staging_dir": str(disk)}}
        ballast = fill(disk, MIB)
        full = archive_of(tmp_path / "data", config)
        strict = ending_of(backup_of(tmp_path / "data", config, strict=True, compression="stored"))
        ballast.unlink()
        roomy = archive_of(tmp_path / "data", config, strict=True)
        left = list(disk.iterdir())

    assert codes(full) == {"rollback.db": "no_room"}
    assert "staging_dir" in full.source("rollback.db")["error"]["message"]
    assert full.source("live.db")["status"] == "ok"
    assert strict.error is not None
    assert strict.error.code == "incomplete"
    assert roomy.manifest["complete"] is True
    assert left == []


def test_a_disk_that_fills_while_it_is_copied_to(tmp_path: Path, make_database: MakeDatabase) -> None:
    """There was room when the copy began: another program took it."""
    make_database(tmp_path / "data" / "rollback.db", journal="delete", rows=9_000, random_bytes=900)
    with small_disk(
        8 * MIB
    ) as disk:  # less than the database, and `min_free_bytes` is for the same disk only
        config: Config = {"snapshot": {"staging_memory_bytes": 0, "staging_dir": str(disk)}}
        ending = ending_of(backup_of(tmp_path / "data", config, check="none"))
        left = list(disk.iterdir())

    assert ending.archive is None or codes(ending.archive) == {"rollback.db": "no_room"}
    assert left == []


@pytest.mark.long
@pytest.mark.live_engine
def test_a_full_data_disk_stops_no_backup_and_no_writer_for_long(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """A WAL grows under a held pin on a nearly full disk: the backup is cut, and the writer has its disk back."""
    with small_disk(96 * MIB) as disk:
        data = disk / "data"
        data.mkdir()
        create_bank(data / "bank.db", "wal")
        make_database(data / "a.db", rows=24_000, random_bytes=900)
        config: Config = {
            "limits": {"min_free_bytes": 40 * MIB, "read_bytes_per_second": 4 * MIB},
            "archive": {"check": "none"},
        }
        running = service(data, config)
        ballast = fill(disk, 41 * MIB)
        with load("bank", data / "bank.db", least=200, rate=400) as bank, running.stream() as peer:
            while piece := _receive(peer):
                assert b"PK\x05\x06" not in piece
        ballast.unlink()
        log = running.log()
        with under_fire(running, data, p99_seconds=None, next_query=None):
            pass
        out = tmp_path / "bank.db"
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(data / "bank.db", out)
        commits = check_bank(out)

    assert "disk_full" in log
    assert bank.tally.busy == 0
    assert commits > 0


def _receive(peer: object) -> bytes:
    try:
        return bytes(peer.recv(65536))  # type: ignore[attr-defined]  # a socket
    except ConnectionResetError:
        return b""


# The clock jumps.


def test_no_deadline_looks_at_the_wall_clock() -> None:
    """All durations come from `time.monotonic`: what asks for the time of day only writes it down.

    Nobody can set the clock of a test's machine; so this is read from the code. `asyncio`, `threading` and `select`
    count on the monotonic clock by themselves.
    """
    root = Path(mothership_backup.__file__).parent
    asked = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.gmtime"):
                    asked.add(f"{path.relative_to(root)}: {name}")

    told = {
        "archive.py: time.gmtime",  # a file's time as DOS says it
        "backup.py: time.time",  # created_at
        "web/delivery.py: datetime.now",  # the file's name
        "reader/source.py: datetime.now",
        "reader/instant.py: datetime.now",  # taken_at
        "reader/instant.py: time.time",  # a file's ctime against now: see `_open_immutable`
        "reader/staging.py: time.time",  # how old a leftover is
        "demo.py: datetime.now",
        "cli/log_format.py: datetime.now",
        "cli/token.py: datetime.now",  # whether its last day is over
        "web/auth.py: datetime.now",  # likewise
        "web/tokens_file.py: time.time",  # how old a file without its last line end is
        "web/delivery.py: time.time",  # what the history, status and metrics say: when, and how long ago
        "web/plans.py: time.time",
        "web/recording.py: time.time",
        "web/status.py: time.time",
        "cli/fetch.py: datetime.now",  # {date} and {time}, and how old a file is
        "fetch/transfer.py: datetime.now",  # a Retry-After may be a date
        "restore/restore.py: datetime.now",  # the names of what is kept
    }
    assert asked <= told, asked - told


JUMP = """
import sys, time
real, began = time.time, time.monotonic()
time.time = lambda: real() + (int(sys.argv[3]) if time.monotonic() - began > 0.7 else 0)
from pathlib import Path
from support import archive_of
config = {"limits": {"read_bytes_per_second": 4_000_000, "max_hold_seconds": 20, "stall_timeout_seconds": 20}}
archive = archive_of(Path(sys.argv[1]), config, strict=True)
Path(sys.argv[2]).write_bytes(archive.data)
"""


@pytest.mark.parametrize("jump", [pytest.param(DAY, marks=pytest.mark.long), -DAY])
def test_a_clock_that_jumps_a_day_in_mid_stream(
    jump: int, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """To the service's eyes: nothing is cut, nothing hangs."""
    make_database(tmp_path / "data" / "a.db", rows=9_000, random_bytes=900)
    environ = [f"PYTHONPATH={os.pathsep.join(path for path in sys.path if path)}"]
    began = time.monotonic()

    done = run(
        "env",
        *environ,
        sys.executable,
        "-c",
        JUMP,
        tmp_path / "data",
        tmp_path / "b.zip",
        str(jump),
        seconds=30,
    )

    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 1.5  # it was still running when the clock jumped
    assert zipfile.ZipFile(tmp_path / "b.zip").testzip() is None


# Files of another age.

AGES = {
    "1902.svg": -(2**31),
    "1970.svg": 0,
    "1975.svg": 5 * 365 * DAY,
    "1979.svg": 315_532_799,  # the last second before DOS times
    "1980.svg": 315_532_800,
    "2038.svg": 2**31,
    "2107.svg": 4_354_819_198,
    "2108.svg": 4_354_819_200,
    "2400.svg": 13_569_465_600,
}


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_files_dated_before_1980_and_after_2107(
    compression: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Whole in every tool; the time is the nearest that the archive can say."""
    plan = tmp_path / "data" / "floor_plan"
    plan.mkdir(parents=True)
    database = make_database(tmp_path / "data" / "old.db", journal="delete", rows=20)
    execute(database, "SELECT 1")
    os.utime(database, (0, 0))
    kept = {}
    for name, seconds in AGES.items():
        (plan / name).write_text(name)
        os.utime(plan / name, (seconds, seconds))
        kept[name] = int((plan / name).stat().st_mtime)  # a file system may have its own limits

    archive = archive_of(tmp_path / "data", compression=compression, strict=True)
    path = archive.save(tmp_path / "b.zip")

    for command in (["unzip", "-tqq"], ["7z", "t"]):
        assert run(tool(command[0]), *command[1:], path).returncode == 0
    for extract in EXTRACTORS:
        target = tmp_path / extract.__name__
        extract(path, target)
        found = files_below(target)
        assert all(found[f"floor_plan/{name}"].read_text() == name for name in AGES)
        if extract.__name__ != "by_python":  # which sets no times
            for name, seconds in kept.items():
                if 0 <= seconds < 2**31:  # as the UTC extra field says it
                    assert int(found[f"floor_plan/{name}"].stat().st_mtime) == seconds, (extract, name)
    assert all(1980 <= info.date_time[0] <= 2107 for info in archive.zip.infolist())
