"""The benchmarks of tests/benchmarks run whole, at a size that proves nothing but that."""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.candidates import WAYS
from benchmarks.databases import make_files, make_many
from benchmarks.reference import write_archive
from clients import files_below
from harness import TESTS, Done, run
from support import rows

NUMBERS = ("seconds", "times_reference", "first_byte_seconds", "archive_bytes", "peak_bytes")
ROWS = 7


def bench(*arguments: str | Path) -> Done:
    done = run(sys.executable, "-m", "benchmarks", *arguments, cwd=TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.long
def test_every_candidate_has_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table and in the JSON; a tool that is not installed is named instead."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the database is not to stay

    done = bench("--size", "2", "--rounds", "1", "--seconds", "0.2", "--json", tmp_path / "bench.json")

    document = json.loads((tmp_path / "bench.json").read_text())
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + ROWS
    assert len(document["rows"]) == ROWS
    for row, line in zip(document["rows"], lines[1:], strict=True):
        assert line.startswith(f"| {row['name']} |")
        if row["missing"]:
            assert f"{row['missing']} is not installed" in line
            continue
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in NUMBERS), row
    for row in document["rows"]:
        if row["name"] in WAYS:
            assert row["endpoints"]["during"]["count"] > 0
            assert row["endpoints"]["beside"]["count"] > 0
            assert row["commits"]["during"]["count"] > 0
            assert row["commits"]["beside"]["count"] > 0
    assert document["small_seconds"] > 0


@pytest.mark.long
def test_every_curve_has_its_points(tmp_path: Path) -> None:
    """An eighth, a quarter, half and the whole of each."""
    numbers = {"--scale-size": "8", "--databases": "8", "--files": "8", "--at-once": "2"}
    words = [word for pair in numbers.items() for word in pair]

    bench("--scale", *words, "--json", tmp_path / "scale.json")

    points = json.loads((tmp_path / "scale.json").read_text())["scale"]
    assert [point["name"] for point in points] == [
        *(f"{count} {what}" for what in ("MB", "databases", "files") for count in (1, 2, 4, 8)),
        "1 at once",
        "2 at once",
    ]
    assert all(point["seconds"] > 0 and point["peak_bytes"] > 0 for point in points)


def test_the_reference_makes_good_archives(tmp_path: Path) -> None:
    """Every database whole, the files beside it: what is compared does the same work."""
    data = make_files(make_many(tmp_path / "data", 3), 2)
    names = files_below(data).keys() | {"VERSION"}
    stream = io.BytesIO()

    write_archive(data, stream)

    with zipfile.ZipFile(stream) as archive:
        archive.extractall(tmp_path / "out")
    assert files_below(tmp_path / "out").keys() == names
    assert (tmp_path / "out" / "VERSION").read_text() == "unknown\n"
    for path in (tmp_path / "out").glob("*.db"):
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        assert rows(path, "SELECT max(id) FROM reading") == rows(
            data / path.name, "SELECT max(id) FROM reading"
        )
