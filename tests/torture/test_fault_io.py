"""Every n-th system call of the reader fails, for n = 1, 2, 3 … until nothing does: no lie, no hang (issue 3, item 5).

SQLite's own way of testing I/O errors. Each run must end as one of three: an archive whose database is the
reference's bytes; an archive that is not complete and names the database; an error. Never as a whole archive with
other bytes, and never late.

Seen on copies without the protection: with `snapshot.blocks` ending its loop at an error of SQLite's, and archive.py
not comparing sizes and END (either alone still shows it), a short database came out as whole (pread 5); with
`FrameWriter._write` taking `writev` for all or nothing, every short pipe write was `reader_protocol`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from harness import Config, MakeDatabase
from support import backup_of, codes, reference_pages
from torture.faulty import IO_ERROR, NO_SPACE, SHORT, Ending, Faults, ending_of, faults

__all__ = ["faults"]

ON_DISK: Config = {"snapshot": {"staging_memory_bytes": 0}}
LATE_SECONDS = 8
MOST = 400


@pytest.fixture(params=["wal", "delete"])
def sources(
    request: pytest.FixtureRequest, tmp_path: Path, make_database: MakeDatabase
) -> Iterator[dict[str, bytes]]:
    """Name -> the reference's bytes, in tmp_path/data: `struck.db`, with a WAL that holds rows, and `other.db`."""
    data = tmp_path / "data"
    paths = [
        make_database(data / name, journal=request.param, rows=60, random_bytes=600)
        for name in ("struck.db", "other.db")
    ]
    with contextlib.ExitStack() as stack:
        if request.param == "wal":  # an application has it open, and rows are in the WAL alone
            live = stack.enter_context(contextlib.closing(sqlite3.connect(paths[0], isolation_level=None)))
            live.execute("PRAGMA wal_autocheckpoint=0")
            live.execute("INSERT INTO reading(sensor, noise) VALUES ('wal', randomblob(20000))")
        yield {path.name: reference_pages(path) for path in paths}


def judge(ending: Ending, sources: dict[str, bytes], what: str) -> str:
    """The word for it, once it is known to be no lie."""
    assert ending.seconds < LATE_SECONDS, f"{what} took {ending.seconds:.1f} s"
    if ending.archive is None:
        assert ending.error is not None
        assert ending.error.message, what
        return ending.error.code
    archive = ending.archive
    assert archive.zip.testzip() is None, what
    failed = codes(archive)
    assert archive.manifest["complete"] == (not failed), what
    for name, expected in sources.items():
        if name in archive.names and archive.source(name)["status"] == "ok":
            assert archive.read(name) == expected, f"{what}: {name} has other bytes"
        else:
            assert name in failed, f"{what}: {name} is missing without a word"
    assert "other.db" not in failed, what
    return failed.get("struck.db", "complete")


def until_clean(
    faults: Faults,
    sources: dict[str, bytes],
    data: Path,
    call: str,
    number: int,
    *,
    part: str = "struck.db",
    config: Config | None = None,
    step: int = 1,
    **options: object,
) -> list[str]:
    """What became of each run, from the first such call to the one that no run makes any more."""
    words: list[str] = []
    for at in count(1, step):
        assert at < MOST, "it does not come to an end"
        faults.set(call, part, number, at)
        word = judge(ending_of(backup_of(data, config, **options)), sources, f"{call} {at}")
        if not faults.fired:
            assert word == "complete"
            return words
        words.append(word)
    return words


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_an_io_error_at_the_nth_page(
    compression: str, sources: dict[str, bytes], tmp_path: Path, faults: Faults
) -> None:
    """Each read of the database and its WAL in turn, from the first look at its header to the check's last page."""
    words = until_clean(faults, sources, tmp_path / "data", "pread", IO_ERROR, compression=compression)

    assert len(words) >= 4
    assert set(words) - {"complete"}


@pytest.mark.long
def test_an_io_error_at_every_page(sources: dict[str, bytes], tmp_path: Path, faults: Faults) -> None:
    """The same without a step, with the full check, and staged on a disk."""
    for config, check in ((None, "full"), (ON_DISK, "none")):
        words = until_clean(faults, sources, tmp_path / "data", "pread", IO_ERROR, config=config, check=check)
        assert set(words) - {"complete"}


