"""Case 25: minutes of load, a random fault every few seconds, and every archive that claims success is proved.

    make torture MINUTES=30        or, with the package installed, in tests/:  python -m torture.soak --minutes 30

Ends with a table, and with status 1 if an archive claimed success and was none, if memory, descriptors or a WAL
grew beyond their bounds, or if too little happened to prove anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Service, serving
from processes import wait_until
from torture.harness import MIB, descriptors, listing, locks_below, memory_bytes
from torture.nemesis import FAULTS, STALL_SECONDS, Fault, Ground
from torture.traffic import PROFILES, VICTIMS, WRITER_PATIENCE_SECONDS, Clients, Writers, committed, make_data

PERIOD_SECONDS = 5.0
WAL_GROWTH_BYTES = 48 * MIB
WAL_LIMIT_BYTES = 512 * MIB  # several snapshots may follow one another without a gap
MEMORY_GROWTH_BYTES = 24 * MIB

CONFIG: dict[str, dict[str, object]] = {
    "limits": {
        "concurrent_backups": 4,
        "stall_timeout_seconds": STALL_SECONDS,
        "max_hold_seconds": 30,
        "max_wal_growth_bytes": WAL_GROWTH_BYTES,
    }
}


@dataclass
class Row:
    """One line of the table: a fault, or a load profile."""

    runs: int = 0
    commits: int = 0
    archives: int = 0
    failures: list[str] = field(default_factory=list)
    peak_memory_bytes: int = 0
    peak_wal_bytes: int = 0


class Peaks(threading.Thread):
    """The most memory of service and readers together, and the largest WAL, since they were last taken."""

    def __init__(self, service: Service, data: Path) -> None:
        super().__init__(daemon=True)
        self._service, self._data = service, data
        self._lock = threading.Lock()
        self._memory = self._wal = 0

    def run(self) -> None:
        while True:
            memory = sum(memory_bytes(pid) for pid in [self._service.pid, *self._service.readers()])
            wal = 0
            for path in self._data.glob("*-wal"):
                with contextlib.suppress(OSError):
                    wal = max(wal, path.stat().st_size)
            with self._lock:
                self._memory, self._wal = max(self._memory, memory), max(self._wal, wal)
            time.sleep(0.1)

    def take(self) -> tuple[int, int]:
        with self._lock:
            taken, self._memory, self._wal = (self._memory, self._wal), 0, 0
            return taken


class Soak:
    def __init__(
        self, folder: Path, service: Service, data: Path, seconds: float, seed: int, faults: Sequence[Fault]
    ) -> None:
        self.rows: dict[str, Row] = {}
        self.problems: list[str] = []
        self.service, self._data, self._folder = service, data, folder
        self._seconds, self._seed = seconds, seed
        self._dice = random.Random(seed)
        self._faults = faults
        self._running: list[tuple[str, Future[None]]] = []
        self._memory_by_minute: list[int] = []

    def run(self) -> None:
        with ThreadPoolExecutor(4) as pool:  # as many as may run: what that costs once is not growth
            ways = ("strict=true", "strict=true&compression=stored", "check=full", "check=none") * 5
            wait_for_all = [pool.submit(self.service.archive, query) for query in ways]
            assert all(future.result().manifest["complete"] for future in wait_for_all)
        self._stood = self._state()
        writers = Writers(self._data)
        clients = Clients(self.service, self._folder, self._seed)
        ground = Ground(self.service, self._data, self._dice, VICTIMS, writers.kill_and_restart)
        began_commits = committed(self._data)
        try:
            with ThreadPoolExecutor(6) as pool:
                self._harm(pool, ground, writers, clients)
            writers.stop()
        finally:
            clients.stop()
            writers.kill()
        self._gather()
        self._judge(writers, clients, committed(self._data) - began_commits)

    def _harm(self, pool: ThreadPoolExecutor, ground: Ground, writers: Writers, clients: Clients) -> None:
        peaks = Peaks(self.service, self._data)
        peaks.start()
        began = time.monotonic()
        share = min(self._seconds / len(PROFILES), 120.0)
        profile, minute = "", 0
        while (elapsed := time.monotonic() - began) < self._seconds:
            wanted = list(PROFILES)[int(elapsed / share) % len(PROFILES)]
            if wanted != profile:
                writers.take_up(wanted)
                profile = wanted
            fault = self._dice.choice(self._faults)
            before = committed(self._data), clients.counts["complete"]
            self._running.append((fault.__name__, pool.submit(fault, ground)))
            time.sleep(PERIOD_SECONDS)
            after = committed(self._data), clients.counts["complete"]
            memory, wal = peaks.take()
            for name in (fault.__name__, f"load: {profile}"):
                row = self.rows.setdefault(name, Row())
                row.runs += 1
                row.commits += after[0] - before[0]
                row.archives += after[1] - before[1]
                row.peak_memory_bytes = max(row.peak_memory_bytes, memory)
                row.peak_wal_bytes = max(row.peak_wal_bytes, wal)
            if self.service.process.poll() is not None:
                raise AssertionError(f"the service ended: {self.service.log()[-2000:]}")
            if elapsed // 60 > minute:
                minute = int(elapsed // 60)
                print(f"minute {minute}: {dict(clients.counts)}, memory {memory // MIB} MiB", flush=True)
                self._memory_by_minute.append(memory_bytes(self.service.pid))

    def _gather(self) -> None:
        for name, future in self._running:
            if (error := future.exception(60)) is not None:
                self.rows[name].failures.append(f"{type(error).__name__}: {error}"[:400])

    def _state(self) -> dict[str, int]:
        """At rest."""
        wait_until("the last reader to end", lambda: not self.service.readers(), 60)
        time.sleep(1)
        pid = self.service.pid
        return {
            "memory_bytes": memory_bytes(pid),
            "descriptors": descriptors(pid),
            "locks": len(locks_below(self._data, self.service.marked())),
            "files": len(listing(self._data)),
        }

    def _judge(self, writers: Writers, clients: Clients, commits: int) -> None:
        ends = self._state()
        bad = self.problems
        bad += [f"an archive claimed success: {text}" for text in clients.invalid]
        bad += [f"{name}: {text}" for name, row in self.rows.items() for text in row.failures]
        if ends["memory_bytes"] > self._stood["memory_bytes"] + MEMORY_GROWTH_BYTES:
            bad.append("the service's memory grew")
        bad += [
            f"{name} grew" for name in ("descriptors", "locks", "files") if ends[name] > self._stood[name]
        ]
        if max(row.peak_wal_bytes for row in self.rows.values()) > WAL_LIMIT_BYTES:
            bad.append(f"a WAL grew beyond {WAL_LIMIT_BYTES // MIB} MiB")
        if "Traceback" in self.service.log():
            bad.append("a traceback in the service's log")
        if clients.counts["complete"] < self._seconds / 15 or commits < self._seconds * 20:
            bad.append("too little happened to prove anything")
        failed = sum(tally.busy for tally in writers.tallies)
        longest = max(tally.longest_seconds for tally in writers.tallies)
        if failed:
            bad.append(f"{failed} commits waited for {WRITER_PATIENCE_SECONDS:g} s in vain")
        print(
            f"\nclients: {json.dumps(clients.counts)}; archives that claimed success and were none: ", end=""
        )
        print(f"{len(clients.invalid)}\ncommits: {commits}, failed {failed}, longest {longest:.2f} s")
        print(f"the service at rest: {self._stood} at the start, {ends} at the end")
        print(f"its memory by the minute, MiB: {[value // MIB for value in self._memory_by_minute]}")


def table(rows: dict[str, Row]) -> Iterator[str]:
    head = ("case or fault", "runs", "archives", "commits", "failures", "peak MiB", "peak WAL MiB")
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for name, row in sorted(rows.items()):
        sizes = (row.peak_memory_bytes // MIB, row.peak_wal_bytes // MIB)
        values: list[Any] = [name, row.runs, row.archives, row.commits, len(row.failures), *sizes]
        yield "| " + " | ".join(map(str, values)) + " |"


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments.add_argument("--fault", action="append", choices=[fault.__name__ for fault in FAULTS])
    given = arguments.parse_args()
    faults = [fault for fault in FAULTS if not given.fault or fault.__name__ in given.fault]
    print(f"a soak of {given.minutes:g} minutes, seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mothership-soak-") as name:
        folder, data = Path(name), Path(name) / "data"
        make_data(data)
        try:
            with serving(folder / "service", data, CONFIG) as service:
                soak = Soak(folder, service, data, given.minutes * 60, given.seed, faults)
                soak.run()
        except (AssertionError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
            print(f"the soak itself failed: {error}")
            return 1
    print("\n".join(table(soak.rows)))
    for problem in soak.problems:
        print(f"PROBLEM: {problem}")
    print("failed" if soak.problems else "passed")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
