"""What each of very many small files costs in memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mothership_backup.reader.discover import Discovery
from support import backup_of

READER_MAX_BYTES = 700  # measured: 520; a whole `os.stat_result` alone has 600
SERVICE_MAX_BYTES = 850  # measured: 660; a whole `ZipInfo` alone has 360


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def make_files(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / "floor_plan" / f"folder-{number // 500}" / f"sensor-{number:05}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    return folder


def test_what_the_reader_keeps_of_a_file_is_small(tmp_path: Path) -> None:
    """It keeps all that it has found until the last is sent."""

    def kept_bytes(count: int) -> int:
        data = make_files(tmp_path / str(count), count)
        tracemalloc.clear_traces()
        discovery = Discovery(str(data), databases=(), include=("floor_plan",), exclude=(), only=())
        held_bytes = tracemalloc.get_traced_memory()[0]
        for source in discovery.sources:
            if source.fd >= 0:
                os.close(source.fd)
        assert len(discovery.sources) == count
        return held_bytes

    assert kept_bytes(4000) - kept_bytes(1000) < 3000 * READER_MAX_BYTES


def test_what_the_service_keeps_of_a_file_is_small(tmp_path: Path) -> None:
    """From the plan to the central directory, at its most."""

    def most_bytes(count: int) -> int:
        run = backup_of(make_files(tmp_path / str(count), count))
        tracemalloc.clear_traces()
        for _chunk in run.chunks():
            pass
        assert run.outcome is not None
        assert run.outcome.word == "complete"
        return tracemalloc.get_traced_memory()[1]

    most_bytes(10)  # what is made only once

    assert most_bytes(5000) - most_bytes(2000) < 3000 * SERVICE_MAX_BYTES
