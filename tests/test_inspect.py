"""`inspect` shows what an archive says of itself, and never as proved."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from archives import as_ours, command, invoked, manifest_for, plain_zip
from harness import MakeDatabase
from mothership_backup import __version__
from support import archive_of, execute
from test_check import add_collation, flip_a_page

NOT_VERIFIED = "not verified: its bytes were not proved, nor its databases checked; `verify` does that"


def inspected(*arguments: str | Path) -> dict[str, Any]:
    """What `--json` says of an archive that is good."""
    result = invoked("inspect", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def said(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    return [line.removeprefix("mothership-backup: ") for line in result.stderr.decode().splitlines()]


@pytest.fixture
def archive(data_dir: Path, tmp_path: Path) -> Path:
    execute(data_dir / "events.db", "PRAGMA user_version=7")
    return archive_of(data_dir, {"data": {"version": "9.1"}}).save(tmp_path / "a.zip")


def test_a_table_for_people(archive: Path) -> None:
    """When, of which versions, and a line for each source; that nothing is proved stays on stderr."""
    result = command("inspect", archive)

    lines = [line.split() for line in result.stdout.decode().splitlines()]
    assert result.returncode == 0
    assert " ".join(lines[0]).endswith(", complete, of one exact instant")
    assert lines[1][:2] == ["taken", "at"]
    assert " ".join(lines[2]) == f"application version 9.1, by mothership-backup {__version__}"
    assert lines[3] == ["name", "kind", "size", "pages", "schema", "engine", "check", "status"]
    events = next(line for line in lines if line[0] == "events.db")
    assert events[1] == "database"
    assert events[5:8] == ["x", "4096", "7"]
    assert events[-2:] == ["ok", "ok"]
    assert " ".join(lines[-1]).startswith("2 databases, ")
    assert said(result) == [f"{archive}: {NOT_VERIFIED}"]


def test_json_for_machines(archive: Path, data_dir: Path) -> None:
    """The manifest's words; verified is false, whatever was read."""
    document = inspected(archive)

    assert document["verified"] is False
    assert (document["complete"], document["app_version"]) == (True, "9.1")
    assert document["generator_version"] == __version__
    events = document["sources"][0]
    size_bytes = (data_dir / "events.db").stat().st_size
    assert (events["name"], events["status"], events["user_version"]) == ("events.db", "ok", 7)
    assert events["page_size"] * events["page_count"] == events["size_bytes"] == size_bytes
    assert events["check"] == {"verdict": "ok"}
    assert "tables" not in events


def test_from_a_pipe(archive: Path) -> None:
    """As in `curl … | mothership-backup inspect -`."""
    result = command("inspect", "-", stdin=archive.read_bytes())

    assert result.returncode == 0
    assert result.stdout.startswith(b"standard input: ")


def test_an_incomplete_backup(data_dir: Path, tmp_path: Path) -> None:
    """Exit code 3, and what is missing with its reason."""
    (data_dir / "link.db").symlink_to("events.db")
    path = archive_of(data_dir).save(tmp_path / "a.zip")

    people, machines = invoked("inspect", path), invoked("inspect", path, "--json", "--tables")

    assert (people.returncode, machines.returncode) == (3, 3)
    assert b"failed: a symbolic link is never followed" in people.stdout
    assert said(people)[-1] == f"{path}: 1 source failed when it was backed up"
    link = json.loads(machines.stdout)["sources"][-1]
    assert (link["name"], link["status"], link["error"]["code"]) == ("link.db", "failed", "symlink")
    assert not {"size_bytes", "tables"} & set(link)


