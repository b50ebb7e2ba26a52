"""One thing grows at a time: a database, the number of them, the number of files, the backups at once.

Time is to grow as what is read does, memory is not to grow; each point is one run, its memory watched.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.databases import in_use, make_files, make_many, make_sensors
from benchmarks.measure import PeakMemory, end_curl, start_curl
from harness import Service, serving

QUERY = "/api/backup?strict=true&check=none"
STEPS = 4  # an eighth, a quarter, half, and the whole


@dataclass(frozen=True)
class Scale:
    """How far each goes."""

    size_mb: int = 8000
    databases: int = 5000
    files: int = 70_000
    at_once: int = 8


@dataclass(frozen=True)
class Point:
    """One point of a curve; of several backups at once: the last one's seconds, all their bytes."""

    name: str
    source_bytes: int
    seconds: float
    first_byte_seconds: float
    archive_bytes: int
    peak_bytes: int


def curves(scale: Scale) -> Iterator[Point]:
    """Each point as soon as it is measured."""
    for size_mb in _steps(scale.size_mb):
        yield _measured(f"{size_mb} MB", partial(_sensors, size_mb=size_mb))
    for count in _steps(scale.databases):
        yield _measured(f"{count} databases", partial(make_many, count=count))
    for count in _steps(scale.files):
        yield _measured(f"{count} files", partial(make_files, count=count))
    for count in _steps(scale.at_once):
        yield _measured(f"{count} at once", partial(_sensors, size_mb=max(1, scale.size_mb // 8)), count)


def _steps(whole: int) -> list[int]:
    return sorted({max(1, whole >> shift) for shift in range(STEPS)})


def _sensors(folder: Path, size_mb: int) -> Path:
    make_sensors(folder / "sensors.db", size_mb)
    return folder


def _measured(name: str, make: Callable[[Path], Path], at_once: int = 1) -> Point:
    with tempfile.TemporaryDirectory(prefix="mothership-bench-scale-") as temporary:
        data = make(Path(temporary) / "data")
        config = {"limits": {"concurrent_backups": at_once}}
        with (
            in_use(next(data.glob("*.db"))),
            serving(Path(temporary) / "service", data, config) as service,
        ):
            return _point(name, service, _size_bytes(data), at_once)


def _size_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.rglob("*") if path.suffix in (".db", ".json"))


def _point(name: str, service: Service, size_bytes: int, at_once: int) -> Point:
    began = time.monotonic()
    with PeakMemory(service.pid) as memory:
        clients = [start_curl(service.url + QUERY) for _ in range(at_once)]
        transfers = [end_curl(client) for client in clients]
        seconds = time.monotonic() - began
    return Point(
        name,
        size_bytes * at_once,
        seconds,
        max(transfer.first_byte_seconds for transfer in transfers),
        sum(transfer.size_bytes for transfer in transfers),
        memory.peak_bytes,
    )
