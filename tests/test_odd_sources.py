"""Names and kinds of things that stand in real data directories (HARD_CASES 18, 19 and 20)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from clients import by_7z, by_bsdtar, by_python, by_unzip, files_below
from harness import MakeDatabase, StartService, drain

ODD = [
    b"a?b.db",
    b"a#b.db",
    b"50%41.db",
    b"50A.db",
    b"sp ace .db",
    b"-rf.db",
    b"\xff\xfe.db",
    b"\xff?.db",
    b"new\nline.db",
    b"bell\x07.db",
    b"back\\slash.db",
    b"c:colon.db",
    b"quote\"'.db",
    "caf\u00e9.db".encode(),
    "cafe\u0301.db".encode(),
]


def listing(folder: Path) -> set[bytes]:
    return {os.path.join(root, name) for root, _, names in os.walk(os.fsencode(folder)) for name in names}


def composed(name: str) -> str:
    """bsdtar writes names in this form, whatever they were in the archive."""
    return unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "extract",
    [by_unzip, by_bsdtar, *(pytest.param(tool, marks=pytest.mark.long) for tool in (by_7z, by_python))],
)
def test_odd_names_arrive_with_the_right_content(
    extract: Callable[[Path, Path], None], tmp_path: Path, service: StartService
) -> None:
    """Under unique safe names inside the target, and no file appears in the data directory."""
    data, plan = tmp_path / "data", tmp_path / "data" / "floor_plan"
    plan.mkdir(parents=True)
    for name in ODD:
        with contextlib.closing(sqlite3.connect(tmp_path / "seed.db", isolation_level=None)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS name(raw)")
            db.execute("DELETE FROM name")
            db.execute("INSERT INTO name VALUES (?)", (name,))
        (data / os.fsdecode(name)).write_bytes((tmp_path / "seed.db").read_bytes())
        (plan / os.fsdecode(name[:-2] + b"svg")).write_bytes(name)
    before = listing(data)

    archive = service(data).archive("strict=true")
    extract(archive.save(tmp_path / "b.zip"), tmp_path / "out")

    files = {composed(name): path for name, path in files_below(tmp_path / "out").items()}
    assert len({composed(name).casefold() for name in archive.names}) == len(archive.names)
    assert all(name.isprintable() and ".." not in name.split("/") for name in archive.names)
    assert not [name for name in archive.names if "\\" in name or name.startswith("/")]
    drawn = sorted(path.read_bytes() for name, path in files.items() if name.startswith("floor_plan/"))
    assert drawn == sorted(ODD)
    found = []
    for source in archive.manifest["sources"]:
        if source["kind"] == "database":
            with contextlib.closing(
                sqlite3.connect(f"{files[composed(source['name'])].as_uri()}?mode=ro", uri=True)
            ) as db:
                found += [row[0] for row in db.execute("SELECT raw FROM name")]
    assert sorted(found) == sorted(ODD)
    assert listing(data) == before
    assert (
        len(list(tmp_path.iterdir())) == 5
    )  # data, seed.db, service-1, b.zip, out: nothing beside the target


def test_a_name_as_long_as_names_can_be(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """255 bytes: a sidecar's name would be too long to exist, and nothing fails because of it."""
    name = "a" * 252 + ".db"
    make_database(tmp_path / "data" / "good.db")
    make_database(tmp_path / "short.db", journal="delete").rename(tmp_path / "data" / name)

    archive = service(tmp_path / "data").archive("strict=true")

    assert archive.statuses()["good.db"] == "ok"
    database = next(source for source in archive.manifest["sources"] if source["name"] != "good.db")
    assert (database["kind"], database["status"]) == ("database", "ok")


