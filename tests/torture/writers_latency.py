"""What backups cost the writers: the longest commit and the p99, backups back to back against an equal CPU load.

    python tests/torture/writers_latency.py [--seconds 20] [--megabytes 200] [--rate 100]

A table for WAL and rollback journal, each three times: alone, with as many processes that only burn CPU as a backup
keeps busy (as nice as the reader), and with backups one after the other. Commits are with synchronous=OFF: what
shows is waiting for a CPU or a lock, not the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from harness import serving  # noqa: E402  # their folder is known by now
from writers import create_bank, transfer  # noqa: E402

BURNER = "while True: sum(i * i for i in range(10_000))"


def write(path: Path, rate: float, seconds: float) -> None:
    """Commits at this rate; prints each one's seconds as JSON."""
    import sqlite3

    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA synchronous=OFF")
    took = []
    begin = time.monotonic()
    while (now := time.monotonic()) - begin < seconds:
        transfer(db)
        took.append(time.monotonic() - now)
        time.sleep(max(0.0, begin + len(took) / rate - time.monotonic()))
    print(json.dumps(took))


@contextlib.contextmanager
def burning(processes: int) -> Iterator[None]:
    """So many processes that are never idle, as nice as the reader."""
    started = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.nice(5)\n{BURNER}"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextlib.contextmanager
def backing_up(folder: Path, data: Path, count: list[int]) -> Iterator[None]:
    """Backups one after the other, each to its end, into nothing."""
    done = threading.Event()
    with serving(folder, data, {"snapshot": {"max_lock_seconds": 30}}) as service:

        def again() -> None:
            while not done.is_set():
                answer = service.request("/api/backup?strict=true")
                assert answer.status == 200, answer.body[:300]
                count[0] += 1

        thread = threading.Thread(target=again)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def measure(path: Path, rate: float, seconds: float) -> list[float]:
    command = [sys.executable, __file__, "--write", str(path), "--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took: list[float] = json.loads(done.stdout)
    return sorted(took)


def grow(path: Path, megabytes: int) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE ballast(content)")
        for _ in range(megabytes):
            db.execute("INSERT INTO ballast VALUES (randomblob(1048576))")


def row(mode: str, load: str, took: list[float], note: str = "") -> str:
    def at(share: float) -> float:
        return took[min(len(took) - 1, int(len(took) * share))] * 1000

    cells = (mode, load, str(len(took)), f"{at(0.5):.2f}", f"{at(0.99):.2f}", f"{took[-1] * 1000:.1f}", note)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--megabytes", type=int, default=200)
    arguments.add_argument("--rate", type=float, default=100)
    arguments.add_argument("--burners", type=int, default=2)
    arguments.add_argument("--write", type=Path)
    given = arguments.parse_args()
    if given.write:
        write(given.write, given.rate, given.seconds)
        return
    print(
        "| journal | beside it | commits | p50 ms | p99 ms | longest ms | backups |\n|---|---|---|---|---|---|---|"
    )
    for mode in ("wal", "delete"):
        with tempfile.TemporaryDirectory(prefix="latency-") as name:
            path = Path(name) / "data" / "bank.db"
            path.parent.mkdir()
            create_bank(path, mode)
            grow(path, given.megabytes)
            print(row(mode, "nothing", measure(path, given.rate, given.seconds)), flush=True)
            with burning(given.burners):
                print(
                    row(mode, f"{given.burners} burners", measure(path, given.rate, given.seconds)),
                    flush=True,
                )
            count = [0]
            with backing_up(Path(name) / "service", path.parent, count):
                took = measure(path, given.rate, given.seconds)
            print(row(mode, "backups", took, str(count[0])), flush=True)
    print(
        f"{os.cpu_count()} CPUs, {given.megabytes} MB, {given.rate:g} commits a second for {given.seconds:g} s each"
    )


if __name__ == "__main__":
    main()
