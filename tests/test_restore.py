"""Restores as a person does them: what comes back, what is kept, what is refused, and that nothing else changes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archives import deflated, raw_zip, repacked
from harness import Archive, MakeDatabase, StartService, run, tool
from mothership_backup.errors import RestoreError
from mothership_backup.names import RESTORE_JOURNAL, quoted_path
from mothership_backup.restore.restore import resume
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.directory import read_directory
from restoring import COMMAND, before, command, contents, has_journal, live, restore
from support import archive_of, names_of
from test_cli import WITHOUT_PRIVILEGES
from writers import check_bank, create_bank, writing

STOPPED = ("--into-existing", "--application-is-stopped")


@pytest.fixture
def archive(tmp_path: Path, data_dir: Path) -> Path:
    return archive_of(data_dir).save(tmp_path / "a.zip")


@pytest.fixture
def new(archive: Path) -> dict[str, bytes]:
    """What the archive has of its sources."""
    made = Archive(archive.read_bytes())
    return {name: made.read(name) for name in names_of(made)}


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM reading").fetchone()[0])


# What comes back.


@pytest.mark.parametrize("exists", [False, True])
def test_into_a_new_or_an_empty_directory(
    tmp_path: Path, archive: Path, new: dict[str, bytes], exists: bool
) -> None:
    """All of it, and nothing else; not the archive's own three files."""
    target = tmp_path / "target"
    if exists:
        target.mkdir(mode=0o750)

    done = restore(archive, target)

    assert done.returncode == 0, done.stderr
    assert contents(target) == new
    assert not exists or stat.S_IMODE(target.stat().st_mode) == 0o750
    assert rows(target / "events.db") == 1000
    assert not list(tmp_path.glob(".*"))


def test_round_trip_of_a_bank_under_transfers(tmp_path: Path, service: StartService) -> None:
    """Backed up over HTTP under its writers, restored, and every invariant holds."""
    source, target = tmp_path / "data", tmp_path / "target"
    source.mkdir()
    for name, journal in (("wal.db", "wal"), ("rollback.db", "delete")):
        create_bank(source / name, journal)
    running = service(source)
    with writing("bank", source / "wal.db"), writing("bank", source / "rollback.db"):
        archive = running.archive("strict=true").save(tmp_path / "a.zip")

        done = restore(archive, target)

    assert done.returncode == 0, done.stderr
    for name in ("wal.db", "rollback.db"):
        check_bank(target / name)


