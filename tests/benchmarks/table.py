"""The numbers as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.bystanders import Latency
from benchmarks.rounds import Compared, Comparison, Row
from benchmarks.scale import Point

MB = 1_000_000
MIB = 1 << 20
NONE = "-"

HEAD = (
    "",
    "MB/s",
    "ratio",
    "first byte ms",
    "archive MB",
    "peak MiB",
    "CPU s",
    "other endpoints ms (idle)",
    "commits ms (equal load)",
)
SCALE_HEAD = ("", "source MB", "seconds", "MB/s", "first byte ms", "archive MB", "peak MiB")

NOTES = """\
MB/s of the databases and their ratio to the reference: medians. The first byte as curl saw it; that of the copying
tools comes at best at the end of their copy. Peak: the proportional set size (PSS) of the server and its children,
every 20 ms in a run of its own. CPU: of the server and its children, without curl.
The last two columns: p50 / p99 / max, and in brackets without a backup: GETs of /livez and /api/status on an idle
service; commits beside processes that use as much CPU as the backup did."""


def comparison_table(comparison: Comparison) -> Iterator[str]:
    yield from _table(HEAD, (_cells(row, comparison.size_bytes) for row in comparison.rows))
    yield ""
    yield from NOTES.splitlines()
    yield ""
    yield (
        f"A data directory of 1 MB, by the defaults: {comparison.small_seconds * 1000:.0f} ms in all"
        " (the reader's start included)."
    )


def scale_table(points: Iterable[Point]) -> Iterator[str]:
    return _table(SCALE_HEAD, map(_scale_cells, points))


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for cells in lines:
        yield "| " + " | ".join(cells) + " |"


def _cells(row: Row, size_bytes: int) -> tuple[str, ...]:
    if row.missing:
        return (row.name, f"{row.missing} is not installed", *[NONE] * (len(HEAD) - 2))
    return (
        row.name,
        f"{size_bytes / MB / row.seconds:.0f}",
        f"{row.times_reference:.1f}",
        f"{row.first_byte_seconds * 1000:.0f}",
        f"{row.archive_bytes / MB:.1f}",
        f"{row.peak_bytes / MIB:.0f}",
        f"{row.cpu_seconds:.2f}",
        _compared(row.endpoints),
        _compared(row.commits),
    )


def _compared(compared: Compared | None) -> str:
    return f"{_latency(compared.during)} ({_latency(compared.beside)})" if compared else NONE


def _latency(latency: Latency) -> str:
    values = (latency.p50_seconds, latency.p99_seconds, latency.max_seconds)
    return " / ".join(f"{value * 1000:.2g}" if value < 0.01 else f"{value * 1000:.0f}" for value in values)


def _scale_cells(point: Point) -> tuple[str, ...]:
    return (
        point.name,
        f"{point.source_bytes / MB:.0f}",
        f"{point.seconds:.2f}",
        f"{point.source_bytes / MB / point.seconds:.0f}",
        f"{point.first_byte_seconds * 1000:.0f}",
        f"{point.archive_bytes / MB:.1f}",
        f"{point.peak_bytes / MIB:.0f}",
    )
