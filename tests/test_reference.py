"""The reference behaviour of DESIGN 1, row by row: R1 to R9."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness import Config, MakeDatabase, StartService
from processes import Samples, open_paths, wait_until
from writers import check_bank, create_bank, writing


def test_r1_answers_200_with_a_zip_named_after_the_utc_date(data_dir: Path, service: StartService) -> None:
    """Status, type and file name are those that existing clients parse."""
    running = service(data_dir)

    before = datetime.now(UTC)
    answer = running.request()
    after = datetime.now(UTC)

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] in {
        f'attachment; filename="spaxel-backup-{day:%Y-%m-%d}.zip"' for day in (before, after)
    }
    assert answer.body.startswith(b"PK\x03\x04")


def test_r1_the_prefix_of_the_name_is_configuration(data_dir: Path, service: StartService) -> None:
    """`name_prefix` replaces `spaxel`."""
    answer = service(data_dir, {"archive": {"name_prefix": "attic.2"}}).request(method="HEAD")

    assert re.fullmatch(
        r'attachment; filename="attic\.2-backup-\d{4}-\d\d-\d\d\.zip"', answer.headers["content-disposition"]
    )


def test_r2_one_entry_per_db_file_directly_in_the_directory_sorted(
    data_dir: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Subfolders, other suffixes and sidecars are not databases of the directory."""
    for name in ("zebra.db", "Alpha.db", "a-b.db", "a.db", "deeper/inner.db", "notes.sqlite", "db"):
        make_database(data_dir / name, rows=5)
    (data_dir / "readme.txt").write_text("no\n")

    archive = service(data_dir).archive()

    databases = [name for name in archive.names if name.endswith(".db")]
    assert databases == sorted(databases)
    assert set(databases) == {"Alpha.db", "a-b.db", "a.db", "events.db", "nodes.db", "zebra.db"}
    assert not {"readme.txt", "notes.sqlite", "db"} & set(archive.names)


def test_r2_rows_that_stand_only_in_the_wal_are_in_the_copy(
    data_dir: Path, service: StartService, tmp_path: Path
) -> None:
    """Committed is committed, checkpointed or not."""
    with contextlib.closing(sqlite3.connect(data_dir / "events.db", isolation_level=None)) as live:
        live.execute("PRAGMA wal_autocheckpoint=0")
        live.execute("INSERT INTO reading(sensor) VALUES ('only in the WAL')")
        assert (data_dir / "events.db-wal").stat().st_size > 0

        archive = service(data_dir).archive()

    with contextlib.closing(sqlite3.connect(archive.database("events.db", tmp_path / "out"))) as copy:
        found = copy.execute("SELECT count(*) FROM reading WHERE sensor = 'only in the WAL'").fetchone()
    assert found == (1,)
    assert not [name for name in archive.names if name.endswith(("-wal", "-shm", "-journal"))]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_r3_writers_and_readers_of_the_source_go_on(
    journal: str, tmp_path: Path, service: StartService
) -> None:
    """Ten backups of a bank under transfers: each is one moment of it, and no commit waits for a download."""
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, journal)
    running = service(bank.parent)
    commits = []

    with writing("bank", bank) as writer:
        for number in range(10):
            copy = running.archive("strict=true").database("bank.db", tmp_path / f"out-{number}")
            commits.append(check_bank(copy))
            with contextlib.closing(sqlite3.connect(bank)) as reader:
                assert reader.execute("SELECT count(*) FROM account").fetchone() == (2000,)
        tally = writer.stop()

    assert commits == sorted(commits)
    assert commits[-1] - commits[0] >= 100, "the writer hardly wrote: nothing was proved"
    assert tally.longest_seconds < 2
    assert tally.busy == 0


def test_r4_the_floor_plan_with_its_tree(data_dir: Path, service: StartService) -> None:
    """Byte for byte, under the paths that it has."""
    blob = os.urandom(300_000)
    (data_dir / "floor_plan" / "attic" / "photo.jpg").write_bytes(blob)

    archive = service(data_dir).archive()

    plan = [name for name in archive.names if name.startswith("floor_plan/") and not name.endswith("/")]
    assert plan == ["floor_plan/attic/beams.json", "floor_plan/attic/photo.jpg", "floor_plan/ground.svg"]
    assert archive.read("floor_plan/attic/photo.jpg") == blob
    assert archive.read("floor_plan/ground.svg") == b"<svg>ground</svg>\n"


def test_r4_what_else_to_include_is_configuration(data_dir: Path, service: StartService) -> None:
    """`include` names other files and folders; without a `floor_plan` there is none."""
    (data_dir / "scenes").mkdir()
    (data_dir / "scenes" / "evening.yaml").write_text("light: low\n")
    (data_dir / "secrets.yaml").write_text("password: no\n")

    archive = service(data_dir, {"data": {"include": ["scenes", "nowhere"]}}).archive()

    assert archive.read("scenes/evening.yaml") == b"light: low\n"
    assert not [name for name in archive.names if name.startswith(("floor_plan", "secrets", "nowhere"))]