def test_names_that_are_no_utf8_come_back_as_they_were(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Bytes, control characters, twins in Unicode's forms, names like the archive's own."""
    source, target = tmp_path / "data", tmp_path / "target"
    names = [
        b"caf\xe9.db",
        b"a?b#c%41.db",
        b"tab\there.db",
        b"back\\slash.db",
        "e\u0301.db".encode(),
        "\u00e9.db".encode(),
    ]
    for name in names:
        make_database(source / os.fsdecode(name), rows=10)
    (source / "floor_plan").mkdir()
    (source / "floor_plan" / os.fsdecode(b"\xff plan")).write_bytes(b"x")
    make_database(source / "VERSION.db", rows=10)
    archive = archive_of(source).save(tmp_path / "a.zip")

    done = restore(archive, target)

    assert done.returncode == 0, done.stderr
    found = {os.fsencode(name) for name in contents(target)}
    assert found == {*names, b"VERSION.db", b"floor_plan/\xff plan"}
    assert rows(target / os.fsdecode(names[0])) == 10


def test_kinds_that_are_no_databases_come_back(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Of the odd sources: what was in the archive, byte by byte, and only that."""
    data, target = tmp_path / "data", tmp_path / "target"
    make_database(data / "good.db")
    odd = {"empty.db": b"", "short.db": b"SQLite format 3" + b"x" * 21, "lines.db": b'{"id": 1}\n' * 50}
    odd["cipher.db"] = os.urandom(4096 * 8)
    for name, content in odd.items():
        (data / name).write_bytes(content)
    os.mkfifo(data / "fifo.db")
    (data / "folder.db").mkdir()
    archive = archive_of(data).save(tmp_path / "a.zip")

    done = restore(archive, target)

    assert done.returncode == 0, done.stderr
    found = contents(target)
    assert rows(target / "good.db") == 1000
    assert {name: found[name] for name in odd} == odd
    assert set(found) == {*odd, "good.db"}


def test_a_database_that_was_damaged_already(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Refused with the two ways on: its bytes may be the only ones."""
    damaged = make_database(tmp_path / "data" / "flipped.db", journal="delete", rows=5000)
    make_database(tmp_path / "data" / "good.db")
    with damaged.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xaa" * 200)
    made = archive_of(tmp_path / "data")
    archive = made.save(tmp_path / "a.zip")

    refused = restore(archive, tmp_path / "one")
    others = restore(archive, tmp_path / "two", "--only", "good.db")
    as_it_is = restore(archive, tmp_path / "three", "--check", "none")

    assert refused.returncode == 4
    assert "--check none" in refused.stderr
    assert not (tmp_path / "one").exists()
    assert (others.returncode, as_it_is.returncode) == (3, 3)
    assert set(contents(tmp_path / "two")) == {"good.db"}
    assert (tmp_path / "three" / "flipped.db").read_bytes() == made.read("flipped.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("keeper", [False, True], ids=["folder", "names"])
def test_root_gives_everything_to_its_owner(tmp_path: Path, archive: Path, keeper: bool) -> None:
    """The application's user finds its files, the folders, and what was put aside, as its own."""
    target = tmp_path / "target"
    (target / "floor_plan").mkdir(parents=True)
    (target / "events.db").write_bytes(b"old")
    for path in (target, target / "floor_plan"):
        os.chown(path, 4321, 4321)
    os.chown(target / "events.db", 4322, 4321)
    if keeper:
        (target / "mine").touch()

    assert restore(archive, target, *STOPPED).returncode == 0

    owners = {str(path.relative_to(target)): path.stat().st_uid for path in target.rglob("*")}
    assert owners.pop("events.db") == 4322
    assert owners.pop(str(next(target.glob(".before-*/events.db")).relative_to(target))) == 4322
    owners.pop("mine", None)
    assert set(owners.values()) == {4321}
    assert target.stat().st_uid == 4321


def test_modes_and_times_come_back(tmp_path: Path, data_dir: Path) -> None:
    """Of a new file: as they were, and no more open than the folder."""
    (data_dir / "nodes.db").chmod(0o640)
    (data_dir / "floor_plan" / "ground.svg").chmod(0o755)
    os.utime(data_dir / "floor_plan" / "ground.svg", (1_600_000_000, 1_600_000_000))
    archive = archive_of(data_dir).save(tmp_path / "a.zip")
    target = tmp_path / "target"
    target.mkdir(mode=0o750)

    assert restore(archive, target).returncode == 0

    assert stat.S_IMODE((target / "nodes.db").stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "floor_plan" / "ground.svg").stat().st_mode) == 0o750
    assert (target / "floor_plan" / "ground.svg").stat().st_mtime == 1_600_000_000


@pytest.mark.parametrize("keeper", [False, True], ids=["folder", "names"])
def test_into_an_existing_directory(
    tmp_path: Path, archive: Path, new: dict[str, bytes], make_database: MakeDatabase, keeper: bool
) -> None:
    """What is replaced is kept, sidecars with it; what the archive does not have stays as it is."""
    target = tmp_path / "target"
    old = {
        "events.db": make_database(tmp_path / "old.db", rows=7).read_bytes(),
        "events.db-wal": b"a WAL that would destroy the new one",
        "events.db-shm": b"x",
        "nodes.db-journal": b"a journal without its database",
        "floor_plan/ground.svg": b"old",
    }
    kept = {"settings.json": b"{}", "floor_plan/cellar.svg": b"kept"} if keeper else {}
    for name, data in (old | kept).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    (target / "events.db").chmod(0o604)

    done = restore(archive, target, *STOPPED)

    assert done.returncode == 0, done.stderr
    assert live(target) == new | kept
    assert before(target) == old
    assert str(next(target.glob(".before-restore-*"))) in done.stderr
    assert stat.S_IMODE((target / "events.db").stat().st_mode) == 0o604
    assert not has_journal(target)
    assert not list(tmp_path.glob(".target*"))


def test_twice_in_a_second(tmp_path: Path, archive: Path, new: dict[str, bytes]) -> None:
    """Each restore puts aside what it finds; the first one's stays where it is, and no backup takes it along."""
    target = tmp_path / "target"
    for _ in range(3):
        assert restore(archive, target, *STOPPED).returncode == 0

    assert live(target) == new
    assert len(list(target.glob(".before-restore-*"))) == 2
    again = archive_of(target, {"data": {"databases": ["**/*.db"], "include": ["**"]}})
    assert names_of(again) == set(new)


def test_only_what_is_asked_for(tmp_path: Path, archive: Path, new: dict[str, bytes]) -> None:
    """By patterns, as everywhere."""
    target = tmp_path / "target"

    assert restore(archive, target, "--only", "ev*", "--only", "floor_plan/**").returncode == 0

    assert set(contents(target)) == {name for name in new if name != "nodes.db"}
    none = restore(archive, tmp_path / "other", "--only", "nope")
    assert none.returncode == 1
    assert "inspect" in none.stderr
    assert not (tmp_path / "other").exists()


def test_from_standard_input(tmp_path: Path, archive: Path, new: dict[str, bytes]) -> None:
    """From a pipe, as `fetch` over SSH would bring it."""
    words = [*COMMAND, "restore", "-", str(tmp_path / "target")]
    with archive.open("rb") as stream:
        done = subprocess.run(words, stdin=stream, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "target") == new


def test_a_dry_run_writes_nothing(tmp_path: Path, archive: Path) -> None:
    """And names what it would do."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "events.db").write_bytes(b"old")
    (target / "events.db-wal").write_bytes(b"old")
    (target / "mine").write_bytes(b"mine")
    stood = contents(tmp_path)

    done = restore(archive, target, *STOPPED, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == stood
    for line in ("replace  events.db", "put aside  events.db-wal", "add  nodes.db", "keep  mine"):
        assert line in done.stdout


def test_a_link_to_the_directory_stays_one(tmp_path: Path, archive: Path, new: dict[str, bytes]) -> None:
    """What it leads to is restored into."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "target").symlink_to(tmp_path / "disk")

    assert restore(archive, tmp_path / "target").returncode == 0

    assert (tmp_path / "target").is_symlink()
    assert contents(tmp_path / "disk") == new


def test_an_incomplete_archive_is_restored_and_told(tmp_path: Path, data_dir: Path) -> None:
    """It may be the only one: exit 3, and what it lacks by name."""
    (data_dir / "lost.db").symlink_to("/nowhere")
    archive = archive_of(data_dir).save(tmp_path / "a.zip")

    done = restore(archive, tmp_path / "target")

    assert done.returncode == 3
    assert "lost.db" in done.stderr
    assert rows(tmp_path / "target" / "events.db") == 1000


def test_an_archive_from_before_this_program(tmp_path: Path, data_dir: Path) -> None:
    """A plain ZIP of databases is restored, with the sidecars that it does not say anything about put aside."""
    archive = tmp_path / "plain.zip"
    assert run(tool("zip"), "-q", archive, "events.db", "floor_plan/ground.svg", cwd=data_dir).returncode == 0
    target = tmp_path / "target"
    target.mkdir()
    (target / "events.db-wal").write_bytes(b"stale")

    done = restore(archive, target, *STOPPED)

    assert done.returncode == 0, done.stderr
    assert "no manifest" in done.stderr
    assert set(live(target)) == {"events.db", "floor_plan/ground.svg"}
    assert before(target) == {"events.db-wal": b"stale"}


# What is refused, with nothing written.


@pytest.fixture
def unchanged(tmp_path: Path) -> Iterator[Path]:
    """A directory that holds something, which must be the same at the end."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "events.db").write_bytes(b"old")
    (target / "mine").write_bytes(b"mine")
    stood = contents(target), sorted(os.listdir(target))
    yield target
    assert (contents(target), sorted(os.listdir(target))) == stood


def test_a_directory_that_is_not_empty(archive: Path, unchanged: Path) -> None:
    """Not without being told to."""
    done = restore(archive, unchanged)

    assert done.returncode == 2
    assert "--into-existing" in done.stderr


def flip(archive: Path, name: str) -> None:
    """One bit in the middle of this entry's packed bytes."""
    with open_archive(str(archive)) as opened:
        entry = next(entry for entry in read_directory(opened) if entry.name == name)
    data = bytearray(archive.read_bytes())
    data[entry.data_offset + entry.packed_bytes // 2] ^= 0x10
    archive.write_bytes(data)


@pytest.mark.parametrize("name", ["events.db", "floor_plan/ground.svg", "MANIFEST.json", "SHA256SUMS"])
def test_a_damaged_archive(archive: Path, unchanged: Path, name: str) -> None:
    """One flipped bit in an entry: it is named, and nothing was touched."""
    flip(archive, name)

    done = restore(archive, unchanged, *STOPPED)

    assert done.returncode == 4
    assert name in done.stderr


def test_what_is_damaged_and_not_asked_for_is_told(tmp_path: Path, archive: Path) -> None:
    """The rest of a rotten archive is still of use."""
    flip(archive, "nodes.db")

    done = restore(archive, tmp_path / "target", "--only", "events.db")

    assert done.returncode == 0, done.stderr
    assert "nodes.db" in done.stderr
    assert rows(tmp_path / "target" / "events.db") == 1000


def test_a_bomb(tmp_path: Path, unchanged: Path) -> None:
    """What it claims to be is all that it could ever write, and that is taken away again."""
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(raw_zip(deflated(b"events.db", bytes(64 * 1024 * 1024), both={"size": 100})))

    done = restore(bomb, unchanged, *STOPPED)

    assert done.returncode == 4
    assert "longer than the 100 bytes" in done.stderr


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "parent is a link", "parent is a file"])
def test_what_stands_in_the_way(tmp_path: Path, archive: Path, unchanged: Path, kind: str) -> None:
    """Nothing is written through a link, nothing that is no file is replaced."""
    plan = unchanged / "floor_plan"
    match kind:
        case "link":
            (unchanged / "nodes.db").symlink_to(tmp_path / "elsewhere")
        case "folder":
            (unchanged / "nodes.db").mkdir()
        case "fifo":
            os.mkfifo(unchanged / "nodes.db")
        case "parent is a link":
            plan.symlink_to(tmp_path)
        case _:
            plan.write_bytes(b"")

    done = restore(archive, unchanged, *STOPPED)

    assert done.returncode == 1
    assert "move it away first" in done.stderr
    for made in (unchanged / "nodes.db", plan):
        with contextlib.suppress(FileNotFoundError):
            made.rmdir() if made.is_dir() and not made.is_symlink() else made.unlink()


