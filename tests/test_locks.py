"""The service process opens nothing of the application's: a lock held in it survives a whole backup (FACTS 1)."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from harness import Config, MakeDatabase, Service, StartService, hosting
from processes import Samples, open_paths, wait_until

SLOW: Config = {"limits": {"read_bytes_per_second": 6_000_000}}


def another_process_can_write(path: Path) -> bool:
    """Whether somebody else gets the write lock; this test is the other process."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        db.execute("ROLLBACK")
        return True


def locked_by(pid: int, folder: Path) -> list[str]:
    """The locks on files of this folder that the kernel counts as this process's."""
    inodes = {str(path.stat().st_ino) for path in folder.rglob("*")}
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    return sorted(
        " ".join(line[1:]) for line in lines if line[4] == str(pid) and line[5].split(":")[2] in inodes
    )


@pytest.fixture
def slow_dir(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """Both journal modes, a version file, a drawing: about a second at the slow rate."""
    data = tmp_path / "data"
    make_database(data / "wal.db", rows=6000, random_bytes=900)
    make_database(data / "rollback.db", journal="delete", rows=1000, random_bytes=900)
    (data / "floor_plan").mkdir()
    (data / "floor_plan" / "ground.svg").write_text("<svg/>\n")
    (data / "app-version").write_text("1.0\n")
    return data


@pytest.mark.parametrize("query", ["?check=full&strict=true", "?compression=stored"])
def test_alone_the_service_has_nothing_of_the_data_directory_open(
    query: str, slow_dir: Path, service: StartService
) -> None:
    """Sampled every few milliseconds: no descriptor, no lock, no mapping, while the reader has all of them."""
    running = service(slow_dir, {**SLOW, "data": {"version_file": "app-version"}})
    reader_had: set[str] = set()

    def sample() -> list[str]:
        for pid in running.readers():
            reader_had.update(open_paths(pid))
        mapped = Path(f"/proc/{running.pid}/maps").read_text().splitlines()
        held = [path for path in [*open_paths(running.pid), *mapped] if str(slow_dir) in path]
        return held + locked_by(running.pid, slow_dir)

    with Samples(sample) as samples:
        archive = running.request("/api/backup" + query).archive()

    assert archive.manifest["complete"]
    assert samples.rounds > 50
    assert not samples.seen
    assert str(slow_dir / "wal.db") in reader_had


@pytest.mark.parametrize("name", ["wal.db", "rollback.db"])
@pytest.mark.parametrize("query", ["", "?compression=stored"])
def test_mounted_the_hosts_write_transaction_survives_a_backup(
    name: str, query: str, slow_dir: Path, tmp_path: Path
) -> None:
    """The host holds its lock in the process that serves the backup; nobody else gets it before the commit."""
    own = slow_dir / name
    config: Config = {**SLOW, "data": {"version_file": "app-version"}}
    with hosting(tmp_path / "host", "mothership.py", slow_dir, config, "--own", str(own)) as host:
        assert another_process_can_write(own)
        assert host.request("/hold", "POST").status == 200
        assert not another_process_can_write(own)
        locks = max((locked_by(host.pid, slow_dir) for _ in range(10)), key=len)
        assert locks

        with Samples(lambda: [another_process_can_write(own)]) as attempts:
            archive = host.request("/api/backup" + query).archive()

        assert archive.manifest["complete"]
        assert attempts.rounds > 50
        assert not any(attempts.seen)
        # The kernel gives /proc/locks in pieces: while others lock and unlock, one look may miss a line.
        assert any(locked_by(host.pid, slow_dir) == locks for _ in range(10))
        assert not another_process_can_write(own)
        assert opened_below(slow_dir, host) == []
        assert host.request("/release", "POST").status == 200
        wait_until("the lock to be free", lambda: another_process_can_write(own))
        assert archive.read("VERSION") == b"1.0\n"


@pytest.mark.parametrize(
    "target", ["/api/backup?strict=true", "/api/backup?database=none*", "/api/databases"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_mounted_no_request_opens_or_lists_the_data_directory(
    target: str, method: str, slow_dir: Path, tmp_path: Path
) -> None:
    """Python's own audit events, in the host's process."""
    with hosting(tmp_path / "host", "mothership.py", slow_dir, None) as host:
        host.request(target, method)

        assert opened_below(slow_dir, host) == []


def opened_below(folder: Path, host: Service) -> list[str]:
    """What the audit hook saw of this folder since the host held its lock, or since it started."""
    opened = host.request("/opened").json()["opened"]
    return [line for line in opened if str(folder) in line]
