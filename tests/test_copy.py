"""A plain file is copied as it was planned, or its failure is told: never more bytes, never another file's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Archive, MakeDatabase
from mothership_backup.backup import Backup
from mothership_backup.errors import ReaderError
from mothership_backup.reader import copy
from mothership_backup.reader.source import FILE, Source
from support import archive_of, backup_of, codes, names_of

COMPRESSIONS = ("deflate", "stored")
MANY = 300  # more than the reader keeps open since its plan


@pytest.fixture
def data(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """A database that fills the pipe before the first of many files has its turn."""
    make_database(tmp_path / "data" / "a.db", rows=8_000, random_bytes=500)
    folder = tmp_path / "data" / "floor_plan"
    folder.mkdir()
    for number in range(MANY):
        (folder / f"{number:03d}.svg").write_bytes(b"%03d" % number * 1000)
    return tmp_path / "data"


def begun(data: Path, compression: str) -> tuple[Backup, Iterator[bytes | memoryview]]:
    """Planned, and not yet at its files."""
    run = backup_of(data, compression=compression, check="none")
    chunks = run.chunks()
    assert len(next(chunks)) == 0
    return run, chunks


def last_file(data: Path) -> Path:
    return data / "floor_plan" / f"{MANY - 1:03d}.svg"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_file_is_there_as_it_was(compression: str, data: Path) -> None:
    """Those that were opened at the plan, and those that were not."""
    archive = archive_of(data, compression=compression, strict=True)

    assert len(names_of(archive)) == MANY + 1
    for number in (0, 255, 256, MANY - 1):
        assert archive.read(f"floor_plan/{number:03d}.svg") == b"%03d" % number * 1000


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("number", [0, MANY - 1])
def test_a_file_that_grows_is_taken_as_long_as_it_was(number: int, compression: str, data: Path) -> None:
    """A log that is written to has no end; its length was promised."""
    run, chunks = begun(data, compression)
    with (data / "floor_plan" / f"{number:03d}.svg").open("ab") as file:
        file.write(b"more" * 1000)

    archive = Archive(b"".join(chunks))

    assert archive.read(f"floor_plan/{number:03d}.svg") == b"%03d" % number * 1000
    assert run.outcome is not None
    assert run.outcome.word == "complete"


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("length", [0, 7])
def test_a_file_that_shrinks_ends_the_backup(length: int, compression: str, data: Path) -> None:
    """Half a file is none; the reason names it."""
    _, chunks = begun(data, compression)
    os.truncate(data / "floor_plan" / "000.svg", length)

    with pytest.raises(ReaderError, match=rf"floor_plan/000\.svg: it shrank to {length} bytes") as caught:
        list(chunks)

    assert caught.value.source == "floor_plan/000.svg"
    assert caught.value.code == "source_failed"


@pytest.mark.parametrize(
    ("change", "code"), [("removed", "vanished"), ("replaced", "replaced"), ("linked", "replaced")]
)
def test_a_file_that_goes_before_its_turn_is_left_out_and_told(change: str, code: str, data: Path) -> None:
    """Where the length was not promised; else the backup ends."""
    secret = data.parent / "secret"
    secret.write_bytes(b"outside" * 1000)
    for compression in COMPRESSIONS:
        last_file(data).unlink(missing_ok=True)
        last_file(data).write_bytes(b"there")
        run, chunks = begun(data, compression)
        if change == "replaced":  # written beside first: a file that is gone may leave its inode to the next
            (data / "new").write_bytes(b"another")
            (data / "new").replace(last_file(data))
        else:
            last_file(data).unlink()
        if change == "linked":
            last_file(data).symlink_to(secret)

        if compression == "stored":
            with pytest.raises(ReaderError, match=r"299\.svg.*promised"):
                list(chunks)
            continue
        archive = Archive(b"".join(chunks))

        assert codes(archive) == {"floor_plan/299.svg": code}
        assert archive.manifest["complete"] is False
        assert run.outcome is not None
        assert run.outcome.word == "incomplete"
        assert b"outside" not in archive.data


def test_strict_is_strict_to_its_end(data: Path) -> None:
    """Also about what went after the plan."""
    run = backup_of(data, strict=True)
    chunks = run.chunks()
    next(chunks)
    last_file(data).unlink()

    with pytest.raises(Exception, match=r"299\.svg") as caught:
        list(chunks)

    assert getattr(caught.value, "code", "") == "incomplete"


def test_a_disk_that_fails_is_told_by_the_files_name(tmp_path: Path) -> None:
    """Here a folder's descriptor: its read fails as that of a bad block does."""
    source = Source("bad.svg", str(tmp_path), FILE, tmp_path.stat())
    source.size_bytes = 10
    source.fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(ReaderError, match=r"bad\.svg") as caught:
        list(copy.blocks(source))

    assert (caught.value.code, caught.value.source) == ("source_failed", "bad.svg")
