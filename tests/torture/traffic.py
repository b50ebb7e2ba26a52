"""The traffic of the soak: applications that write by a profile, and people with curl who prove what they get."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

from harness import Service, run
from torture.harness import curl_for, prove
from writers import Tally, Writer, check_bank, create_bank, create_step, read_marker

WRITER_PATIENCE_SECONDS = 10.0
BANKS = ("wal-bank.db", "ledger.db")  # the first comes after the large one: a slow client keeps it pinned
PAIR = ("a.db", "z.db")
VICTIMS = ("victim-wal.db", "victim-rollback.db")

# Commits a second and without a pause, per writer.
PROFILES: dict[str, tuple[tuple[str, str, dict[str, float]], ...]] = {
    "quiet": (("bank", BANKS[0], {"rate": 20}), ("bank", BANKS[1], {"rate": 5})),
    "steady": (
        ("bank", BANKS[0], {"rate": 150}),
        ("bank", BANKS[0], {"rate": 150}),
        ("bank", BANKS[1], {"rate": 60}),
    ),
    "storms": (
        ("bank", BANKS[0], {"rate": 400, "burst": 400}),
        ("bank", BANKS[1], {"rate": 100, "burst": 50}),
        ("checkpoint", BANKS[0], {"rate": 5, "timeout": 0.5}),
    ),
}


def make_readings(path: Path, journal: str, rows: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("CREATE TABLE reading(id INTEGER PRIMARY KEY, sensor, taken, value, noise)")
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO reading SELECT i, i % 97, i * 0.5, random(), randomblob(900) FROM n",
            (rows,),
        )


def make_data(data: Path) -> None:
    (data / "floor_plan").mkdir(parents=True)
    (data / "floor_plan" / "ground.svg").write_text("<svg/>\n" * 1000)
    create_bank(data / BANKS[0], "wal")
    create_bank(data / BANKS[1], "delete")
    for name in PAIR:
        create_step(data / name, "wal", tables=5)
    make_readings(data / "sensors.db", "wal", 14_000)
    make_readings(data / VICTIMS[0], "wal", 2000)
    make_readings(data / VICTIMS[1], "delete", 2000)


def committed(data: Path) -> int:
    """By all writers since the beginning."""
    total = sum(read_marker(data / name) for name in PAIR)
    for name in BANKS:
        with contextlib.closing(sqlite3.connect(data / name, timeout=20)) as db:
            total += db.execute("SELECT commits FROM progress").fetchone()[0]
    return total


class Writers:
    """The applications of the profile that is on; the pair is written in step from beginning to end."""

    def __init__(self, data: Path) -> None:
        self.tallies: list[Tally] = []
        self._data = data
        self._lock = threading.Lock()
        self._pair = Writer(
            "pair", *(data / name for name in PAIR), rate=100, timeout=WRITER_PATIENCE_SECONDS
        )
        self._running: list[Writer] = []
        self._profile = ""

    def take_up(self, profile: str) -> None:
        with self._lock:
            self._end_running()
            self._profile = profile
            self._running = [self._start(number) for number in range(len(PROFILES[profile]))]

    def _start(self, number: int) -> Writer:
        kind, name, pace = PROFILES[self._profile][number]
        return Writer(kind, self._data / name, **({"timeout": WRITER_PATIENCE_SECONDS} | pace))

    def kill_and_restart(self) -> None:
        with self._lock:
            self._running[0].kill()
            time.sleep(1)
            self._running[0] = self._start(0)

    def _end_running(self) -> None:
        tallies = [writer.stop() for writer in self._running]
        self.tallies += [
            tally
            for tally, (kind, _, _) in zip(tallies, PROFILES.get(self._profile, ()), strict=True)
            if kind == "bank"
        ]
        self._running = []

    def stop(self) -> None:
        with self._lock:
            self._end_running()
            self.tallies.append(self._pair.stop())

    def kill(self) -> None:
        for writer in [*self._running, self._pair]:
            if writer.process.returncode is None:
                writer.kill()


class Clients:
    """People with curl, each again and again; what claims success is proved and deleted."""

    WAYS = (
        ("strict=true",),
        ("strict=true&compression=stored",),
        ("strict=true&check=full",),
        ("compression=deflate", "--limit-rate", "6M"),
        ("check=none",),
        ("strict=true&check=none", "--http1.0"),
    )

    def __init__(self, service: Service, folder: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.invalid: list[str] = []
        self._service, self._folder, self._seed = service, folder, seed
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._again_and_again, args=(n,)) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _again_and_again(self, number: int) -> None:
        dice, last = random.Random(f"{self._seed}-{number}"), 0
        folder = self._folder / f"client-{number}"
        while not self._end.wait(dice.choice((0.0, 0.0, 0.5, 2.0))):
            folder.mkdir(parents=True)
            try:
                last = self._once(folder, dice.choice(self.WAYS), last)
            except Exception as error:  # a proof may fail in any way: none may end the soak
                self.invalid.append(f"{type(error).__name__}: {error}"[:600])
                print(f"INVALID: {self.invalid[-1]}", flush=True)
            shutil.rmtree(folder)

    def _once(self, folder: Path, way: tuple[str, ...], last: int) -> int:
        query, *options = way
        archive = folder / "a.zip"
        done = run(*curl_for(self._service, archive, query, *options, "-w", "%{http_code}"), seconds=120)
        if done.returncode:
            self.counts[{"503": "refused", "500": "error status"}.get(done.stdout, "visibly cut")] += 1
            return last
        self.counts["complete"] += 1
        manifest = prove(archive, folder / "out", strict="strict" in query)
        whole = {source["name"] for source in manifest["sources"] if source["status"] == "ok"}
        assert whole.issuperset((*BANKS, *PAIR, "sensors.db", "floor_plan/ground.svg"))
        assert whole.issuperset(VICTIMS) or not manifest["complete"]
        for name in BANKS:
            commits = check_bank(folder / "out" / name)
            if name == BANKS[0]:
                assert commits >= last, f"a later backup holds {commits} commits, an earlier one {last}"
                last = commits
        first, second = (read_marker(folder / "out" / name) for name in PAIR)
        if manifest["instant"]["exact"]:
            self.counts["of one exact instant"] += 1
            assert 0 <= first - second <= 1, f"not one instant: {first}, {second}"
        return last