def test_tables_and_their_rows(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any name; what cannot be counted says why; nothing of the schema runs, nothing is left."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with contextlib.closing(sqlite3.connect(data_dir / "nodes.db", isolation_level=None)) as db:
        db.execute('CREATE TABLE "we""ird; [x]"(a)')
        db.execute('INSERT INTO "we""ird; [x]" VALUES (1), (2)')
        db.execute("CREATE TABLE sequenced(a INTEGER PRIMARY KEY AUTOINCREMENT)")
        db.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
        db.execute("CREATE VIEW all_of_it AS SELECT * FROM reading")
    path = archive_of(data_dir).save(tmp_path / "a.zip")

    result = invoked("inspect", path, "--tables", "--json")

    tables = {source["name"]: source.get("tables") for source in json.loads(result.stdout)["sources"]}
    assert tables["events.db"] == [{"name": "reading", "rows": 1000}]
    nodes = {table["name"]: table for table in tables["nodes.db"]}
    assert {"reading", 'we"ird; [x]', "sequenced", "words"} <= set(nodes)
    assert not {"sqlite_sequence", "all_of_it"} & set(nodes)
    assert nodes["reading"]["rows"] == 200
    assert nodes['we"ird; [x]']["rows"] == 2
    assert nodes["words"] == {"name": "words", "error": "a virtual table"}
    assert tables["floor_plan/ground.svg"] is None
    assert os.listdir(tmp_path / "tmp") == []


def test_tables_in_a_table(archive: Path) -> None:
    """For people, below the sources."""
    lines = [line.split() for line in invoked("inspect", archive, "--tables").stdout.decode().splitlines()]

    begin = lines.index(["database", "table", "rows"])
    assert lines[begin + 1 : begin + 3] == [["events.db", "reading", "1000"], ["nodes.db", "reading", "200"]]


def test_tables_that_cannot_be_counted(data_dir: Path, tmp_path: Path) -> None:
    """A damaged page, a schema that is none: each with SQLite's reason, and the others are there."""
    flip_a_page(data_dir / "events.db")
    add_collation(data_dir / "nodes.db")
    with (data_dir / "nodes.db").open("r+b") as file:
        content = file.read().replace(b"CREATE TABLE named", b"CREATE TABBE named")
        file.seek(0)
        file.write(content)
    path = archive_of(data_dir, check="none").save(tmp_path / "a.zip")

    events, nodes = (source["tables"] for source in inspected(path, "--tables")["sources"][:2])

    assert events == [{"name": "reading", "error": "database disk image is malformed"}]
    assert [table["name"] for table in nodes] == [""]
    assert "malformed database schema" in nodes[0]["error"]


def test_a_plain_zip(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Without a manifest each database's own header speaks; a page count that is not marked as true is counted."""
    database = bytearray(make_database(tmp_path / "a.db", rows=50, page_size=1024).read_bytes())
    database[60:72] = struct.pack(">lLl", -5, 0, 99)
    stale = bytearray(database)
    stale[28:32], stale[92:96] = struct.pack(">L", 1), b"\xff" * 4
    wide = make_database(tmp_path / "wide.db", rows=5, page_size=65536).read_bytes()
    files = {
        "a.db": bytes(database),
        "stale.db": bytes(stale),
        "wide": wide,
        "short": wide[:99],
        "b.db": b"{}",
    }
    (tmp_path / "plain.zip").write_bytes(plain_zip(files, zipfile.ZIP_DEFLATED))

    document = inspected(tmp_path / "plain.zip", "--tables")

    assert document["has_manifest"] is False
    sources = {source["name"]: source for source in document["sources"]}
    for name in ("a.db", "stale.db"):
        known = {
            key: sources[name][key] for key in ("page_size", "page_count", "user_version", "application_id")
        }
        assert known == {
            "page_size": 1024,
            "page_count": len(database) // 1024,
            "user_version": -5,
            "application_id": 99,
        }
    assert (sources["wide"]["page_size"], sources["wide"]["kind"]) == (65536, "database")
    assert sources["a.db"]["tables"] == [{"name": "reading", "rows": 50}]
    assert (sources["short"]["kind"], sources["b.db"]["kind"]) == ("file", "file")
    assert (
        b"a plain ZIP: no manifest says what should be in it"
        in invoked("inspect", tmp_path / "plain.zip").stdout
    )


def test_a_name_is_no_order_to_a_terminal(tmp_path: Path) -> None:
    """Nor markup, nor are the manifest's texts."""
    files = {"[red]a\u202e.svg": b"<svg/>"}
    manifest = manifest_for(files, app_version="1\x1b[2J")
    (tmp_path / "a.zip").write_bytes(as_ours(files, manifest, version=b"1\x1b[2J\n"))

    result = invoked("inspect", tmp_path / "a.zip")

    assert result.returncode == 0
    assert b"[red]a\\u202e.svg" in result.stdout
    assert b"application version 1\\x1b[2J, by" in result.stdout
    assert b"\x1b" not in result.stdout


def test_what_is_not_whole(archive: Path, tmp_path: Path) -> None:
    """Exit code 4 as for verify, with the reason; 1 for what cannot be read."""
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-1])
    lie = manifest_for({"a": b"x"})
    (tmp_path / "lie.zip").write_bytes(as_ours({"a": b"xy"}, lie))

    for name, code in (("cut.zip", "malformed"), ("lie.zip", "contents")):
        result = invoked("inspect", tmp_path / name, "--json")
        assert result.returncode == 4
        assert json.loads(result.stdout)["error"]["code"] == code
        assert said(result)[0].startswith(f"{tmp_path / name}: ")
    assert invoked("inspect", tmp_path / "nowhere.zip").returncode == 1


def test_a_damaged_entry_shows_when_it_is_unpacked(archive: Path, tmp_path: Path) -> None:
    """Without `--tables` it does not: that is what is said on stderr."""
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1  # in events.db
    (tmp_path / "a.zip").write_bytes(bytes(content))

    assert invoked("inspect", tmp_path / "a.zip").returncode == 0
    assert invoked("inspect", tmp_path / "a.zip", "--tables").returncode == 4
