"""Case 8, what tests/test_failure.py lacks: a database that is cut off, or cannot be read, under a mounted backup."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from clients import SLOW, assert_looks_failed, curl, fetch_and
from harness import MakeDatabase, hosting, run
from processes import wait_until
from torture.faulty import IO_ERROR, Faults
from torture.harness import under_fire

HOSTS = ("--json-errors", "--one-second")
QUERIES = {"deflate": ([], ""), "stored": ([], "?compression=stored"), "1.0": (["--http1.0"], "")}


@pytest.fixture
def victim(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """24 MB that do not compress, behind another entry."""
    make_database(tmp_path / "data" / "first.db")
    return make_database(tmp_path / "data" / "victim.db", rows=24_000, random_bytes=900)


@pytest.mark.live_engine
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("host", HOSTS)
def test_truncated_in_mid_stream(host: str, query: str, victim: Path, tmp_path: Path) -> None:
    """Mounted in a host that answers every exception, or gives each handler a second; alone: test_failure.py."""
    target, (options, words) = tmp_path / "b.zip", QUERIES[query]
    with hosting(tmp_path / "host", "mothership.py", victim.parent, SLOW, host) as running:
        cut = curl(running, target, words, *options)
        status = fetch_and(lambda: os.truncate(victim, 4096 * 20), cut, target)

        assert status not in (0, 22)
        assert_looks_failed(target.read_bytes(), target)
        wait_until("the reader to be gone", lambda: not running.readers(), 2)
        assert "Traceback" not in running.log()


@pytest.mark.live_engine
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("host", HOSTS)
def test_an_io_error_at_a_page_in_mid_stream(host: str, query: str, victim: Path, tmp_path: Path) -> None:
    """The 3,000th read of 6,000; strict, so that the failure is the whole backup's. The next backup is good."""
    folder = tmp_path / "faults"
    folder.mkdir()
    faults = Faults(folder, sys.executable)
    python = ["--reader-python", str(faults.script)]
    target, (options, words) = tmp_path / "b.zip", QUERIES[query]
    strict = words + ("&" if words else "?") + "strict=true&check=none"
    with (
        hosting(tmp_path / "host", "mothership.py", victim.parent, None, host, *python) as running,
        under_fire(running, victim.parent, endpoint="/opened", p99_seconds=None),
    ):
        faults.set("pread", "victim.db", IO_ERROR, 3000)
        status = run(*curl(running, target, strict, *options)).returncode
        fired = faults.fired
        faults.clear()

        assert fired, "no read failed: nothing was proven"
        assert status not in (0, 22)
        assert_looks_failed(target.read_bytes(), target)
        assert "Traceback" not in running.log()
