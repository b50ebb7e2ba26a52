"""Discovery finds what the patterns name, takes only what can be taken, and says of the rest why not."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drive import NOBODY, drive, mounted, root_only, shared_folder
from harness import MakeDatabase
from mothership_backup.errors import DataDirError, NoneReadableError
from mothership_backup.reader.discover import Discovery
from mothership_backup.reader.source import Source
from support import archive_of, backup_of, codes, engines, error_of, names_of, rows, touch

WITH_DEEP = {"data": {"databases": ["**/*.db"]}}


def test_each_kind_that_cannot_be_taken_is_told_with_its_reason(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Links may hide a live database: failed. What is no file was never wanted: skipped."""
    data = tmp_path / "data"
    make_database(data / "good.db", rows=5)
    twin = make_database(data / "hard.db", rows=5)
    (tmp_path / "elsewhere.db").hardlink_to(twin)
    (data / "link.db").symlink_to("good.db")
    (data / "dangling.db").symlink_to("nowhere")
    (data / "folder.db").mkdir()
    os.mkfifo(data / "fifo.db")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(data / "socket.db"))
        archive = archive_of(data)

    assert names_of(archive) == {"good.db"}
    assert codes(archive) == {
        "dangling.db": "symlink",
        "fifo.db": "not_a_file",
        "folder.db": "folder",
        "hard.db": "hard_link",
        "link.db": "symlink",
        "socket.db": "not_a_file",
    }
    failed = {s["name"] for s in archive.manifest["sources"] if s["status"] == "failed"}
    assert failed == {"dangling.db", "hard.db", "link.db"}