@pytest.mark.parametrize("path", ["../evil.db", "/evil.db", "a/../../evil.db", RESTORE_JOURNAL, "a//b.db"])
def test_a_manifest_that_leads_elsewhere(tmp_path: Path, data_dir: Path, unchanged: Path, path: str) -> None:
    """Its paths are as little to be trusted as its names."""

    def lie(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        manifest["sources"][0]["path"] = quoted_path(path)

    archive = tmp_path / "lying.zip"
    archive.write_bytes(repacked(archive_of(data_dir), lie))

    done = restore(archive, unchanged, *STOPPED)

    assert done.returncode == 4
    assert "evil" in done.stderr or "wants" in done.stderr
    assert not list(tmp_path.rglob("evil*"))


def test_no_room(archive: Path, tmp_path: Path) -> None:
    """Told before anything is made."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        done = restore(archive, small)

        assert done.returncode == 1
        assert "has room for" in done.stderr
        assert not list(small.iterdir())
    finally:
        run("umount", small)


def test_a_mount_point_is_restored_into_name_by_name(
    archive: Path, tmp_path: Path, new: dict[str, bytes]
) -> None:
    """As in every container: it cannot be renamed, and what a fresh volume holds counts as empty."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mounted = run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", volume)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        (volume / "lost+found").mkdir()
        done = restore(archive, volume)
        assert done.returncode == 0, done.stderr
        assert contents(volume) == new

        again = restore(archive, volume, *STOPPED)
        assert again.returncode == 0, again.stderr
        assert live(volume) == new
    finally:
        run("umount", volume)


