"""What is compared: the reference, the service in three ways, stock tools, and the ceiling."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.measure import PeakMemory, Run, Transfer, Usage, children, end_curl, start_curl, wait
from harness import TESTS, Config, Service, serving
from processes import wait_until

REFERENCE = "reference"
WAYS = {
    "deflate, no check": "check=none",
    "stored, no check": "compression=stored&check=none",
    "deflate, quick check": "check=quick",
}


class Candidate(Protocol):
    @property
    def name(self) -> str: ...

    def missing(self) -> str:
        """The tool without which it cannot run, or nothing."""

    def run(self) -> Run: ...

    def peak_bytes(self) -> int:
        """The most memory it has at once; a run of its own, since looking costs time."""


@dataclass(frozen=True)
class Load:
    """One download, and what each process had to do for it."""

    transfer: Transfer
    used: Usage


@dataclass(frozen=True)
class Served:
    """A server's answer, fetched by curl; what it starts counts as its own."""

    name: str
    server: Service
    path: str

    def missing(self) -> str:
        return ""

    def fetch(self) -> Load:
        before = Usage.of(self.server.pid)
        transfer = end_curl(start_curl(self.server.url + self.path))
        wait_until("the children to be waited for", lambda: not children(self.server.pid))
        return Load(transfer, Usage.of(self.server.pid).since(before))

    def run(self) -> Run:
        load = self.fetch()
        cpu_seconds = load.used.own_cpu_seconds + load.used.children_cpu_seconds
        transfer = load.transfer
        return Run(
            transfer.seconds,
            transfer.first_byte_seconds,
            transfer.size_bytes,
            cpu_seconds,
            load.used.moved_bytes,
            load.used.calls,
        )

    def peak_bytes(self) -> int:
        with PeakMemory(self.server.pid) as memory:
            self.fetch()
        return memory.peak_bytes


@dataclass(frozen=True)
class CopyThenPack:
    """`sqlite3 .backup` into a file, then a packer of that file; its first byte comes after the copy at best."""

    name: str
    database: Path
    folder: Path
    packer: tuple[str, ...]

    def missing(self) -> str:
        return next((tool for tool in ("sqlite3", self.packer[0]) if shutil.which(tool) is None), "")

    def run(self) -> Run:
        return self._run()[0]

    def peak_bytes(self) -> int:
        return self._run(is_watched=True)[1]

    def _run(self, *, is_watched: bool = False) -> tuple[Run, int]:
        copy, archive = self.folder / "copy.db", self.folder / "archive.zip"
        copy.unlink(missing_ok=True)
        steps = (["sqlite3", str(self.database), f".backup {copy}"], [*self.packer, str(copy)])
        began, first_byte_seconds, cpu_seconds, peak = time.monotonic(), 0.0, 0.0, 0
        with archive.open("wb") as output:
            for step in steps:
                first_byte_seconds = time.monotonic() - began
                process = subprocess.Popen(step, stdout=output)
                watch = PeakMemory(process.pid) if is_watched else None
                with watch or contextlib.nullcontext():
                    used = wait(process)
                cpu_seconds += used.ru_utime + used.ru_stime
                peak = max(peak, watch.peak_bytes if watch else 0)
        seconds = time.monotonic() - began
        return Run(seconds, first_byte_seconds, archive.stat().st_size, cpu_seconds), peak


@contextlib.contextmanager
def plain_server(folder: Path, module: str, data: Path) -> Iterator[Service]:
    """One of the servers of this package, in a process of its own."""
    command = ["-m", f"benchmarks.{module}", str(data)]
    server = Service(command, folder / f"{module}.log", {"PYTHONPATH": str(TESTS)})
    try:
        yield server
    finally:
        server.kill()


def in_the_ways(service: Service) -> list[Served]:
    """The service, once for each way to ask it."""
    return [Served(name, service, f"/api/backup?strict=true&{query}") for name, query in WAYS.items()]


@contextlib.contextmanager
def candidates(folder: Path, data: Path, config: Config | None = None) -> Iterator[list[Candidate]]:
    """All of them, their servers running; the reference is the first."""
    (database,) = data.glob("*.db")
    with (
        plain_server(folder, "reference", data) as reference,
        plain_server(folder, "ceiling", data) as ceiling,
        serving(folder / "service", data, config) as service,
    ):
        yield [
            Served(REFERENCE, reference, "/"),
            *in_the_ways(service),
            CopyThenPack("sqlite3 .backup, zip -1", database, folder, ("zip", "-1", "-q", "-")),
            CopyThenPack("sqlite3 .backup, pigz -1", database, folder, ("pigz", "-1", "-c", "--zip")),
            Served("cat into a socket (ceiling)", ceiling, "/"),
        ]
