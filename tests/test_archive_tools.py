"""The archive as foreign tools see it: unzip, 7z, bsdtar, Python's zipfile, sha256sum."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients import EXTRACTORS, by_unzip, files_below
from harness import Archive, MakeDatabase, StartService, make_data_dir, run, serving, sha256, tool

COMPRESSIONS = ("deflate", "stored")


@pytest.fixture(scope="module", params=COMPRESSIONS)
def archive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase
) -> Archive:
    """Of a directory like `data_dir`, and an empty file."""
    folder = tmp_path_factory.mktemp(request.param)
    data = make_data_dir(folder / "data", make_database)
    (data / "floor_plan" / "empty.txt").touch()
    with serving(folder, data) as service:
        return service.archive(f"compression={request.param}")


def test_unzip_and_7z_find_the_archive_whole(archive: Archive, tmp_path: Path) -> None:
    """Their own tests, with not one warning."""
    path = archive.save(tmp_path / "b.zip")

    unzip = run(tool("unzip"), "-t", path)
    seven = run(tool("7z"), "t", path)

    assert unzip.returncode == 0, unzip.stdout
    assert "No errors detected" in unzip.stdout
    assert seven.returncode == 0, seven.stdout
    assert "Everything is Ok" in seven.stdout
    assert "Warning" not in seven.stdout


@pytest.mark.parametrize("extract", EXTRACTORS)
def test_every_tool_extracts_the_same_files(
    extract: Callable[[Path, Path], None], archive: Archive, tmp_path: Path
) -> None:
    """Byte for byte what the manifest's hashes say, and `sha256sum -c` agrees."""
    extract(archive.save(tmp_path / "b.zip"), tmp_path / "out")
    files = files_below(tmp_path / "out")
    checked = run(tool("sha256sum"), "--strict", "-c", "SHA256SUMS", cwd=tmp_path / "out")

    assert set(files) == {name for name in archive.names if not name.endswith("/")}
    for source in archive.manifest["sources"]:
        content = files[source["name"]].read_bytes()
        assert (len(content), sha256(content)) == (source["size_bytes"], source["sha256"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(checked.stdout.splitlines()) == len(files) - 1  # all but SHA256SUMS itself


def test_a_reader_of_the_stream_alone_can_follow_it(
    data_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """bsdtar on a pipe never sees the central directory. (No tool can do that with stored: FACTS 4.)"""
    archive = service(data_dir).archive("compression=deflate").save(tmp_path / "b.zip")
    (tmp_path / "out").mkdir()

    piped = run("sh", "-c", f"cat {archive} | {tool('bsdtar')} -xf - -C {tmp_path / 'out'}")

    assert piped.returncode == 0, piped.stderr
    assert set(files_below(tmp_path / "out")) >= {"events.db", "nodes.db", "VERSION", "SHA256SUMS"}


def test_the_order_of_the_entries(data_dir: Path, make_database: MakeDatabase, service: StartService) -> None:
    """Databases by name, files by path, then what speaks of them."""
    make_database(data_dir / "z.db", rows=3)
    (data_dir / "floor_plan" / "a.txt").write_text("a")
    (data_dir / "floor_plan" / "attic.txt").write_text("b")

    names = [name for name in service(data_dir).archive().names if not name.endswith("/")]

    files = names[3:-3]
    assert names[:3] == ["events.db", "nodes.db", "z.db"]
    assert files == sorted(files)
    assert len(files) == 4
    assert names[-3:] == ["VERSION", "MANIFEST.json", "SHA256SUMS"]


def test_the_manifest_says_what_the_archive_is(data_dir: Path, service: StartService) -> None:
    """Every field of DESIGN 4's example, with a value that is true."""
    with contextlib.closing(sqlite3.connect(data_dir / "events.db")) as db:
        db.execute("PRAGMA user_version=7")
        db.execute("PRAGMA application_id=4242")
        size = db.execute("PRAGMA page_count").fetchone()[0]

    manifest = service(data_dir, {"data": {"version": "9.1"}}).archive().manifest

    assert manifest["format"] == 1
    assert manifest["complete"] is True
    assert manifest["app_version"] == "9.1"
    assert manifest["generator"]["name"] == "mothership-backup"
    assert re.fullmatch(r"\d+\.\d+.*", manifest["generator"]["version"])
    assert re.fullmatch(r"3\.\d+\.\d+", manifest["generator"]["sqlite"])
    assert abs(_time(manifest["created_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    instant = manifest["instant"]
    assert isinstance(instant["exact"], bool)
    assert _time(instant["first_pinned_at"]) <= _time(instant["last_pinned_at"])
    events, nodes = manifest["sources"][:2]
    assert {key: events[key] for key in ("name", "kind", "status", "journal_mode", "check")} == {
        "name": "events.db",
        "kind": "database",
        "status": "ok",
        "journal_mode": "wal",
        "check": {"kind": "quick", "verdict": "ok"},
    }
    assert (events["page_size"], events["page_count"], events["size_bytes"]) == (4096, size, 4096 * size)
    assert (events["user_version"], events["application_id"]) == (7, 4242)
    assert events["engine"] in ("live", "copied")
    assert _time(events["taken_at"]) <= datetime.now(UTC)
    assert nodes["journal_mode"] == "rollback"
    assert nodes["engine"] in ("staged", "copied")
    assert {source["kind"] for source in manifest["sources"][2:]} == {"file"}


def _time(text: str) -> datetime:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    return datetime.fromisoformat(text)


@pytest.mark.live_engine
def test_a_live_database_is_its_file_byte_for_byte(data_dir: Path, service: StartService) -> None:
    """Pages, not a rewritten copy: what restic and borg can deduplicate."""
    archive = service(data_dir).archive()

    assert archive.read("events.db") == (data_dir / "events.db").read_bytes()
    assert archive.read("nodes.db") == (data_dir / "nodes.db").read_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_modes_and_times_come_from_the_sources(
    compression: str,
    data_dir: Path,
    tmp_path: Path,
    service: StartService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """UTC, in whatever zone the service and the unpacking machine live; a WAL that is newer counts."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    times = {"nodes.db": 1_500_000_001, "floor_plan/ground.svg": 1_600_000_003}
    for name, stamp in times.items():
        os.utime(data_dir / name, (stamp, stamp))
        (data_dir / name).chmod(0o640)
    with contextlib.closing(sqlite3.connect(data_dir / "events.db", isolation_level=None)) as live:
        live.execute("UPDATE reading SET value = 0")
        os.utime(data_dir / "events.db", (1_400_000_000, 1_400_000_000))
        os.utime(data_dir / "events.db-wal", (1_450_000_007, 1_450_000_007))
        archive = service(data_dir).archive(f"compression={compression}")
    monkeypatch.setenv("TZ", "America/Lima")

    by_unzip(archive.save(tmp_path / "b.zip"), tmp_path / "out")

    for name, stamp in {**times, "events.db": 1_450_000_007}.items():
        assert (tmp_path / "out" / name).stat().st_mtime == stamp, name
        dos_time = datetime(*archive.zip.getinfo(name).date_time, tzinfo=UTC).timestamp()
        assert 0 <= stamp - dos_time < 2, name  # DOS times have no zone, and even seconds
    for name in times:
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o640, name


def test_new_databases_are_there_at_the_next_request(
    data_dir: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """No restart, no list to keep; what was deleted is gone as well."""
    running = service(data_dir)
    assert "late.db" not in running.archive().names

    make_database(data_dir / "late.db", rows=3)
    (data_dir / "nodes.db").unlink()
    archive = running.archive("strict=true")

    assert "late.db" in archive.names
    assert "nodes.db" not in archive.statuses()


def test_databases_in_included_folders_are_snapshots_too(
    data_dir: Path, make_database: MakeDatabase, service: StartService, tmp_path: Path
) -> None:
    """Whatever their suffix; their sidecars are no files of their own."""
    tiles = make_database(data_dir / "floor_plan" / "tiles.mbtiles", rows=50)
    (data_dir / "floor_plan" / "orphan.db-wal").write_bytes(b"no database beside it")
    with contextlib.closing(sqlite3.connect(tiles, isolation_level=None)) as live:
        live.execute("PRAGMA wal_autocheckpoint=0")
        live.execute("INSERT INTO reading(sensor) VALUES ('only in the WAL')")
        archive = service(data_dir).archive("strict=true")

    source = archive.source("floor_plan/tiles.mbtiles")
    assert (source["kind"], source["status"]) == ("database", "ok")
    assert not [name for name in archive.names if name.startswith("floor_plan/tiles.mbtiles-")]
    copy = archive.database("floor_plan/tiles.mbtiles", tmp_path / "out")
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT count(*) FROM reading").fetchone() == (51,)
