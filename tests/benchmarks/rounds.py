"""The comparison: every candidate in turn, several times, then what its bystanders notice."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.busy import Share, busy
from benchmarks.bystanders import Bystander, Latency
from benchmarks.candidates import Candidate, Load, Served, candidates
from benchmarks.databases import in_use, kept_sensors, make_sensors
from benchmarks.measure import Run
from harness import serving
from mothership_backup.config import Settings

NICE = Settings().limits.nice
SMALL_MB = 1
SMALL_RUNS = 21


@dataclass(frozen=True)
class Compared:
    """What a bystander noticed beside backups, and beside what they are held against."""

    during: Latency
    beside: Latency


@dataclass
class Row:
    """A candidate's line of the table; all medians but the peak."""

    name: str
    missing: str = ""
    seconds: float = 0.0
    times_reference: float = 0.0
    first_byte_seconds: float = 0.0
    archive_bytes: int = 0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    runs_seconds: list[float] = field(default_factory=list)
    moved_bytes: int = 0
    calls: int = 0
    endpoints: Compared | None = None
    """Other requests; beside it: nothing else runs."""
    commits: Compared | None = None
    """A writer of the same database; beside it: processes that use as much CPU."""


@dataclass(frozen=True)
class Comparison:
    size_bytes: int
    rounds: int
    rows: list[Row]
    small_seconds: float
    """The median for a data directory of 1 MB, by the defaults."""


def tell(text: str) -> None:
    """A line for who waits; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def compare(size_mb: float, rounds: int, seconds: float) -> Comparison:
    """`seconds`: how long each bystander is watched, at least."""
    data = kept_sensors(size_mb)
    database = data / "sensors.db"
    with (
        tempfile.TemporaryDirectory(prefix="mothership-bench-run-") as name,
        in_use(database),
        candidates(Path(name), data) as found,
    ):
        rows = run_all(found, rounds)
        _add_bystanders(found, rows, database, seconds)
        return Comparison(database.stat().st_size, rounds, rows, _small(Path(name)))


def run_all(found: Sequence[Candidate], rounds: int) -> list[Row]:
    """Each in turn, so that what the machine does besides hits all alike."""
    able = [candidate for candidate in found if not candidate.missing()]
    runs: dict[str, list[Run]] = {candidate.name: [] for candidate in able}
    for _ in range(rounds):
        for candidate in able:
            runs[candidate.name].append(candidate.run())
            tell(f"{candidate.name}: {runs[candidate.name][-1].seconds:.2f} s")
    rows = [_row(candidate, runs.get(candidate.name, [])) for candidate in found]
    for row in rows:
        row.times_reference = rows[0].seconds / row.seconds if row.seconds else 0.0
    return rows


def _row(candidate: Candidate, runs: list[Run]) -> Row:
    if not runs:
        return Row(candidate.name, missing=candidate.missing())
    return Row(
        candidate.name,
        seconds=statistics.median(run.seconds for run in runs),
        first_byte_seconds=statistics.median(run.first_byte_seconds for run in runs),
        archive_bytes=runs[-1].archive_bytes,
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        peak_bytes=candidate.peak_bytes(),
        runs_seconds=[run.seconds for run in runs],
        moved_bytes=runs[-1].moved_bytes,
        calls=runs[-1].calls,
    )


def _add_bystanders(found: list[Candidate], rows: list[Row], database: Path, seconds: float) -> None:
    of_service = [
        (candidate, row)
        for candidate, row in zip(found, rows, strict=True)
        if isinstance(candidate, Served) and "/api/backup" in candidate.path
    ]
    port = of_service[0][0].server.port
    with Bystander("ask", port) as idle:
        time.sleep(seconds)
    for candidate, row in of_service:
        tell(f"{candidate.name}: its bystanders")
        with Bystander("ask", port) as asking:
            list(_again_and_again(candidate, seconds))
        row.endpoints = Compared(asking.latency, idle.latency)
        with Bystander("commit", database) as writing:
            shares = _shares(list(_again_and_again(candidate, seconds)))
        with busy(shares), Bystander("commit", database) as beside_load:
            time.sleep(seconds)
        row.commits = Compared(writing.latency, beside_load.latency)


def _again_and_again(candidate: Served, seconds: float) -> Iterator[Load]:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        yield candidate.fetch()


def _shares(loads: list[Load]) -> list[Share]:
    """What the service, its reader and curl took, each of one CPU."""
    wall = sum(load.transfer.seconds for load in loads)
    service = sum(load.used.own_cpu_seconds for load in loads) / wall
    reader = sum(load.used.children_cpu_seconds for load in loads) / wall
    client = sum(load.transfer.cpu_seconds for load in loads) / wall
    return [Share(service, 0), Share(reader, NICE), Share(client, 0)]


def _small(folder: Path) -> float:
    path = make_sensors(folder / "small" / "sensors.db", SMALL_MB)
    with in_use(path), serving(folder / "small-service", path.parent) as service:
        small = Served("1 MB", service, "/api/backup?strict=true")
        small.run()
        return statistics.median(small.run().seconds for _ in range(SMALL_RUNS))