def test_odd_kinds_are_each_named_with_their_reason(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """All in one directory: the first byte comes at once, the good ones are there, nothing is silent."""
    data = tmp_path / "data"
    make_database(data / "good.db")
    damaged = make_database(data / "flipped.db", rows=5000)
    truncated = make_database(data / "truncated.db", rows=5000)
    with damaged.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xaa" * 200)
    os.truncate(truncated, truncated.stat().st_size // 2)
    os.mkfifo(data / "fifo.db")
    (data / "folder.db").mkdir()
    (data / "empty.db").touch()
    (data / "short.db").write_bytes(b"SQLite format 3" + b"x" * 21)
    lines = "".join(json.dumps({"id": number, "type": "Router"}) + "\n" for number in range(50))
    (data / "database.db").write_text(lines)
    (data / "cipher.db").write_bytes(os.urandom(4096 * 8))
    (data / "livecipher.db").write_bytes(os.urandom(4096 * 8))
    (data / "livecipher.db-wal").write_bytes(os.urandom(4096))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(data / "socket.db"))
        running = service(data)

        asked = time.monotonic()
        with running.stream():
            first_byte_seconds = time.monotonic() - asked
        archive = running.archive()

    assert first_byte_seconds < 2
    assert archive.zip.testzip() is None
    assert archive.statuses() == {
        "cipher.db": "ok",
        "database.db": "ok",
        "empty.db": "ok",
        "fifo.db": "skipped",
        "flipped.db": "failed",
        "folder.db": "skipped",
        "good.db": "ok",
        "livecipher.db": "failed",
        "short.db": "ok",
        "socket.db": "skipped",
        "truncated.db": "failed",
    }
    assert all(s["error"]["message"] for s in archive.manifest["sources"] if s["status"] != "ok")
    assert archive.source("livecipher.db")["error"]["code"] == "encrypted_live"
    assert archive.source("flipped.db")["check"]["verdict"] == "damaged"
    assert "flipped.db" in archive.names  # its bytes may be the only ones
    assert not {"livecipher.db", "fifo.db", "socket.db"} & set(archive.names)
    assert {archive.source(n)["kind"] for n in ("empty.db", "short.db", "database.db", "cipher.db")} == {
        "file"
    }
    assert archive.read("database.db").decode() == lines
    assert archive.read("empty.db") == b""
    assert archive.manifest["complete"] is False


def test_strict_resets_when_the_check_finds_damage(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Damage shows only after the pages went out: then the stream must not end as a whole one."""
    damaged = make_database(tmp_path / "data" / "flipped.db", rows=5000)
    with damaged.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xaa" * 200)
    running = service(tmp_path / "data")

    with running.stream("/api/backup?strict=true") as peer:
        received, was_reset = drain(peer)

    assert was_reset
    assert b"PK\x05\x06" not in received
    assert not received.endswith(b"0\r\n\r\n")


def test_links_are_never_followed_and_never_silent(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Each may hide a live database: failed, by name, in strict an error."""
    data, outside = tmp_path / "data", make_database(tmp_path / "elsewhere" / "outside.db")
    make_database(data / "good.db")
    twin = make_database(data / "twin.db")
    (data / "twin-2.db").hardlink_to(twin)
    (data / "inside.db").symlink_to("good.db")
    (data / "outside.db").symlink_to(outside)
    (data / "dangling.db").symlink_to("nowhere.db")
    (data / "loop.db").symlink_to("loop.db")
    running = service(data)

    archive = running.archive()

    links = ["dangling.db", "inside.db", "loop.db", "outside.db"]
    assert archive.statuses() == dict.fromkeys([*links, "twin.db", "twin-2.db"], "failed") | {"good.db": "ok"}
    for name in links:
        assert (archive.source(name)["kind"], archive.source(name)["error"]["code"]) == ("link", "symlink")
    assert [name for name in archive.names if name.endswith(".db")] == ["good.db"]
    assert running.request("/api/backup?strict=true").status == 500


def test_what_exclude_names_is_not_wanted(
    data_dir: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """`exclude` is the remedy for a link, and works for databases, files and folders."""
    make_database(data_dir / "cache.db")
    (data_dir / "link.db").symlink_to("events.db")
    exclude = {"data": {"exclude": ["link.db", "cache.db", "floor_plan/attic"]}}

    archive = service(data_dir, exclude).archive("strict=true")

    assert archive.manifest["complete"] is True
    assert "failed" not in archive.statuses().values()
    assert not [name for name in archive.names if name.startswith(("link", "cache", "floor_plan/attic"))]
    assert "floor_plan/ground.svg" in archive.names


def test_links_in_included_folders_are_told(data_dir: Path, tmp_path: Path, service: StartService) -> None:
    """Neither a file outside nor a folder outside is drawn in through a link."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret-outside")
    (data_dir / "floor_plan" / "key").symlink_to(tmp_path / "private" / "key")
    (data_dir / "floor_plan" / "folder").symlink_to(tmp_path / "private")

    archive = service(data_dir).archive()

    assert b"secret-outside" not in b"".join(archive.read(name) for name in archive.names)
    assert archive.statuses()["floor_plan/key"] == "failed"
    assert archive.statuses()["floor_plan/folder"] == "failed"
    assert archive.manifest["complete"] is False


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sources_are_never_changed(
    mode: str, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Bytes, size, times and mode of every file stand as they stood."""
    data = tmp_path / "data"
    path = make_database(data / "a.db", journal=mode)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as live:
        live.execute("UPDATE reading SET value = 1")
        running = service(data)
        stood = {p.name: (p.read_bytes(), p.stat()) for p in data.iterdir() if not p.name.endswith("-shm")}

        running.archive("strict=true&check=full")
        running.archive("strict=true&compression=stored")

        stands = {p.name: (p.read_bytes(), p.stat()) for p in data.iterdir() if not p.name.endswith("-shm")}
        assert set(stood) == set(stands)
        for name, (content, stat) in stands.items():
            assert content == stood[name][0]
            fields = ["st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_ino"]
            if name == "a.db":  # as root, SQLite gives a WAL to its owner again, which is the same
                fields.append("st_ctime_ns")
            assert [getattr(stat, f) for f in fields] == [getattr(stood[name][1], f) for f in fields]