def test_a_device_is_never_opened(tmp_path: Path) -> None:
    """Opening one may rewind a tape, or wait for ever."""
    root_only()
    data = tmp_path / "data"
    data.mkdir()
    try:
        os.mknod(data / "device.db", 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("no device can be made here")

    assert codes(archive_of(data)) == {"device.db": "not_a_file"}


def test_exclude_makes_of_a_failure_a_skip(tmp_path: Path, make_database: MakeDatabase) -> None:
    """The remedy that the messages name."""
    data = tmp_path / "data"
    make_database(data / "good.db", rows=5)
    (tmp_path / "twin").hardlink_to(make_database(data / "hard.db", rows=5))
    (data / "link.db").symlink_to("good.db")

    archive = archive_of(data, {"data": {"exclude": ["link.db", "hard.*"]}}, strict=True)

    assert archive.manifest["complete"] is True
    assert codes(archive) == {"hard.db": "excluded", "link.db": "symlink"}


def test_sidecars_are_never_sources(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Not by a pattern for everything, and not in an included folder either; beside nothing they are files."""
    data = tmp_path / "data"
    for name in ("a.db", "floor_plan/b.db"):
        make_database(data / name, rows=5)
    touch(data / "floor_plan" / "lonely.db-wal")
    with (
        contextlib.closing(sqlite3.connect(data / "a.db", isolation_level=None)) as first,
        contextlib.closing(sqlite3.connect(data / "floor_plan" / "b.db", isolation_level=None)) as second,
    ):
        for live in (first, second):
            live.execute("UPDATE reading SET value = 1")
        archive = archive_of(data, {"data": {"databases": ["*"]}})

    assert names_of(archive) == {"a.db", "floor_plan/b.db", "floor_plan/lonely.db-wal"}
    sidecars = {name for name, code in codes(archive).items() if code == "sidecar"}
    assert sidecars == {f"{name}{end}" for name in ("a.db", "floor_plan/b.db") for end in ("-wal", "-shm")}
    assert archive.source("floor_plan/b.db")["kind"] == "database"


def test_what_is_no_sqlite_file_is_a_file_unless_it_is_live(tmp_path: Path) -> None:
    """Empty ones, JSON lines and encrypted ones at rest; beside a sidecar an encrypted one would be torn."""
    data = tmp_path / "data"
    touch(
        data / "cipher.db", data / "live.db", data / "live.db-wal", data / "old.db", data / "old.db-journal"
    )
    (data / "empty.db").touch()
    (data / "database.db").write_text('{"id": 1}\n' * 100)

    archive = archive_of(data)

    assert codes(archive) == {"live.db": "encrypted_live", "old.db": "encrypted_live"}
    files = {s["name"]: s for s in archive.manifest["sources"] if s["status"] == "ok"}
    assert set(files) == {"cipher.db", "database.db", "empty.db"}
    assert {source["kind"] for source in files.values()} == {"file"}
    assert archive.read("empty.db") == b""
    assert archive.read("database.db") == b'{"id": 1}\n' * 100


def test_a_sidecar_that_comes_after_its_folder_was_listed_is_seen(tmp_path: Path) -> None:
    """The first file was read already, as a plain one, when its application went to work on it."""
    data = tmp_path / "data"
    touch(*(data / "floor_plan" / name for name in ("cipher", "deep/cipher", "last", "other")))
    (data / "floor_plan" / "empty").touch()

    def begin() -> None:
        touch(*(data / "floor_plan" / name for name in ("cipher-wal", "deep/cipher-WAL", "empty-journal")))

    sources = _discovered(data, meanwhile=begin, at="last")

    assert {path: (source.kind, source.status) for path, source in sources.items()} == {
        "floor_plan/cipher": ("database", "failed"),
        "floor_plan/deep/cipher": ("file", "ok"),  # here `-WAL` is no sidecar
        "floor_plan/empty": ("database", "ok"),
        "floor_plan/last": ("file", "ok"),
        "floor_plan/other": ("file", "ok"),
    }
    assert getattr(sources["floor_plan/cipher"].error, "code", "") == "encrypted_live"


def test_a_folder_that_goes_while_it_is_looked_at_leaves_its_files_planned(tmp_path: Path) -> None:
    """They are told when their turn comes, or read: they were there."""
    data = tmp_path / "data"
    touch(data / "floor_plan" / "a" / "one", data / "floor_plan" / "last")

    def rename() -> None:
        (data / "floor_plan" / "a").rename(tmp_path / "gone")

    sources = _discovered(data, meanwhile=rename, at="last")

    assert {path: source.status for path, source in sources.items()} == {
        "floor_plan/a/one": "ok",
        "floor_plan/last": "ok",
    }


def _discovered(data: Path, *, meanwhile: Callable[[], None], at: str) -> dict[str, Source]:
    """The sources by their paths; ``meanwhile`` is called when the file named ``at`` is about to be opened."""
    calls = [meanwhile]

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and calls and str(arguments[0]).endswith(f"/{at}"):
            calls.pop()()

    before = len(os.listdir("/proc/self/fd"))
    sys.addaudithook(hear)
    discovery = Discovery(str(data), databases=(), include=("floor_plan",), exclude=(), only=())
    assert not calls
    kept = [source.fd for source in discovery.sources if source.fd >= 0]
    assert len(os.listdir("/proc/self/fd")) == before + len(kept)
    for fd in kept:
        os.close(fd)
    return {source.path: source for source in discovery.sources}


def test_a_database_in_its_first_transaction_is_an_empty_database(tmp_path: Path) -> None:
    """Nothing is committed yet; its journal makes it no encrypted one, and nothing in it is damaged."""
    data = tmp_path / "data"
    data.mkdir()
    with contextlib.closing(sqlite3.connect(data / "new.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("PRAGMA cache_spill=OFF")
        db.execute("CREATE TABLE first(a)")
        assert (data / "new.db-journal").exists()
        assert (data / "new.db").stat().st_size == 0

        for config in (None, {"snapshot": {"staging_memory_bytes": 0}}):
            for compression in ("deflate", "stored"):
                archive = archive_of(data, config, strict=True, compression=compression)

                assert archive.source("new.db")["check"]["verdict"] == "ok"
                assert archive.read("new.db") == b""


def test_the_same_file_through_two_folders_is_taken_once(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A folder that is mounted a second time: an inode met twice is skipped by name."""
    root_only()
    data = tmp_path / "data"
    make_database(data / "one" / "a.db", rows=5)
    (data / "two").mkdir()
    mount = f'mount --bind {data}/one {data}/two && exec "$@"'

    driven = drive(data, WITH_DEEP, command=mounted(mount), strict=True)

    assert driven.outcome == "complete"
    assert driven.engines.keys() == {"one/a.db"}
    assert driven.codes == {"two/a.db": "same_file"}


def test_a_database_that_is_a_mount_point_hides_its_wal(tmp_path: Path, make_database: MakeDatabase) -> None:
    """A container that mounts only the file: what it reads is stale, and no check can see it."""
    root_only()
    data, real = tmp_path / "da ta", make_database(tmp_path / "real" / "app.db", rows=5)
    make_database(data / "good.db", rows=5)
    touch(data / "mo unt.db")

    driven = drive(data, command=mounted(f"mount --bind '{real}' '{data}/mo unt.db' && exec \"$@\""))

    assert driven.codes == {"mo unt.db": "mount_point"}
    assert driven.engines.keys() == {"good.db"}


def test_what_lies_in_an_included_folder_is_snapshotted_too(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """A SQLite file is a database wherever it lies, and whatever it is called."""
    data = tmp_path / "data"
    make_database(data / "floor_plan" / "tiles.mbtiles", rows=100)
    with contextlib.closing(
        sqlite3.connect(data / "floor_plan" / "tiles.mbtiles", isolation_level=None)
    ) as live:
        live.execute("DELETE FROM reading WHERE id > 7")

        archive = archive_of(data, strict=True)

    assert archive.source("floor_plan/tiles.mbtiles")["kind"] == "database"
    assert engines(archive.manifest)["floor_plan/tiles.mbtiles"] in ("live", "copied")
    copy = archive.database("floor_plan/tiles.mbtiles", tmp_path / "out")
    assert rows(copy, "SELECT count(*) FROM reading") == [(7,)]


def test_databases_that_are_all_unreadable_are_an_error(tmp_path: Path) -> None:
    """An archive without one database would look like a backup."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "bad.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4080)

    error = error_of(data)

    assert isinstance(error, NoneReadableError)
    assert "bad.db" in error.message


def test_the_version_file_is_read_by_the_reader(tmp_path: Path) -> None:
    """One line of a small regular file; anything else is a failed source that is named."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "good").write_text("1.2.3\nmore\n")
    (data / "empty").touch()
    (data / "long").write_text("1" * 5000)
    (data / "binary").write_bytes(b"\x00\x01")
    (data / "link").symlink_to("good")
    os.mkfifo(data / "fifo")

    good = archive_of(data, {"data": {"version_file": "good"}}, strict=True)

    assert good.read("VERSION") == b"1.2.3\n"
    for bad in ("empty", "long", "binary", "link", "fifo", "missing"):
        archive = archive_of(data, {"data": {"version_file": bad}})
        assert archive.read("VERSION") == b"unknown\n"
        assert set(codes(archive)) == {bad}, bad
        assert archive.manifest["complete"] is False


def test_a_data_directory_that_is_none_is_told_apart(tmp_path: Path) -> None:
    """Missing, and a plain file."""
    (tmp_path / "file").touch()

    missing, plain = error_of(tmp_path / "missing"), error_of(tmp_path / "file")

    assert isinstance(missing, DataDirError)
    assert (missing.code, plain.code) == ("data_dir_missing", "data_dir_not_a_directory")
    assert str(tmp_path / "missing") in missing.message


def test_a_linked_data_directory_is_followed(tmp_path: Path, make_database: MakeDatabase) -> None:
    """It is what the configuration names; only what is below it is never followed."""
    make_database(tmp_path / "real" / "a.db", rows=2)
    (tmp_path / "data").symlink_to("real")

    assert names_of(archive_of(tmp_path / "data", strict=True)) == {"a.db"}


def test_what_this_user_may_not_read_is_told_and_stops_nothing(make_database: MakeDatabase) -> None:
    """A file, a folder that cannot be listed, one that can be listed and not searched."""
    root_only()
    with shared_folder() as shared:
        data = shared / "data"
        for name in ("good.db", "secret.db", "closed/a.db", "listed/b.db"):
            make_database(data / name, journal="delete", rows=2)
        (data / "secret.db").chmod(0o600)
        (data / "closed").chmod(0o700)
        (data / "listed").chmod(0o744)

        told = drive(data, WITH_DEEP, user=NOBODY)
        quiet = drive(
            data,
            {"data": {"databases": ["**/*.db"], "exclude": ["closed", "listed", "secret.db"]}},
            user=NOBODY,
        )
        data.chmod(0o711)
        unlisted = drive(data, user=NOBODY)
        data.chmod(0o744)
        unsearched = drive(data, user=NOBODY)

    assert told.outcome == "incomplete"
    assert told.engines.keys() == {"good.db"}
    assert told.codes == dict.fromkeys(("secret.db", "closed", "listed"), "not_readable")
    assert quiet.outcome == "complete"
    assert quiet.codes == {"closed": "excluded", "listed": "excluded", "secret.db": "excluded"}
    for refused in (unlisted, unsearched):
        assert refused.error is not None
        assert refused.error["code"] == "data_dir_unreadable"


def test_a_plain_file_that_its_application_replaces_is_read_whole(tmp_path: Path) -> None:
    """The one that was there at the plan: a descriptor of it is kept."""
    data = tmp_path / "data"
    touch(data / "floor_plan" / "a.json")
    run_ = backup_of(data, compression="stored")
    chunks = run_.chunks()
    next(chunks)
    (data / "floor_plan" / "new").write_bytes(b"another and longer")
    (data / "floor_plan" / "new").rename(data / "floor_plan" / "a.json")

    assert b"".join(chunks).count(b"another") == 0
    assert run_.outcome is not None
    assert run_.outcome.word == "complete"
