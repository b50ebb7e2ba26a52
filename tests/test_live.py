"""Real input: databases that another process writes to, that a dead one left, that nobody here wrote."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from harness import Archive, MakeDatabase, Service, StartService, run, tool
from processes import wait_until
from writers import Writer, check_bank, create_bank, create_step, read_marker, writing

COMPRESSIONS = ("deflate", "stored")


def fetch(service: Service, target: Path, query: str) -> Path:
    """By curl, as people do it; unpacked after every proof that stock tools can give."""
    archive, out = target.with_suffix(".zip"), target
    fetched = run(
        tool("curl"),
        "-q",
        "-sSf",
        "--noproxy",
        "*",
        "-o",
        archive,
        f"{service.backup_url}?strict=true&{query}",
    )
    assert fetched.returncode == 0, fetched.stderr + service.log()
    for command in (["unzip", "-tqq"], ["7z", "t"]):
        tested = run(tool(command[0]), *command[1:], archive)
        assert tested.returncode == 0, tested.stdout + tested.stderr
    assert run(tool("unzip"), "-q", archive, "-d", out).returncode == 0
    checked = run(tool("sha256sum"), "--strict", "-c", "SHA256SUMS", cwd=out)
    assert checked.returncode == 0, checked.stdout
    archive.unlink()
    return out


def integrity(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("PRAGMA integrity_check")]


@pytest.mark.parametrize(
    ("journal", "compression"),
    [
        ("wal", "deflate"),
        ("delete", "stored"),
        pytest.param("wal", "stored", marks=pytest.mark.long),
        pytest.param("delete", "deflate", marks=pytest.mark.long),
    ],
)
def test_a_bank_under_transfers_is_whole(
    journal: str, compression: str, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Several hundred commits a second from another process, over a database of sensor rows."""
    bank = make_database(tmp_path / "data" / "bank.db", journal=journal, rows=100_000)
    create_bank(bank, journal)
    running = service(bank.parent)

    with writing("bank", bank, rate=600) as writer:
        counts = [
            check_bank(fetch(running, tmp_path / f"out-{number}", f"compression={compression}") / "bank.db")
            for number in range(4)
        ]
        tally = writer.stop()

    assert counts == sorted(set(counts))
    assert tally.commits > 200 * tally.seconds, "several hundred commits a second were promised"
    assert tally.longest_seconds < 4


@pytest.mark.long
@pytest.mark.parametrize(("journal", "rows"), [("wal", 29_000_000), ("delete", 7_500_000)])
def test_a_large_bank_under_transfers_is_whole(
    journal: str, rows: int, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """In WAL mode a gigabyte, and a quarter of one with a rollback journal, in both compressions."""
    bank = make_database(tmp_path / "data" / "bank.db", journal=journal, rows=rows)
    create_bank(bank, journal)
    assert bank.stat().st_size > 34 * rows
    # A rollback-journal database of this size is staged; its lock may take long on a slow disk.
    running = service(bank.parent, {"snapshot": {"max_lock_seconds": 30}})

    with writing("bank", bank, rate=600) as writer:
        for compression in COMPRESSIONS:
            out = fetch(running, tmp_path / compression, f"compression={compression}")
            assert check_bank(out / "bank.db") > 0
            shutil.rmtree(out)
        tally = writer.stop()

    assert tally.commits > 100 * tally.seconds
    assert tally.busy == 0


def test_a_database_that_nobody_here_wrote(tmp_path: Path, service: StartService) -> None:
    """pyproj's proj.db, with its views, triggers and R-tree: the copy's rows are the original's."""
    found = importlib.util.find_spec("pyproj")
    if found is None or found.origin is None:
        if os.environ.get("CI"):
            pytest.fail("pyproj is not installed")
        pytest.skip("pyproj is not installed")
    original = next(Path(found.origin).parent.rglob("proj.db"))
    (tmp_path / "data").mkdir()
    shutil.copy(original, tmp_path / "data" / "proj.db")

    out = fetch(service(tmp_path / "data"), tmp_path / "out", "check=full")

    assert integrity(out / "proj.db") == ["ok"]
    assert dump_hash(out / "proj.db") == dump_hash(original)


def dump_hash(path: Path) -> str:
    """Of all rows of all tables."""
    digest = hashlib.sha256()
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        tables = [
            row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        ]
        for table in tables:
            for row in db.execute(f'SELECT * FROM "{table}"'):
                digest.update(repr(row).encode())
    return digest.hexdigest()


def test_a_leftover_wal_without_its_application(tmp_path: Path, service: StartService) -> None:
    """What a killed application committed is there; the files it left are not touched."""
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, "wal")
    with contextlib.closing(sqlite3.connect(bank, isolation_level=None)) as other:  # no checkpoint at its end
        other.execute("SELECT count(*) FROM account").fetchone()
        writer = Writer("bank", bank, rate=1000)
        count = "SELECT commits FROM progress"
        wait_until("300 commits", lambda: other.execute(count).fetchone()[0] >= 300)
        writer.kill()
        for name in ("bank.db", "bank.db-wal"):
            (tmp_path / name).write_bytes((tmp_path / "data" / name).read_bytes())
    for path in bank.parent.iterdir():
        path.unlink()
    for name in ("bank.db", "bank.db-wal"):
        shutil.move(tmp_path / name, bank.parent / name)
    stood = {path.name: path.read_bytes() for path in bank.parent.iterdir()}
    assert set(stood) == {"bank.db", "bank.db-wal"}

    out = fetch(service(bank.parent), tmp_path / "out", "check=full")

    assert check_bank(out / "bank.db") >= 300
    assert {name: (bank.parent / name).read_bytes() for name in stood} == stood


