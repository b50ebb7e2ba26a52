"""Clients that leave, never read, read slowly, or come all at once."""

from __future__ import annotations

import socket
import struct
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from clients import status_of
from harness import MakeDatabase, Service, StartService, drain
from processes import gone_within, wait_until


@pytest.mark.parametrize(
    ("query", "leave"),
    [
        ("", "close"),
        ("?compression=stored", "reset"),
        pytest.param("", "reset", marks=pytest.mark.long),
        pytest.param("?compression=stored", "close", marks=pytest.mark.long),
    ],
)
def test_a_client_that_leaves_frees_reader_and_slot_within_a_second(
    query: str, leave: str, big_dir: Path, service: StartService
) -> None:
    """By FIN or by RST; the next backup gets the slot."""
    running = service(big_dir, {"limits": {"concurrent_backups": 1, "read_bytes_per_second": 3_000_000}})
    peer = running.stream("/api/backup" + query)
    reader = running.reader()

    if leave == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    assert gone_within(reader, 1)
    wait_until("the slot", lambda: status_of(running) == 200, 2)
    assert "Traceback" not in running.log()


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_clients_that_leave_anywhere_leave_nothing_behind(
    step: int, big_dir: Path, service: StartService
) -> None:
    """From before the first byte to near the end, without a pause: the one slot is always there."""
    running = service(big_dir, {"limits": {"concurrent_backups": 1}})
    for count, number in enumerate(range(0, 30, step), 1):
        query = ("", "?compression=stored", "?check=none")[number % 3]
        peer = running.connect(f"GET /api/backup{query} HTTP/1.1\r\nHost: localhost")
        for _ in range(number * number // 3):
            peer.recv(65536)
        peer.close()

        wait_until("the reader to be gone", lambda: not running.readers(), 1)
        wait_until("the outcome", partial(left_often, running, count), 2)

    assert "busy" not in running.log()
    assert running.archive("strict=true").zip.testzip() is None
    assert "Traceback" not in running.log()
    assert "exception" not in running.log().lower()


def left_often(service: Service, count: int) -> bool:
    return service.log().count("client_left") == count


def test_a_client_that_never_reads_is_cut_as_stalled(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """At `stall_timeout_seconds` plus at most two; not earlier. The connection is reset."""
    make_database(tmp_path / "data" / "events.db", rows=30_000, random_bytes=1000)
    limits = {"stall_timeout_seconds": 2, "buffer_bytes": 262_144, "concurrent_backups": 1}
    running = service(tmp_path / "data", {"limits": limits})
    with running.stream() as peer:
        began = time.monotonic()
        reader = running.reader()

        assert gone_within(reader, 6)
        seconds = time.monotonic() - began
        _, was_reset = drain(peer)

    assert 1.5 < seconds < 5
    assert was_reset
    wait_until("the outcome", lambda: "stall" in running.log())
    wait_until("the slot", lambda: status_of(running) == 200, 2)


@pytest.mark.long
def test_a_slow_client_is_not_stalled(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """8 KB a second, for more than twice the default limit: slow is not stalled.

    With a receive buffer of 64 KiB. A large one makes the client's kernel acknowledge in lumps far apart.
    """
    make_database(tmp_path / "data" / "events.db", rows=20_000, random_bytes=1000)
    running = service(tmp_path / "data")

    with running.stream() as peer:
        until = time.monotonic() + 75
        while time.monotonic() < until:
            assert peer.recv(2048)
            time.sleep(0.25)  # this is the client's pace
        assert running.readers()

    wait_until("the outcome", lambda: "client_left" in running.log())
    assert "stall" not in running.log()


def test_fifty_requests_at_once_hold_the_limit(big_dir: Path, service: StartService) -> None:
    """Two run, the others get 503 at once, and other endpoints do not notice."""
    running = service(big_dir, {"limits": {"concurrent_backups": 2, "read_bytes_per_second": 500_000}})
    statuses: list[int] = []
    latencies: list[float] = []

    with running.stream(), running.stream():
        threads = [threading.Thread(target=lambda: statuses.append(status_of(running))) for _ in range(50)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            asked = time.monotonic()
            assert running.request("/healthz").status == 200
            latencies.append(time.monotonic() - asked)
        for thread in threads:
            thread.join()
        assert len(running.readers()) == 2

    assert statuses == [503] * 50
    assert max(latencies) < 1