@pytest.mark.parametrize(("call", "number"), [("open", IO_ERROR), ("open", 24), ("lock", IO_ERROR)])
def test_the_nth_open_or_lock_fails(
    call: str, number: int, sources: dict[str, bytes], tmp_path: Path, faults: Faults
) -> None:
    """Also when this process has no descriptor left (24, EMFILE): by name, and the others are there."""
    words = until_clean(faults, sources, tmp_path / "data", call, number)

    assert words


def test_strict_says_it_before_the_first_byte_or_resets(
    sources: dict[str, bytes], tmp_path: Path, faults: Faults
) -> None:
    """In strict there is no third way: whole, or an error."""
    words = until_clean(faults, sources, tmp_path / "data", "pread", IO_ERROR, step=3, strict=True)

    assert set(words) <= {"complete", "incomplete", "source_failed"}


@pytest.mark.parametrize("number", [IO_ERROR, NO_SPACE, SHORT])
def test_the_disk_of_a_staged_copy_fails(
    number: int, tmp_path: Path, make_database: MakeDatabase, faults: Faults
) -> None:
    """The n-th write into `staging_dir`, or all of them by halves: the database fails by name, or is whole."""
    data = tmp_path / "data"
    (tmp_path / "staging").mkdir()
    sources = {}
    for name, rows in (("struck.db", 6_000), ("other.db", 20)):
        path = make_database(data / name, journal="delete", rows=rows, random_bytes=600)
        sources[name] = reference_pages(path)
    config = {"snapshot": {"staging_memory_bytes": 200_000, "staging_dir": str(tmp_path / "staging")}}
    part = str(tmp_path / "staging")
    if number == SHORT:
        faults.set("write", part, SHORT)
        assert judge(ending_of(backup_of(data, config)), sources, "short writes") == "complete"
        assert faults.fired
        return

    words = until_clean(faults, sources, data, "write", number, part=part, config=config)

    assert set(words) == {"no_room" if number == NO_SPACE else "staging"}
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("call", ["write", "pread", "read"])
def test_short_calls_change_nothing(
    call: str, sources: dict[str, bytes], tmp_path: Path, faults: Faults
) -> None:
    """The pipe takes only half of each write; a file system gives half of each read."""
    faults.set(call, "pipe:[" if call == "write" else "", SHORT)

    word = judge(ending_of(backup_of(tmp_path / "data", strict=True)), sources, f"short {call}")

    assert word == "complete"
    assert faults.fired


def test_a_pipe_that_fails_is_the_readers_death(
    sources: dict[str, bytes], tmp_path: Path, faults: Faults
) -> None:
    """The n-th write into it: no archive, whichever frame it was."""
    words = []
    for at in count(1):
        faults.set("write", "pipe:[", IO_ERROR, at)
        ending = ending_of(backup_of(tmp_path / "data", strict=True))
        word = judge(ending, sources, f"pipe write {at}")
        if not faults.fired:
            break
        words.append(word)
        assert ending.archive is None, f"pipe write {at}"

    assert len(words) >= 5
    assert set(words) <= {"reader_died", "reader_defect", "reader_protocol"}


def test_a_plain_file_that_cannot_be_read(tmp_path: Path, faults: Faults) -> None:
    """An I/O error in a file of `floor_plan/`: named, or a stream that shows it; also a short read is whole."""
    plan = tmp_path / "data" / "floor_plan"
    plan.mkdir(parents=True)
    content = bytes(range(256)) * 12_000
    (plan / "struck.svg").write_bytes(content)
    words = []
    for at in count(1):
        faults.set("pread", "struck.svg", IO_ERROR, at)
        ending = ending_of(backup_of(tmp_path / "data"))
        if ending.archive is not None and not codes(ending.archive):
            assert ending.archive.read("floor_plan/struck.svg") == content
        words.append(ending.error.code if ending.error else "archive")
        if not faults.fired:
            break

    assert words[-1] == "archive"
    assert "source_failed" in words