def test_a_hot_journal_is_a_named_failure_with_its_remedy(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Only its owner may roll it back; the bytes stay as they are, and the others are there."""
    data = tmp_path / "data"
    path = make_database(data / "crashed.db", journal="delete", rows=20_000)
    make_database(data / "good.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size=5")  # spills, so that the journal is synced and hot
        db.execute("BEGIN")
        db.execute("UPDATE reading SET value = 0")
        frozen = {p.name: p.read_bytes() for p in (path, data / "crashed.db-journal")}
        db.execute("ROLLBACK")
    for name, content in frozen.items():
        (data / name).write_bytes(content)

    archive = service(data).archive()

    assert archive.statuses() == {"crashed.db": "failed", "good.db": "ok"}
    assert "journal" in archive.source("crashed.db")["error"]["message"].lower()
    assert {name: (data / name).read_bytes() for name in frozen} == frozen


def exact_instants(service: Service, paths: list[Path], tmp_path: Path, count: int) -> None:
    """So many backups of two databases written in step: exact ones are never more than one step apart."""
    exact = 0
    with writing("pair", *paths, rate=2000) as writer:
        steps = []
        for _ in range(count):
            archive = service.archive("check=none")
            first, second = (read_marker(archive.database(path.name, tmp_path / "out")) for path in paths)
            if archive.manifest["instant"]["exact"]:
                exact += 1
                assert 0 <= first - second <= 1, archive.manifest["instant"]
            steps.append(first)
        naive = read_marker(paths[0])  # the canary: two reads one after the other are steps apart
        wait_until("the writer to go on", lambda: read_marker(paths[1]) > naive + 1)
        tally = writer.stop()

    assert exact > count / 2, f"only {exact} of {count} were exact: little was proved"
    assert steps == sorted(set(steps))
    assert tally.commits > 100 * tally.seconds


@pytest.fixture
def pair(tmp_path: Path, make_database: MakeDatabase) -> list[Path]:
    """The first and the last of fifty databases, so that their pins lie apart."""
    paths = [tmp_path / "data" / "a.db", tmp_path / "data" / "z.db"]
    paths[0].parent.mkdir()
    for path in paths:
        create_step(path, "wal")
    for number in range(48):
        make_database(tmp_path / "data" / f"m{number:02}.db", rows=1)
    return paths


def test_one_instant_for_two_databases(pair: list[Path], tmp_path: Path, service: StartService) -> None:
    """Where the manifest says `exact`, it is."""
    exact_instants(service(tmp_path / "data"), pair, tmp_path, 15)


@pytest.mark.long
def test_one_instant_in_hundreds_of_backups(pair: list[Path], tmp_path: Path, service: StartService) -> None:
    """The same, hundreds of times."""
    exact_instants(service(tmp_path / "data"), pair, tmp_path, 400)


def test_an_archive_of_two_backups_at_once_is_two_good_archives(
    tmp_path: Path, service: StartService
) -> None:
    """Two readers on one live database do not disturb each other."""
    bank = tmp_path / "data" / "bank.db"
    bank.parent.mkdir()
    create_bank(bank, "wal")
    running = service(bank.parent)

    with writing("bank", bank) as writer:
        with running.stream("/api/backup?check=full") as peer:
            second = running.archive("strict=true")
            while peer.recv(65536).find(b"PK\x05\x06") < 0:
                pass
        tally = writer.stop()

    assert check_bank(Archive(second.data).database("bank.db", tmp_path / "out")) > 0
    assert tally.busy == 0
