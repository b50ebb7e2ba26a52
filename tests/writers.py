"""Applications that write while a backup runs, and what must hold in any copy of their databases.

`bank`: accounts whose sum is constant, each transfer one transaction, every row with its CRC.
`pair`: two databases of many tables written in step, a marker in each, in turn.
`exclusive`: holds an exclusive lock and does nothing.
`checkpoint`: checkpoints of all four kinds in random order; what it counts as commits are those.

Prints `ready`, then, when its standard input closes or SIGTERM comes, one line of JSON about what it did.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ACCOUNTS = 2000
BALANCE = 1000
PADDING = b"." * 500  # spreads the accounts over many pages, so that a mixed snapshot shows
LEDGER = 5000
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
BURST = 10  # commits as fast as they come, then a pause: what happens between two looks happens in lumps


def crc(*values: int) -> int:
    return zlib.crc32(repr(values).encode())


def create_bank(path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("BEGIN")
        db.execute("CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, balance, crc, padding)")
        db.execute(
            "CREATE TABLE IF NOT EXISTS ledger(slot INTEGER PRIMARY KEY, seq, source, target, amount, crc)"
        )
        db.execute("CREATE TABLE IF NOT EXISTS progress(commits)")
        db.execute("INSERT INTO progress SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM progress)")
        if not db.execute("SELECT count(*) FROM account").fetchone()[0]:
            rows = ((i, BALANCE, crc(i, BALANCE), PADDING) for i in range(ACCOUNTS))
            db.executemany("INSERT INTO account VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")


def transfer(db: sqlite3.Connection) -> None:
    """One transaction over two accounts, the ledger and the count of commits."""
    source, target, amount = *random.sample(range(ACCOUNTS), 2), random.randint(1, 50)
    db.execute("BEGIN IMMEDIATE")
    for account, change in ((source, -amount), (target, amount)):
        balance = db.execute("SELECT balance FROM account WHERE id = ?", (account,)).fetchone()[0] + change
        row = (balance, crc(account, balance), account)
        db.execute("UPDATE account SET balance = ?, crc = ? WHERE id = ?", row)
    seq = db.execute("UPDATE progress SET commits = commits + 1 RETURNING commits").fetchone()[0]
    entry = (seq % LEDGER, seq, source, target, amount, crc(seq, source, target, amount))
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?)", entry)
    db.execute("COMMIT")


def check_bank(path: Path) -> int:
    """The commits that a copy holds; AssertionError when it is not one moment of a whole bank."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        accounts = db.execute("SELECT id, balance, crc FROM account").fetchall()
        entries = db.execute("SELECT seq, source, target, amount, crc FROM ledger ORDER BY seq").fetchall()
        commits = int(db.execute("SELECT commits FROM progress").fetchone()[0])
    assert len(accounts) == ACCOUNTS
    assert sum(balance for _, balance, _ in accounts) == ACCOUNTS * BALANCE
    assert all(check == crc(account, balance) for account, balance, check in accounts)
    assert all(check == crc(*entry) for *entry, check in entries)
    assert [entry[0] for entry in entries] == list(range(max(1, commits - LEDGER + 1), commits + 1))
    return commits


def create_step(path: Path, mode: str, tables: int = 100) -> None:
    """One database of a pair; its many tables make the schema slow to read, as an application's is."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("BEGIN")
        for number in range(tables):
            db.execute(f"CREATE TABLE IF NOT EXISTS t{number}(a INTEGER PRIMARY KEY, b TEXT UNIQUE, c, d, e)")
        db.execute("CREATE TABLE marker(n)")
        db.execute("INSERT INTO marker VALUES (0)")
        db.execute("COMMIT")


def read_marker(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT n FROM marker").fetchone()[0])


@dataclass
class Tally:
    commits: int = 0
    busy: int = 0
    longest_seconds: float = 0.0
    seconds: float = 0.0
    failed_at: list[list[float]] = field(default_factory=list)
    """When (monotonic, from and to) it waited in vain."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Checkpoints that did not find the database busy, by kind."""


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=timeout)
    db.execute("PRAGMA synchronous=OFF")  # the disk's speed is not what is tested
    return db


@dataclass(frozen=True)
class Pace:
    """How fast a writer goes and how patient it is."""

    rate: float = 500.0
    burst: int = BURST
    timeout: float = 10.0


def _checkpoint(db: sqlite3.Connection, tally: Tally) -> None:
    kind = random.choice(CHECKPOINTS)
    if db.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()[0]:
        raise sqlite3.OperationalError("the database is locked for a checkpoint")
    tally.kinds[kind] = tally.kinds.get(kind, 0) + 1


def _work(paths: list[Path], kind: str, pace: Pace, stop: threading.Event) -> Tally:
    connections = [_connect(path, pace.timeout) for path in paths]
    tally, began = Tally(), time.monotonic()
    print("ready", flush=True)
    while not stop.is_set():
        db = connections[tally.commits % len(connections)]
        before = time.monotonic()
        try:
            if kind == "bank":
                transfer(db)
            elif kind == "checkpoint":
                _checkpoint(db, tally)
            else:
                db.execute("UPDATE marker SET n = n + 1")
            tally.commits += 1
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            tally.busy += 1
            tally.failed_at.append([before, time.monotonic()])
            if db.in_transaction:
                db.execute("ROLLBACK")
        tally.longest_seconds = max(tally.longest_seconds, time.monotonic() - before)
        due = began + (tally.commits + tally.busy) // pace.burst * pace.burst / pace.rate
        stop.wait(max(0.0, due - time.monotonic()))
    tally.seconds = time.monotonic() - began
    for db in connections:
        db.close()
    return tally


def _hold(path: Path, stop: threading.Event) -> Tally:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        print("ready", flush=True)
        stop.wait()
        db.execute("ROLLBACK")
    return Tally()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("kind", choices=("bank", "pair", "exclusive", "checkpoint"))
    arguments.add_argument("paths", nargs="+", type=Path)
    arguments.add_argument("--rate", type=float, default=500.0, help="commits a second")
    arguments.add_argument("--burst", type=int, default=BURST, help="commits without a pause between them")
    arguments.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for a lock")
    given = arguments.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    if given.kind == "exclusive":
        tally = _hold(given.paths[0], stop)
    else:
        tally = _work(given.paths, given.kind, Pace(given.rate, given.burst, given.timeout), stop)
    print(json.dumps(vars(tally)), flush=True)


class Writer:
    """One of the above as its own process, from the test's side."""

    def __init__(
        self, kind: str, *paths: Path, rate: float = 500.0, burst: float = BURST, timeout: float = 10.0
    ) -> None:
        command = [sys.executable, __file__, kind, *map(str, paths), "--rate", str(rate)]
        command += ["--burst", str(int(burst)), "--timeout", str(timeout)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> Tally:
        """What it did; AssertionError if it failed."""
        output, _ = self.process.communicate(timeout=30)  # closes its standard input
        assert self.process.returncode == 0
        fields: dict[str, Any] = json.loads(output)
        return Tally(**fields)

    def kill(self) -> None:
        """SIGKILL: a WAL or a journal is left behind as it is."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def writing(kind: str, *paths: Path, rate: float = 500.0) -> Iterator[Writer]:
    writer = Writer(kind, *paths, rate=rate)
    try:
        yield writer
    finally:
        if writer.process.returncode is None:
            writer.kill()


if __name__ == "__main__":
    main()
