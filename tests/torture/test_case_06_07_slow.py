"""Cases 6 and 7: clients that never read, read a byte a second, or slowly but surely."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from harness import MakeDatabase, StartService, drain
from processes import gone_within, wait_until
from torture.harness import MIB, load, under_fire
from torture.sockets import GET
from writers import create_bank

STALL_SECONDS = 2
LIMITS = {"stall_timeout_seconds": STALL_SECONDS, "buffer_bytes": 262_144, "concurrent_backups": 1}


@pytest.fixture
def bank(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """A bank beside 30 MB in the same WAL database, far more than all buffers on the way."""
    path = make_database(tmp_path / "data" / "bank.db", rows=30_000, random_bytes=1000)
    create_bank(path, "wal")
    return path


def can_be_emptied(wal_of: Path) -> bool:
    """Whether a checkpoint can empty the WAL now."""
    with contextlib.closing(sqlite3.connect(wal_of, timeout=1)) as db:
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy and os.stat(f"{wal_of}-wal").st_size == 0


def test_who_never_reads_is_cut_and_the_wal_shrinks(bank: Path, service: StartService) -> None:
    """At `stall_timeout_seconds`, plus at most 2 s."""
    running = service(bank.parent, {"limits": LIMITS})
    with under_fire(running, bank.parent), running.connect(GET.format(""), receive_bytes=65536) as peer:
        reader = running.reader()
        began = time.monotonic()
        with load("bank", bank, rate=300, least=200):
            assert gone_within(reader, STALL_SECONDS + 4)
        seconds = time.monotonic() - began
        _, was_reset = drain(peer)
        assert can_be_emptied(bank)

    assert STALL_SECONDS - 0.5 < seconds < STALL_SECONDS + 2
    assert was_reset
    wait_until("the outcome", lambda: "cut (stall)" in running.log())


def test_while_it_is_not_cut_the_pin_holds_the_wal(bank: Path, service: StartService) -> None:
    """The canary of the case above: what it sees shrink does not while a reader is there."""
    running = service(bank.parent, {"limits": LIMITS | {"stall_timeout_seconds": 30}})
    with running.connect(GET.format(""), receive_bytes=65536) as peer:
        assert peer.recv(1000)
        with load("bank", bank, rate=300, least=50):
            time.sleep(0.5)
        assert not can_be_emptied(bank)


def test_a_byte_a_second_is_stalled(bank: Path, service: StartService) -> None:
    """To the peer's kernel it takes nothing, although its socket is never quite still."""
    running = service(bank.parent, {"limits": LIMITS})
    with under_fire(running, bank.parent), running.connect(GET.format(""), receive_bytes=65536) as peer:
        reader = running.reader()
        began = time.monotonic()
        while not gone_within(reader, 1):
            with contextlib.suppress(ConnectionResetError):
                peer.recv(1)
            assert time.monotonic() - began < 10
        seconds = time.monotonic() - began

    assert seconds < STALL_SECONDS + 3  # it is looked at once a second
    wait_until("the outcome", lambda: "cut (stall)" in running.log())


@pytest.mark.parametrize(
    ("reason", "limits"),
    [("hold", {"max_hold_seconds": 8}), ("wal_growth", {"max_wal_growth_bytes": 8 * MIB})],
)
def test_eight_kilobytes_a_second_are_cut_only_for_what_they_hold(
    reason: str, limits: dict[str, int], bank: Path, service: StartService
) -> None:
    """Far longer than the stall timeout. With a small receive buffer: a large one is acknowledged in lumps.

    Seen where only the backup's own thread learned of the reader's end: the client was fed from the buffers, and had
    the slot, for 30 s after the reader had ended for the limit (with the default buffer: 9 minutes). The long form,
    with the defaults, is tests/test_clients.py, test_a_slow_client_is_not_stalled.
    """
    running = service(bank.parent, {"limits": LIMITS | limits})
    taken = 0
    with (
        under_fire(running, bank.parent),
        load("bank", bank, rate=200, least=500),
        running.connect(GET.format(""), receive_bytes=8192) as peer,
        contextlib.suppress(ConnectionResetError),
    ):
        began = time.monotonic()
        while time.monotonic() - began < 20:
            piece = peer.recv(1024)
            assert piece
            taken += len(piece)
            time.sleep(0.125)  # this is the client's pace
    seconds = time.monotonic() - began

    wait_until("the outcome", lambda: f"cut ({reason})" in running.log())
    assert "stall" not in running.log()
    assert taken > 8192 * 2
    assert 1.5 * STALL_SECONDS < seconds < 14
