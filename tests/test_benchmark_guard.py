"""The service does not slip back: ratios to the reference in the same run, and bytes moved, which do not vary.

The limits of time are 40 % of what a quiet machine with two cores measured: only a large step crosses them.
What is moved and called does not depend on the machine, and its limits are close.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.candidates import REFERENCE, WAYS, Served, in_the_ways, plain_server
from benchmarks.databases import MB, in_use, make_sensors
from benchmarks.rounds import Row, run_all
from harness import serving

pytestmark = [pytest.mark.long, pytest.mark.live_engine]

SIZE_MB = 100
ROUNDS = 3
DEFLATE, STORED, CHECKED = WAYS


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """By name; the same few seconds for all of them."""
    folder = tmp_path_factory.mktemp("guard")
    path = make_sensors(folder / "data" / "sensors.db", SIZE_MB)
    with (
        in_use(path),
        plain_server(folder, "reference", path.parent) as reference,
        serving(folder / "service", path.parent) as service,
    ):
        found = [Served(REFERENCE, reference, "/"), *in_the_ways(service)]
        return {row.name: row for row in run_all(found, ROUNDS)}


@pytest.mark.parametrize(("way", "least"), [(DEFLATE, 3.0), (STORED, 4.0), (CHECKED, 2.2)])
def test_it_is_so_many_times_as_fast_as_the_reference(rows: dict[str, Row], way: str, least: float) -> None:
    """The best of each."""
    ratio = min(rows[REFERENCE].runs_seconds) / min(rows[way].runs_seconds)

    assert ratio > least


@pytest.mark.parametrize(("way", "most"), [(DEFLATE, 0.4), (STORED, 0.3), (CHECKED, 0.5)])
def test_it_takes_so_much_of_the_references_cpu_time(rows: dict[str, Row], way: str, most: float) -> None:
    """Service and reader together, to be deflated and sent."""
    share = rows[way].cpu_seconds / rows[REFERENCE].cpu_seconds

    assert share < most


@pytest.mark.parametrize(("way", "most"), [(DEFLATE, 2.0), (STORED, 3.3), (CHECKED, 4.1)])
def test_a_byte_is_read_and_written_so_often(rows: dict[str, Row], way: str, most: float) -> None:
    """Once from the database, then what is sent into the pipe and out of it; a check reads all of it again, twice."""
    moved = rows[way].moved_bytes / (SIZE_MB * MB)

    assert moved < most


@pytest.mark.parametrize(("way", "most"), [(DEFLATE, 280), (STORED, 280), (CHECKED, 820)])
def test_a_megabyte_takes_so_many_calls(rows: dict[str, Row], way: str, most: int) -> None:
    """SQLite reads page by page, 244 of 4096 bytes; everything else goes in large pieces."""
    calls = rows[way].calls / SIZE_MB

    assert calls < most


def test_a_small_backup_is_little_more_than_the_start_of_python(tmp_path: Path) -> None:
    """Twice the start of an interpreter with the modules that any reader needs; the best of each."""
    modules = "import hashlib, json, re, sqlite3, threading"
    starts, backups = [], []
    path = make_sensors(tmp_path / "data" / "sensors.db", 1)
    with in_use(path), serving(tmp_path / "service", path.parent) as service:
        small = Served("1 MB", service, "/api/backup?strict=true")
        small.run()
        for _ in range(10):
            began = time.monotonic()
            subprocess.run([sys.executable, "-I", "-S", "-c", modules], check=True)
            starts.append(time.monotonic() - began)
            backups.append(small.run().seconds)

    assert min(backups) / min(starts) < 3
