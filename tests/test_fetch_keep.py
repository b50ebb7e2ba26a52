"""Only what is older, of the same pattern, and a complete archive goes; the newest good one never."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import ssl
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_servers import BadServer, whole
from harness import MakeDatabase
from mothership_backup.cli.progress import byte_progress
from mothership_backup.errors import ConfigError
from mothership_backup.fetch.fetch import Job, fetch
from mothership_backup.fetch.keep import Keep, prune
from mothership_backup.fetch.names import parse
from mothership_backup.fetch.target import Target
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.contents import read_contents
from support import archive_of
from test_cli import command, only_line

NOW = datetime(2026, 11, 24, 2, 0, 0, tzinfo=UTC)
TLS = ssl.create_default_context()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    folder = tmp_path_factory.mktemp("complete")
    make_database(folder / "a.db", rows=10)
    return archive_of(folder).data


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    folder = tmp_path_factory.mktemp("incomplete")
    make_database(folder / "a.db", rows=10)
    (folder / "link.db").symlink_to("a.db")
    return archive_of(folder).data


def dated(data: bytes, created_at: str) -> bytes:
    """The archive as of another time, whole again."""
    old = zipfile.ZipFile(io.BytesIO(data))
    manifest = json.dumps({**json.loads(old.read("MANIFEST.json")), "created_at": created_at}).encode()
    lines = old.read("SHA256SUMS").decode().splitlines(keepends=True)
    sums = "".join([*lines[:-1], f"{hashlib.sha256(manifest).hexdigest()}  MANIFEST.json\n"]).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(
                entry.filename,
                {"MANIFEST.json": manifest, "SHA256SUMS": sums}.get(entry.filename) or old.read(entry),
            )
    return target.getvalue()


def iso(days_ago: float) -> str:
    return (NOW - timedelta(days=days_ago)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Folder:
    """Archives of so many days ago, called after their days; the one of today is the new one."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._data = data
        self.told: list[str] = []
        self.add(0)

    def name(self, days_ago: float) -> str:
        return f"home-{NOW - timedelta(days=days_ago):%Y-%m-%dT%H%M%S}.zip"

    def add(self, *days_ago: float) -> None:
        for each in days_ago:
            (self.path / self.name(each)).write_bytes(dated(self._data, iso(each)))

    def write(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def prune(self, count: int | None = None, days: int | None = None) -> set[str]:
        """The names that went."""
        before = set(os.listdir(self.path))
        file = parse(str(self.path / "home-{date}T{time}.zip"), host="h", now=NOW)
        with open_archive(str(file.path)) as opened:
            claims = read_contents(opened).claims
        assert claims is not None
        removed = prune(Keep(count, days), file, claims, now=NOW, tell=self.told.append)
        gone = before - set(os.listdir(self.path))
        assert sorted(path.name for path in removed) == sorted(gone)
        return gone

    def names(self, *days_ago: float) -> set[str]:
        return {self.name(each) for each in days_ago}


@pytest.fixture
def folder(tmp_path: Path, complete: bytes) -> Folder:
    return Folder(tmp_path, complete)


def test_so_many_are_kept(folder: Folder) -> None:
    """The new one counts."""
    folder.add(1, 2, 3, 4)

    assert folder.prune(count=3) == folder.names(3, 4)


def test_one_is_the_new_one(folder: Folder) -> None:
    """Which is never removed."""
    folder.add(1)

    assert folder.prune(count=1) == folder.names(1)
    assert os.listdir(folder.path) == [folder.name(0)]


def test_those_of_so_many_days_are_kept(folder: Folder) -> None:
    """To the second."""
    folder.add(1, 2.99, 3, 3.01, 400)

    assert folder.prune(days=3) == folder.names(3.01, 400)


def test_with_both_one_reason_to_keep_is_enough(folder: Folder) -> None:
    """After a month without a backup, the last ones before it stay."""
    folder.add(1, 30, 31, 32)

    assert folder.prune(count=3, days=7) == folder.names(31, 32)
    assert folder.prune(count=1, days=31) == set()


def test_the_manifest_tells_the_age(folder: Folder) -> None:
    """Not the file's time, which a copy changes, nor its name."""
    folder.add(1, 2)
    os.utime(folder.path / folder.name(1), (0, 0))

    assert folder.prune(count=2) == folder.names(2)


def test_what_is_newer_stays(folder: Folder) -> None:
    """A clock that was wrong once: those are neither removed nor counted."""
    folder.add(-1, -2, 1, 2)

    assert folder.prune(count=2) == folder.names(2)


def test_what_is_no_complete_archive_stays(folder: Folder, complete: bytes, incomplete: bytes) -> None:
    """It is not counted either, and what is not whole is told."""
    folder.add(1, 9)
    folder.write(folder.name(2), complete[:-40])
    folder.write(folder.name(3), dated(incomplete, iso(3)))
    folder.write(folder.name(4), b"not a ZIP")
    with zipfile.ZipFile(folder.path / folder.name(5), "w") as plain:
        plain.writestr("a.db", b"")

    assert folder.prune(count=2) == folder.names(9)
    assert [line.partition(" stays, and is not counted: ")[0] for line in folder.told] == [
        str(folder.path / folder.name(4)),
        str(folder.path / folder.name(2)),
    ]


def test_what_has_another_name_stays(folder: Folder, complete: bytes) -> None:
    """Backups of somebody else, and this one's own half and incomplete ones."""
    old = dated(complete, iso(100))
    name = folder.name(100)
    others = [
        f"{name}.incomplete",
        f"{name}.part",
        f"x{name}",
        name.replace("home", "barn"),
        "home-{date}T{time}.zip",
    ]
    for other in others:
        folder.write(other, old)

    assert folder.prune(count=1) == set()


def test_what_is_no_plain_file_stays(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link, a folder, a FIFO that would block for ever."""
    elsewhere = Folder(tmp_path_factory.mktemp("elsewhere"), folder._data)
    elsewhere.add(7)
    (folder.path / folder.name(7)).symlink_to(elsewhere.path / folder.name(7))
    (folder.path / folder.name(8)).mkdir()
    os.mkfifo(folder.path / folder.name(9))

    assert folder.prune(count=1) == set()


def test_a_time_that_is_none_removes_nothing(folder: Folder, complete: bytes) -> None:
    """Of an older file, or of the new one."""
    folder.add(1, 2)
    folder.write(folder.name(3), dated(complete, "yesterday"))
    folder.write(folder.name(4), dated(complete, "2026-11-20T02:00:00"))

    assert folder.prune(count=2) == folder.names(2)

    folder.write(folder.name(0), dated(complete, "today"))
    assert folder.prune(count=1) == set()
    assert "no time can be read" in folder.told[-1]


@given(
    ages=st.sets(st.integers(1, 20), max_size=5),
    count=st.none() | st.integers(1, 4),
    days=st.none() | st.integers(1, 20),
)
def test_the_rule_for_any_ages(
    ages: set[int],
    count: int | None,
    days: int | None,
    complete: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Kept is the new one, and what either option keeps."""
    folder = Folder(tmp_path_factory.mktemp("any"), complete)
    folder.add(*ages)
    counted = sorted(ages)[: count - 1] if count is not None else []
    young = [age for age in ages if days is not None and age <= days]

    assert folder.prune(count, days) == folder.names(*(ages - set(counted) - set(young)))


class TestCommand:
    def test_after_a_good_one(self, tmp_path: Path, complete: bytes) -> None:
        """With the prefix that the answer names; told in the result."""
        for day in (1, 2, 3):
            (tmp_path / f"spaxel-2026-11-0{day}.zip").write_bytes(
                dated(complete, f"2026-11-0{day}T02:00:00Z")
            )
        (tmp_path / "other-2026-11-01.zip").write_bytes(dated(complete, "2026-11-01T02:00:00Z"))

        with BadServer(whole(complete)) as server:
            result = command("fetch", server.url, tmp_path / "{prefix}-{date}.zip", "--keep", "2")

        left = sorted(os.listdir(tmp_path))
        assert result.returncode == 0
        assert result.stderr.endswith(b", 1 database, complete, 2 older files removed\n")
        assert left[:2] == ["other-2026-11-01.zip", "spaxel-2026-11-03.zip"]
        assert len(left) == 3

    def test_an_incomplete_one_ages_nothing_out(
        self, tmp_path: Path, complete: bytes, incomplete: bytes
    ) -> None:
        """However often it comes."""
        (tmp_path / "home-2026-11-01.zip").write_bytes(dated(complete, "2026-11-01T02:00:00Z"))

        with BadServer(whole(incomplete)) as server:
            target = Target(server.url, "", TLS, 20)
            file = parse(str(tmp_path / "home-{date}.zip"), host="h", now=NOW)
            job = Job(target, file, "quick", 1, Keep(count=1), NOW)
            fetched = fetch(job, progress=byte_progress, tell=print)

        assert fetched.report.word == "incomplete"
        assert sorted(os.listdir(tmp_path)) == ["home-2026-11-01.zip", "home-2026-11-24.zip.incomplete"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_what_cannot_be_removed_is_an_error(self, tmp_path: Path, complete: bytes) -> None:
        """Else the disk fills up unnoticed: a file of somebody else, in a folder where each removes his own."""
        old = tmp_path / "home-2026-11-01.zip"
        old.write_bytes(dated(complete, "2026-11-01T02:00:00Z"))
        tmp_path.chmod(0o1777)
        for path in (old, tmp_path):
            os.chown(path, 1, 1)

        with BadServer(whole(complete)) as server:
            result = command(
                *("fetch", server.url, tmp_path / "home-{date}.zip", "--keep", "1"),
                before=("setpriv", "--bounding-set", "-fowner"),
            )

        assert result.returncode == 1
        assert re.search(
            rf"home-.*zip is there and good, but {old} cannot be removed: Operation not permitted",
            only_line(result),
        )


@pytest.mark.parametrize("keep", [Keep(count=7), Keep(days=7)])
def test_a_name_that_never_changes_is_misuse(keep: Keep) -> None:
    """There would never be an older one."""
    file = parse("{prefix}-{host}.zip", host="h", now=NOW)
    target = Target("http://127.0.0.1:9/", "", TLS, 1)

    with pytest.raises(ConfigError, match=r"put \{date\} or \{time\} into its name"):
        Job(target, file, "quick", 1, keep, NOW)
