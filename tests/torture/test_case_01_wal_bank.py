"""Case 1: a WAL bank, two writers, checkpoints of all four kinds at random, backups back to back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness import MakeDatabase, StartService
from torture.harness import IS_FULL, MIB, checkpoints, fetch, load, prove, under_fire
from writers import check_bank, create_bank

SECONDS = 60 if IS_FULL else 6
WRITER_SECONDS = 1.0
CHECKPOINT_SECONDS = 1.5  # longer than a writer waits: a pin that a checkpoint waits for makes writers fail


@pytest.mark.long
def test_every_copy_is_one_moment_of_the_bank(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Writers fail only while a reader lives: a checkpoint that waits for its pin holds the write lock meanwhile."""
    bank = make_database(tmp_path / "data" / "bank.db", rows=20_000, random_bytes=500)
    create_bank(bank, "wal")
    running = service(bank.parent, {"limits": {"read_bytes_per_second": 4 * MIB}})
    counts: list[int] = []

    with (
        under_fire(running, bank.parent) as fire,
        load("bank", bank, rate=150, timeout=WRITER_SECONDS, least=20 * SECONDS) as first,
        load("bank", bank, rate=150, timeout=WRITER_SECONDS, least=20 * SECONDS) as second,
        checkpoints(bank, timeout=CHECKPOINT_SECONDS) as cut,
    ):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            archive = fetch(running, tmp_path / "a.zip", "strict=true&check=none")
            prove(archive, tmp_path / "out", {"bank.db": lambda path: counts.append(check_bank(path))})

    assert len(counts) >= SECONDS / 8
    assert counts == sorted(set(counts)), "each backup is later than the one before"
    assert cut.tally.busy > 0, "no checkpoint met a pin: nothing was proved"
    for begin, end in [*first.tally.failed_at, *second.tally.failed_at]:
        assert fire.explains(begin, end), "a writer failed while no reader was there"
    longest = max(first.tally.longest_seconds, second.tally.longest_seconds)
    assert longest < WRITER_SECONDS + CHECKPOINT_SECONDS
