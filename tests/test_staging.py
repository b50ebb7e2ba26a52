"""Staging fails for one database by name, whatever goes wrong with its copy, and holds nothing afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Config, MakeDatabase
from support import archive_of

# A stager with something that happens in the middle of a copy; then it is asked what it holds.
STAGED = """
import json, os, sys, time
from mothership_backup.errors import SourceError
from mothership_backup.reader import sqlite, staging
from mothership_backup.reader.discover import Discovery
from mothership_backup.reader.instant import Pinner
from mothership_backup.reader.request import Request
from mothership_backup.reader.watch import Watch

folder, event, where = sys.argv[1:]
memory = 10**9 if where == "memory" else 0
request = Request("backup", data_dir=folder, staging_memory_bytes=memory, staging_dir="/tmp")
library = sqlite.choose_library()
(source,) = Discovery(folder, databases=["*.db"], include=[], exclude=[], only=[]).sources
watch = Watch(os.getppid())
watch.begin(request)
Pinner(request, library, watch).pin_all([source])

class Disturbed(staging.Stager):
    locked = None

    def _open_and_begin(self, source):
        self.locked = super()._open_and_begin(source)
        return self.locked

    def _look_at(self, deadline, source):
        if event == "cut":
            os.truncate(source.full_path, 4096 * 20)
        if event == "rolled back":  # as SQLite does by itself after an I/O error
            self.locked.execute("ROLLBACK")
            raise SourceError("a disk error", code="not_readable")

before = len(os.listdir("/proc/self/fd"))
stager = Disturbed(request, library, watch)
try:
    copy = stager.stage(source, None)
    told = f"{copy.size_bytes} bytes"
    stager.release(copy)
except SourceError as error:
    told = error.code
give_up = time.monotonic() + 10
while left := len(os.listdir("/proc/self/fd")) - before:  # a thread may still list the folder for staged copies
    if time.monotonic() > give_up:
        break
    time.sleep(0.01)
print(json.dumps([told, watch._copy_since, stager._memory_bytes, left]))
"""


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize(
    ("event", "told"), [("nothing", None), ("cut", "not_readable"), ("rolled back", "not_readable")]
)
def test_what_goes_wrong_with_a_copy_is_told_and_leaves_nothing(
    event: str, told: str | None, where: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """The others go on; no lock, no descriptor, no memory, and no clock of the watch is left running."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=6_000, random_bytes=500)
    size = path.stat().st_size
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", STAGED, str(path.parent), event, where]

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [told or f"{size} bytes", 0.0, 0, 0]


def test_what_a_killed_reader_left_is_removed_by_the_next(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Between a file's making and its unlinking there is a moment: an empty file, never one with a byte in it."""
    make_database(tmp_path / "data" / "a.db", journal="delete", rows=10)
    staging = tmp_path / "staging"
    staging.mkdir()
    old = ("mothership-backup-0123456789abcdef", "other-0123456789abcdef", "mothership-backup-notes.txt")
    for name in old:
        (staging / name).touch()
        os.utime(staging / name, (1, 1))
    (staging / "mothership-backup-fedcba9876543210").touch()  # another backup's, just now
    config: Config = {"snapshot": {"staging_dir": str(staging), "staging_memory_bytes": 0}}

    archive_of(tmp_path / "data", config, strict=True)

    assert set(os.listdir(staging)) == {*old[1:], "mothership-backup-fedcba9876543210"}
