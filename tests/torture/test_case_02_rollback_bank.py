"""Case 2: four rollback-journal databases under transfers, and a client at 64 KB a second.

A lock lasts as long as that database's own copy, whoever takes the archive.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import MakeDatabase, Service, StartService
from processes import Samples, wait_until
from torture.harness import IS_FULL, Load, curl_for, fetch, load, locks_below, prove, under_fire
from writers import check_bank, create_bank

MAX_LOCK_SECONDS = 4.0
NAMES = tuple(f"bank-{number}.db" for number in range(4))
MEGABYTES = (50, 100, 150, 200) if IS_FULL else (20, 5, 10, 15)
SECONDS = 60 if IS_FULL else 4
GAP_SECONDS = 0.5  # of a database that nobody locks: two looks this far apart are not one lock


class LockTimes:
    """How long the readers' locks on each database lasted, by looking at the kernel's table."""

    def __init__(self, service: Service, data: Path) -> None:
        self._service, self._data = service, data
        self._spans: dict[str, list[tuple[float, float]]] = {}

    def sample(self) -> list[str]:
        now = time.monotonic()
        for line in set(locks_below(self._data, self._service.readers())):
            spans = self._spans.setdefault(line.split()[3], [])
            if spans and now - spans[-1][1] < GAP_SECONDS:
                spans[-1] = (spans[-1][0], now)
            else:
                spans.append((now, now))
        return []

    def longest(self) -> dict[str, float]:
        return {name: max(end - begin for begin, end in spans) for name, spans in self._spans.items()}

    def last(self) -> float:
        """When the last of them was seen."""
        return max((spans[-1][1] for spans in self._spans.values()), default=0.0)


@pytest.mark.long
def test_a_writer_waits_for_its_own_copy_only(
    tmp_path: Path,
    make_database: MakeDatabase,
    service: StartService,
) -> None:
    """Whatever the client does; and both the slow client's snapshot and the quick one's are whole."""
    data = tmp_path / "data"
    for name, size in zip(NAMES, MEGABYTES, strict=True):
        make_database(data / name, journal="delete", rows=size * 1000, random_bytes=900)
        create_bank(data / name, "delete")
    running = service(data, {"snapshot": {"max_lock_seconds": MAX_LOCK_SECONDS}})
    locks = LockTimes(running, data)

    with under_fire(running, data), ExitStack() as stack:
        writers: list[Load] = [
            stack.enter_context(load("bank", data / name, rate=50, timeout=20, least=10 * SECONDS))
            for name in NAMES
        ]
        slow = subprocess.Popen(
            [*curl_for(running, tmp_path / "slow.zip", "strict=true", "--limit-rate", "64k")]
        )
        stack.callback(slow.wait)
        stack.callback(slow.kill)
        began = time.monotonic()
        with Samples(locks.sample):
            wait_until("the slow client's reader", lambda: running.readers() or slow.poll() is not None)
            time.sleep(SECONDS)  # how long the slow client reads beside the writers
        assert slow.poll() is None, "the slow client was through: nothing was proved"
        assert set(locks.longest()) == set(NAMES), "a copy was not seen: the sampler is blind"
        slow_until = time.monotonic() - began
        assert locks.last() - began < slow_until - 1, "a lock lasts as long as the slow client"
        archive = fetch(running, tmp_path / "quick.zip", "strict=true")

    for name, longest in locks.longest().items():
        assert longest < MAX_LOCK_SECONDS, name
    for writer in writers:
        assert writer.tally.busy == 0
        assert writer.tally.longest_seconds < MAX_LOCK_SECONDS + 1
    prove(archive, tmp_path / "out", dict.fromkeys(NAMES, check_bank))