@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="this user has no privileges to take away")
def test_without_the_right_to_write(archive: Path, unchanged: Path) -> None:
    """One line with the remedy."""
    unchanged.chmod(0o555)

    done = run(*WITHOUT_PRIVILEGES, *COMMAND, "restore", archive, unchanged, *STOPPED)

    unchanged.chmod(0o755)
    assert done.returncode == 1
    assert "as root" in done.stderr
    assert "Traceback" not in done.stderr


def test_misuse(archive: Path, tmp_path: Path) -> None:
    """Each with what is meant."""
    misused: list[list[str | Path]] = [
        [archive],
        ["--undo", archive, tmp_path],
        [archive, tmp_path, "--check", "x"],
    ]
    for words in misused:
        assert command("restore", *words).returncode == 2
    missing = restore(archive, tmp_path / "a" / "b")
    assert missing.returncode == 1
    assert "does not exist" in missing.stderr
    nothing = command("restore", "--continue", tmp_path)
    assert nothing.returncode == 1
    assert "no restore" in nothing.stderr


# Who has it open.


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_database_that_is_open_is_refused_with_who_has_it(
    archive: Path, tmp_path: Path, make_database: MakeDatabase, journal: str
) -> None:
    """Idle too, and whatever is said of the application."""
    target = make_database(tmp_path / "target" / "events.db", journal=journal).parent
    with contextlib.closing(sqlite3.connect(target / "events.db")) as db:
        assert db.execute("SELECT count(*) FROM reading").fetchone() == (1000,)
        stood = contents(target)

        done = restore(archive, target, *STOPPED)

        assert done.returncode == 1
        assert str(os.getpid()) in done.stderr
        assert contents(target) == stood
    assert restore(archive, target, *STOPPED).returncode == 0


