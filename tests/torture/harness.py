"""What the hard cases share: loads with a minimum, the proof of an archive, and what must hold after each case.

    with under_fire(running, data) as fire, load("bank", bank, rate=300, least=100):
        path = fetch(running, tmp_path / "a.zip", "strict=true")
        prove(path, tmp_path / "out", {"bank.db": check_bank})

A load fails the test when it did less than its least: a case without its load proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Done, Service, run, tool
from processes import Samples, wait_until
from writers import Tally, Writer

MIB = 1024 * 1024
IS_FULL = os.environ.get("TORTURE") == "full"
"""Whether the cases run at their full length (TORTURE=full), not in the short form of every day."""
SIDECARS = ("-wal", "-shm", "-journal")
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


# Loads.


@dataclass
class Load:
    """A writer or checkpointer in its own process; ``tally`` is there after its block."""

    writer: Writer
    tally: Tally = field(default_factory=Tally)


@contextmanager
def load(kind: str, *paths: Path, least: int, **options: float) -> Iterator[Load]:
    """A writer of tests/writers.py for the length of the block, which must have committed at least so often.

    ``options``: ``rate`` a second, ``burst`` commits without a pause, ``timeout`` seconds of patience.
    """
    running = Load(Writer(kind, *paths, **options))
    try:
        yield running
        running.tally = running.writer.stop()
        assert running.tally.commits >= least, f"{kind} did too little to prove anything: {running.tally}"
    finally:
        if running.writer.process.returncode is None:
            running.writer.kill()


@contextmanager
def checkpoints(
    path: Path,
    *,
    least: int = 8,
    rate: float = 20.0,
    timeout: float = 1.0,
    kinds: tuple[str, ...] = CHECKPOINTS,
) -> Iterator[Load]:
    """Checkpoints in random order from another process; each of the kinds must have run at least once.

    ``timeout`` is theirs: so long one that waits for a pin keeps the writers waiting.
    """
    with load("checkpoint", path, least=least, rate=rate, timeout=timeout) as running:
        yield running
    missing = set(kinds) - set(running.tally.kinds)
    assert not missing, f"no checkpoint of kind {missing}: {running.tally}"


# Archives and their proof.


def curl_for(service: Service, target: Path, query: str = "", *options: str) -> list[str]:
    """A curl that fails on an error status and takes what comes at once."""
    url = service.backup_url + ("?" + query if query else "")
    return [tool("curl"), "-q", "-sSfN", "--noproxy", "*", *options, "-o", str(target), url]


def fetch(service: Service, target: Path, query: str = "", *options: str, seconds: float = 120) -> Path:
    """A whole transfer by curl."""
    done = run(*curl_for(service, target, query, *options), seconds=seconds)
    assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr}{service.log()[-2000:]}"
    return target


def prove(
    archive: Path,
    out: Path,
    invariants: Mapping[str, Callable[[Path], Any]] | None = None,
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """The manifest of an archive that holds: AssertionError at the first proof that fails.

    unzip's own test, SHA256SUMS by sha256sum, SQLite's integrity check of every database, the given invariants by
    name; ``strict``: nothing failed.
    """

    def good(done: Done) -> None:
        assert done.returncode == 0, f"{done.args}: {done.stdout[-1000:]}{done.stderr[-1000:]}"

    good(run(tool("unzip"), "-tqq", archive))
    good(run(tool("unzip"), "-qo", archive, "-d", out))
    good(run(tool("sha256sum"), "--strict", "--quiet", "-c", "SHA256SUMS", cwd=out))
    manifest: dict[str, Any] = json.loads((out / "MANIFEST.json").read_text())
    failed = {s["name"]: s["error"] for s in manifest["sources"] if s["status"] == "failed"}
    assert manifest["complete"] == (not failed), (
        f"complete is {manifest['complete']}, and failed are: {failed}"
    )
    assert not (strict and failed), f"strict, and yet: {failed}"
    for source in manifest["sources"]:
        if source["kind"] == "database" and source["status"] == "ok":
            assert integrity(out / source["name"]) == ["ok"], source
    for name, check in (invariants or {}).items():
        check(out / name)
    return manifest


def integrity(path: Path) -> list[str]:
    """What SQLite finds wrong with a copy."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("PRAGMA integrity_check")]


# What the kernel knows of a service.


def descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def status_field(pid: int, name: str) -> int:
    """A number of /proc/PID/status: `Threads`, `VmRSS` (in KiB), `VmHWM` (in KiB); 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def memory_bytes(pid: int) -> int:
    return status_field(pid, "VmRSS") * 1024


def locks_below(folder: Path, pids: list[int]) -> list[str]:
    """The kernel's locks of these processes on files of this folder, as `TYPE KIND PID FILE FROM TO`."""
    inodes = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            inodes[str(path.lstat().st_ino)] = path.name
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[4] in map(str, pids) and (name := inodes.get(words[5].split(":")[2])):
            found.append(f"{words[1]} {words[3]} {words[4]} {name} {words[6]} {words[7]}")
    return found


def listing(folder: Path) -> set[str]:
    """All names below it but the sidecars that a database's own application makes."""
    names = (os.fsdecode(os.path.relpath(path, folder)) for path in folder.rglob("*"))
    return {name for name in names if not name.endswith(SIDECARS)}


# What must hold after every case.


@dataclass
class Fire:
    """What was measured of a case; complete after its block."""

    latency: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When a reader was alive (monotonic seconds): what a writer waits for outside of them is not our doing."""
    peak_reader_bytes: int = 0

    def explains(self, begin: float, end: float) -> bool:
        """Whether a reader was alive at some moment of this span."""
        return any(first <= end and begin <= last for first, last in self.spans)


@contextmanager
def under_fire(
    service: Service,
    data_dir: Path,
    *,
    next_query: str | None = "strict=true",
    p99_seconds: float | None = 0.1,
    endpoint: str = "/healthz",
    keeps_listing: bool = True,
    growth_bytes: int = 32 * MIB,
) -> Iterator[Fire]:
    """The block is a case. Afterwards: no reader, no lock of ours, the service's descriptors and memory as before,
    the listing unchanged but for sidecars, the next backup good, another endpoint's p99 below the limit meanwhile.

    A service that the case has ended is judged by what it left. None for ``next_query`` or ``p99_seconds`` leaves
    out that check. That backup is also taken first, so that what a first one costs once is not counted.
    """
    fire = Fire()
    if next_query is not None:
        service.archive(next_query)
    wait_until("the warm-up's reader to end", lambda: not service.readers())
    stood = descriptors(service.pid), memory_bytes(service.pid), listing(data_dir)
    locked = locks_below(data_dir, service.marked())

    def sample() -> list[int]:
        now = time.monotonic()
        if pids := service.readers():
            if fire.spans and now - fire.spans[-1][1] < 0.1:
                fire.spans[-1] = (fire.spans[-1][0], now)
            else:
                fire.spans.append((now - 0.1, now))
        fire.peak_reader_bytes = max(
            [fire.peak_reader_bytes, *(status_field(p, "VmHWM") * 1024 for p in pids)]
        )
        return []

    with probing(service, endpoint if p99_seconds is not None else "", fire), Samples(sample):
        yield fire
    if service.process.poll() is not None:
        service.assert_nothing_left()
        assert not keeps_listing or listing(data_dir) == stood[2]
        return
    wait_until("the readers to end", lambda: not service.readers(), 5)
    wait_until("the locks to be as they were", lambda: locks_below(data_dir, service.marked()) == locked, 2)
    wait_until("its descriptors to be closed", lambda: descriptors(service.pid) <= stood[0], 3)
    grown = memory_bytes(service.pid) - stood[1]
    assert grown < growth_bytes, f"the service grew by {grown} bytes"
    if keeps_listing:
        assert listing(data_dir) == stood[2]
    if next_query is not None:
        archive = service.archive(next_query)
        assert archive.zip.testzip() is None
        assert archive.manifest["complete"]
    if p99_seconds is not None:
        assert fire.latency["count"] >= 3, f"the case was too short to measure: {fire.latency}"
        assert fire.latency["failed"] == 0, fire.latency
        assert fire.latency["p99"] < p99_seconds, str(fire.latency)


@contextmanager
def probing(service: Service, endpoint: str, fire: Fire) -> Iterator[None]:
    if not endpoint:
        yield
        return
    prober_py = Path(__file__).with_name("prober.py")
    command = [sys.executable, str(prober_py), endpoint, str(service.port), str(service.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as prober:
        try:
            assert prober.stdout is not None
            assert prober.stdout.readline() == "ready\n"
            yield
            fire.latency |= json.loads(prober.communicate(timeout=40)[0])
        finally:
            prober.kill()