def test_r5_version_is_the_applications_and_a_newline(data_dir: Path, service: StartService) -> None:
    """From the configuration, or from a file that the application keeps in its data directory."""
    (data_dir / "app-version").write_text("2.0.1\n")

    named = service(data_dir, {"data": {"version": "1.7.3"}}).archive()
    from_file = service(data_dir, {"data": {"version_file": "app-version"}}).archive()

    assert named.read("VERSION") == b"1.7.3\n"
    assert named.manifest["app_version"] == "1.7.3"
    assert from_file.read("VERSION") == b"2.0.1\n"
    assert from_file.manifest["app_version"] == "2.0.1"


@pytest.mark.live_engine
def test_r6_straight_into_the_response_without_a_temporary_file(
    tmp_path: Path, make_database: MakeDatabase, service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a WAL database no copy is made anywhere: no file, no memory file, and bytes come while it is read."""
    data, temporary = tmp_path / "data", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    make_database(data / "events.db", rows=6000, random_bytes=1000)
    running = service(data, {"limits": {"read_bytes_per_second": 4_000_000}})

    def foreign() -> list[str]:
        paths = [path for pid in [running.pid, *running.readers()] for path in open_paths(pid)]
        ours = [path for path in paths if "memfd:" in path or "(deleted)" in path]
        # The folder itself is looked through for what killed readers have left.
        return ours + [path for path in paths if path.startswith(f"{temporary}/")] + os.listdir(temporary)

    with Samples(foreign) as samples:
        answer = running.request()

    assert answer.archive().source("events.db")["engine"] == "live"
    assert samples.rounds > 50
    assert not samples.seen


def test_r7_one_bad_database_does_not_stop_the_others(data_dir: Path, service: StartService) -> None:
    """Archive, header and log name it; the rest is there."""
    (data_dir / "broken.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8176)
    running = service(data_dir)

    answer = running.request()

    archive = answer.archive()
    assert archive.statuses()["broken.db"] == "failed"
    assert archive.source("broken.db")["error"]["code"]
    assert archive.source("broken.db")["error"]["message"]
    assert archive.manifest["complete"] is False
    assert archive.statuses()["events.db"] == archive.statuses()["nodes.db"] == "ok"
    assert {"events.db", "nodes.db"} <= set(archive.names)
    assert answer.headers["x-backup-failed"] == "1"
    assert answer.headers["x-backup-databases"] == "2"
    wait_until("the log to name it", lambda: "broken.db" in running.log() and "incomplete" in running.log())


def test_r7_strict_makes_of_it_an_error_before_the_first_byte(data_dir: Path, service: StartService) -> None:
    """By query and by configuration: an honest status, and no ZIP."""
    (data_dir / "broken.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8176)

    by_query = service(data_dir).request("/api/backup?strict=true")
    configured = service(data_dir, {"archive": {"strict": True}})
    by_configuration = configured.request()

    for answer in (by_query, by_configuration):
        assert answer.status == 500
        assert answer.json()["code"] == "incomplete"
        assert "broken.db" in answer.json()["detail"]
        assert b"PK" not in answer.body
    assert configured.request("/api/backup?strict=false").status == 200


def test_r8_an_empty_directory_is_a_zip_with_its_version(tmp_path: Path, service: StartService) -> None:
    """Nothing to save is not an error."""
    (tmp_path / "empty").mkdir()

    archive = service(tmp_path / "empty").archive("strict=true")

    assert archive.names == ["VERSION", "MANIFEST.json", "SHA256SUMS"]
    assert archive.manifest["complete"] is True
    assert archive.manifest["sources"] == []
    assert archive.read("VERSION").endswith(b"\n")


def test_r8_a_missing_directory_is_500_and_not_one_byte_of_zip(tmp_path: Path, service: StartService) -> None:
    """A volume that was not mounted must not look like an empty one."""
    data = tmp_path / "volume"
    data.mkdir()
    running = service(data)
    data.rmdir()

    answer = running.request()

    assert answer.status == 500
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["code"] == "data_dir_missing"
    assert "volume" in answer.json()["detail"]
    assert b"PK" not in answer.body


def test_r9_a_line_per_database_and_one_per_backup_with_its_duration(
    data_dir: Path, service: StartService
) -> None:
    """What a person looks for in the journal the next morning."""
    running = service(data_dir)

    backup_id = running.request().headers["x-backup-id"]

    # Its databases' lines bear the id as well, and come before.
    wait_until("the backup's line", lambda: f"{backup_id}: complete" in running.log())
    lines = [line for line in running.log().splitlines() if "curl" not in line]
    assert [line for line in lines if "events.db" in line]
    assert [line for line in lines if "nodes.db" in line]
    summary = [line for line in lines if backup_id in line and "complete" in line]
    assert len(summary) == 1
    assert re.search(r"\d+\.\d+", summary[0].replace("127.0.0.1", ""))
    assert "warning" not in running.log().lower()


def test_r9_a_warning_when_it_took_long(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """`slow_backup_seconds` is the limit."""
    make_database(tmp_path / "data" / "events.db", rows=2000, random_bytes=1000)
    slow: Config = {"limits": {"read_bytes_per_second": 2_000_000}, "log": {"slow_backup_seconds": 0.5}}
    running = service(tmp_path / "data", slow)

    backup_id = running.request().headers["x-backup-id"]

    def warned() -> bool:
        return any(backup_id in line and "warning" in line.lower() for line in running.log().splitlines())

    wait_until("a warning with the backup's id", warned)
