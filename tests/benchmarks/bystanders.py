"""Who may not notice a backup: another client of the service, and an application that commits.

    python -m benchmarks.bystanders ask PORT          asks for /livez and /api/status in turn
    python -m benchmarks.bystanders commit DATABASE   commits a row every 5 ms

Prints `ready`, then, when its standard input closes, how many seconds each took, as JSON.
`commit` runs with synchronous=OFF: what shows is waiting for a CPU or a lock, not the disk.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import TESTS

PERIOD_SECONDS = 0.005
ENDPOINTS = ("/livez", "/api/status")
INSERT = "INSERT INTO reading(topic, taken) VALUES ('bench', ?)"


@dataclass(frozen=True)
class Latency:
    """Of all that one bystander did."""

    count: int
    p50_seconds: float
    p99_seconds: float
    max_seconds: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        ranked = sorted(seconds)

        def at(share: float) -> float:
            return ranked[min(len(ranked) - 1, int(len(ranked) * share))]

        return cls(len(ranked), at(0.5), at(0.99), ranked[-1])


class Bystander:
    """One of the above as its own process; ``latency`` is there after the block."""

    latency: Latency

    def __init__(self, what: str, whom: object) -> None:
        command = [sys.executable, "-m", "benchmarks.bystanders", what, str(whom)]
        self._process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Bystander:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        said, _none = self._process.communicate(timeout=60)  # closes its standard input
        self.latency = Latency.of(json.loads(said))


def _every_period(act: Callable[[int], object]) -> list[float]:
    print("ready", flush=True)
    took: list[float] = []
    while not select.select([0], [], [], PERIOD_SECONDS)[0]:
        began = time.monotonic()
        act(len(took))
        took.append(time.monotonic() - began)
    return took


def ask(port: int) -> list[float]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:

        def get(number: int) -> None:
            connection.request("GET", ENDPOINTS[number % len(ENDPOINTS)])
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status

        return _every_period(get)


def commit(path: Path) -> list[float]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db, _undone(db):
        return _every_period(lambda _: db.execute(INSERT, (time.time(),)))


@contextlib.contextmanager
def _undone(db: sqlite3.Connection) -> Iterator[None]:
    """The database is kept for the next run: it is not to grow."""
    db.execute("PRAGMA synchronous=OFF")
    (last,) = db.execute("SELECT max(id) FROM reading").fetchone()
    try:
        yield
    finally:
        db.execute("DELETE FROM reading WHERE id > ?", (last,))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def main() -> None:
    what, whom = sys.argv[1:]
    print(json.dumps(ask(int(whom)) if what == "ask" else commit(Path(whom))))


if __name__ == "__main__":
    main()