def test_in_a_container_a_lock_still_tells(
    archive: Path, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Where no process can be seen, the kernel tells that there is one; without a lock a person has to."""
    tool("unshare")
    target = make_database(tmp_path / "target" / "events.db").parent
    words = [*COMMAND, "restore", str(archive), str(target), "--into-existing"]
    inside = ["unshare", "--pid", "--fork", "--mount-proc", *words]
    with contextlib.closing(sqlite3.connect(target / "events.db")) as db:
        db.execute("SELECT count(*) FROM reading").fetchone()
        locked = run(*inside, "--application-is-stopped")
    if "unshare" in locked.stderr:
        pytest.skip("no right to make a namespace")

    assert locked.returncode == 1
    assert "cannot be seen" in locked.stderr
    unknown = run(*inside)
    assert unknown.returncode == 2
    assert "--application-is-stopped" in unknown.stderr
    assert run(*inside, "--application-is-stopped").returncode == 0


# A journal.


def test_a_journal_keeps_backups_and_services_out(
    archive: Path, tmp_path: Path, service: StartService
) -> None:
    """`backup` and `serve` refuse and name it; a running service answers 503, and is good again afterwards."""
    target = tmp_path / "target"
    assert restore(archive, target).returncode == 0
    running = service(target)
    (target / RESTORE_JOURNAL).write_text("{}")

    for words in (["backup", "-"], ["serve", "--port", "0"], ["databases"]):
        done = command(*words, "--data-dir", target)
        assert done.returncode == (2 if words[0] == "serve" else 1)
        assert RESTORE_JOURNAL in done.stderr
        assert "--undo" in done.stderr
    answer = running.request()
    assert (answer.status, answer.json()["code"]) == (503, "data_dir_restoring")
    assert restore(archive, target, *STOPPED).returncode == 1

    (target / RESTORE_JOURNAL).unlink()
    assert running.archive().manifest["complete"]


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    """Its words are one line, and nothing is touched."""
    for text in ("", "{}", "[]", json.dumps({"format": 99}), json.dumps({"format": 1, "swaps": [1]})):
        (tmp_path / RESTORE_JOURNAL).write_text(text)

        with pytest.raises(RestoreError, match="restore-in-progress"):
            resume(tmp_path, backwards=True)
        assert (tmp_path / RESTORE_JOURNAL).read_text() == text
    done = command("restore", "--continue", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_two_restores_at_once(archive: Path, tmp_path: Path) -> None:
    """Of the same directory: one of them may be refused, and the other one's work is not thrown away."""
    target = tmp_path / "target"
    other = tmp_path / ".target.restore-20260101T000000Z"
    other.mkdir()
    with (other / "staging").open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)

        done = restore(archive, target)

        assert done.returncode == 1
        assert "another restore" in done.stderr
        assert other.is_dir()
    assert restore(archive, target).returncode == 0
    assert not other.exists()


def test_what_an_application_wrote_meanwhile_is_kept_by_undo(archive: Path, tmp_path: Path) -> None:
    """An interrupted restore, a started application, and the way back: its writes are put aside, not removed."""
    target = tmp_path / "target"
    assert restore(archive, target).returncode == 0
    mine = contents(target)
    (target / "keeper").write_text("kept")
    assert restore(archive, target, *STOPPED).returncode == 0
    kept = next(target.glob(".before-restore-*"))
    journal = {
        "format": 1, "way": "names", "archive": "a.zip", "work": ".restore-20260101T000000Z",
        "before": kept.name, "undone": ".undone-restore-20260101T000000Z", "folders": [], "is_undone": False,
        "swaps": [{"path": name, "sha256": "0" * 64, "replaces": True, "sidecars": []} for name in mine],
    }  # fmt: skip
    (target / RESTORE_JOURNAL).write_text(json.dumps(journal))

    done = command("restore", "--undo", target)

    assert done.returncode == 0, done.stderr
    assert live(target) == mine | {"keeper": b"kept"}
    assert ".undone-restore" in done.stderr
    assert contents(target / ".undone-restore-20260101T000000Z") == mine
    assert not has_journal(target)
    shutil.rmtree(target / ".undone-restore-20260101T000000Z")
