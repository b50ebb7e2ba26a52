"""Cases 13 and 14: SIGKILL of the service and of the reader at random moments; SIGSTOP of the service."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import assert_looks_failed
from harness import Config, MakeDatabase, Service, StartService, hosting, run, serving, tool
from processes import gone_within, wait_until, what_holds
from torture.harness import curl_for, load, locks_below, prove, under_fire
from writers import check_bank, create_bank

CONFIG: Config = {"limits": {"read_bytes_per_second": 8_000_000}}
SECONDS = 1.8  # what a backup of these takes, and a little less


@pytest.fixture
def banks(tmp_path: Path, make_database: MakeDatabase) -> tuple[Path, Path]:
    """One in WAL mode, with 12 MB more, and one with a rollback journal."""
    wal = make_database(tmp_path / "data" / "wal.db", rows=12_000, random_bytes=1000)
    create_bank(wal, "wal")
    create_bank(tmp_path / "data" / "rollback.db", "delete")
    return wal, tmp_path / "data" / "rollback.db"


@contextlib.contextmanager
def downloading(service: Service, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = curl_for(service, target, "check=none")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as client:
        try:
            yield client
        finally:
            client.kill()


def kill_one(service: Service, victim: str, worker: int, dice: random.Random) -> list[int]:
    """Strike; the readers, which must be gone within a second. The worker is a child too, and stays."""
    time.sleep(dice.uniform(0, SECONDS))
    readers = [pid for pid in service.readers() if pid != worker]
    if victim == "reader":
        for reader in readers:
            os.kill(reader, signal.SIGKILL)
        return readers
    service.kill()
    return readers


@pytest.mark.parametrize("rounds", [8, pytest.param(50, marks=pytest.mark.long)])
def test_killed_at_random(rounds: int, banks: tuple[Path, Path], tmp_path: Path) -> None:
    """No reader is left, no lock; the writers never notice; the next backup is good."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when this fails
    dice = random.Random(seed)
    data, struck = banks[0].parent, 0
    with (
        load("bank", banks[0], rate=100, least=20 * rounds),
        load("bank", banks[1], rate=50, least=10 * rounds),
    ):
        for number in range(rounds):
            victim = ("reader", "service", "forked")[number % 3]
            folder, target = tmp_path / str(number), tmp_path / "b.zip"
            target.unlink(missing_ok=True)
            is_mounted = victim == "forked" or number % 2
            host = (
                hosting(folder, "mothership.py", data, CONFIG)
                if is_mounted
                else serving(folder, data, CONFIG)
            )
            with host as service:
                worker = 0
                try:
                    with downloading(service, target) as client:
                        if victim == "forked":
                            worker = service.request("/fork", "POST").json()["pid"]
                        doomed = kill_one(service, victim, worker, dice)
                        for pid in doomed:
                            assert gone_within(pid, 1), (victim, number, what_holds(pid))
                        if worker:  # it has the client's socket too: only its end is the connection's
                            os.kill(worker, signal.SIGKILL)
                            worker = 0
                        status = client.wait(20)
                finally:
                    if worker:
                        os.kill(worker, signal.SIGKILL)
                if doomed and status != 0:
                    struck += 1
                    if target.exists():
                        assert_looks_failed(target.read_bytes(), target)
                elif status == 0:  # it was all sent before the stroke
                    assert run(tool("unzip"), "-tqq", target).returncode == 0
                assert not locks_below(data, doomed)
        assert struck >= rounds // 2, f"only {struck} of {rounds} met a backup"
        with serving(tmp_path / "last", data) as service:
            (tmp_path / "last.zip").write_bytes(service.archive("strict=true").data)
    prove(tmp_path / "last.zip", tmp_path / "out", {"wal.db": check_bank, "rollback.db": check_bank})


def stop_for(service: Service, seconds: float) -> None:
    os.kill(service.pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(service.pid, signal.SIGCONT)


STOPS = [3.0, pytest.param(10.0, marks=pytest.mark.long)]


@pytest.mark.parametrize("seconds", STOPS)
def test_stopped_it_goes_on(
    seconds: float, banks: tuple[Path, Path], tmp_path: Path, service: StartService
) -> None:
    """Its silence is not its reader's, nor its client's, although the stall timeout passes; writers go on meanwhile."""
    running = service(banks[0].parent, {"limits": {**CONFIG["limits"], "stall_timeout_seconds": 2}})
    target = tmp_path / "b.zip"
    with (
        under_fire(running, banks[0].parent, p99_seconds=None),
        load("bank", banks[0], rate=100, least=int(20 * seconds)),
        load("bank", banks[1], rate=50, least=int(10 * seconds)),
        downloading(running, target) as client,
    ):
        wait_until("the stream", lambda: target.exists() and target.stat().st_size > 300_000)
        stop_for(running, seconds)
        assert client.wait(30) == 0
    prove(target, tmp_path / "out", {"wal.db": check_bank, "rollback.db": check_bank})


@pytest.mark.parametrize("seconds", STOPS)
def test_stopped_for_too_long_it_is_cut(
    seconds: float, banks: tuple[Path, Path], tmp_path: Path, service: StartService
) -> None:
    """The reader counts the hold by itself, so the pin does not outlive its limit while the service stands still."""
    limits = {**CONFIG["limits"], "max_hold_seconds": 2}
    running = service(banks[0].parent, {"limits": limits | {"read_bytes_per_second": 3_000_000}})
    target = tmp_path / "b.zip"
    with (
        under_fire(running, banks[0].parent, p99_seconds=None, next_query="database=rollback.db"),
        load("bank", banks[0], rate=100, least=int(20 * seconds)),
        downloading(running, target) as client,
    ):
        wait_until("the stream", lambda: target.exists() and target.stat().st_size > 300_000)
        reader = running.reader()
        os.kill(running.pid, signal.SIGSTOP)
        try:
            assert gone_within(reader, seconds)
        finally:
            os.kill(running.pid, signal.SIGCONT)
        assert client.wait(10) not in (0, 22)
    assert_looks_failed(target.read_bytes(), target)
    wait_until("the outcome", lambda: "cut (hold)" in running.log())
