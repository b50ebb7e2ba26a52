"""Case 5: a client that resets its connection, at random offsets and in every phase of a backup."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from harness import MakeDatabase, Service, StartService
from processes import wait_until
from test_pace import slow_to_check
from torture.harness import under_fire
from torture.sockets import GET, is_left_alone, read_up_to, reset
from writers import writing

OFFSETS = 20
LAST_OFFSET = 14_000_000  # `big_dir` makes 24 MB; beyond that the kernel may have it all before the reset


def left_often(service: Service, count: int) -> bool:
    return service.log().count("client_left") == count


def has_outcome(service: Service, log: str) -> bool:
    return "bytes sent" in service.log()[len(log) :]


def test_at_random_offsets(big_dir: Path, service: StartService) -> None:
    """Without a pause, with one slot: it is free each time."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when this fails
    dice = random.Random(seed)
    running = service(big_dir, {"limits": {"concurrent_backups": 1}})
    with under_fire(running, big_dir):
        for number in range(OFFSETS):
            log = running.log()
            query = dice.choice(("", "?compression=stored", "?check=none", "?compression=stored&check=full"))
            peer = running.connect(GET.format(query), receive_bytes=65536)
            offset = dice.randrange(LAST_OFFSET)
            assert read_up_to(peer, offset) == offset
            reset(peer)

            is_left_alone(running, log)
            wait_until("the outcome", partial(left_often, running, number + 1), 2)
    assert "busy" not in running.log()


# Each takes a connection to its phase.


def in_the_request(service: Service) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", service.port), 30)
    peer.sendall(b"GET /api/backup HTTP/1.1\r\nHost: loc")
    time.sleep(0.5)  # it has to be read
    return peer


def planning(service: Service, request: str = GET.format("")) -> socket.socket:
    """A database is locked, and the reader waits for it."""
    peer = service.connect(request)
    wait_until("the reader to start", service.readers)
    time.sleep(0.3)  # long enough to stand before the lock
    assert service.readers(), "it did not wait for the lock"
    return peer


def planning_stored(service: Service) -> socket.socket:
    return planning(service, GET.format("?compression=stored"))


def planning_a_head(service: Service) -> socket.socket:
    return planning(service, GET.format("").replace("GET", "HEAD"))


@pytest.mark.parametrize("phase", [in_the_request, planning, planning_stored, planning_a_head])
def test_before_the_first_byte(
    phase: Callable[[Service], socket.socket],
    tmp_path: Path,
    make_database: MakeDatabase,
    service: StartService,
) -> None:
    """The reader does not wait its whole busy timeout for a client that is gone."""
    make_database(tmp_path / "data" / "free.db")
    locked = make_database(tmp_path / "data" / "locked.db", journal="delete")
    config = {"snapshot": {"busy_timeout_seconds": 5}, "limits": {"concurrent_backups": 1}}
    running = service(locked.parent, config)
    with under_fire(running, locked.parent, p99_seconds=None):
        log = running.log()
        with writing("exclusive", locked):
            peer = phase(running)
            reset(peer)
            # Nobody waits for the plan of a HEAD; it serves others for some seconds, so it may come to its end.
            is_left_alone(running, log, 6 if phase is planning_a_head else 1)


@pytest.mark.parametrize("query", ["?check=full", "?check=full&compression=stored"])
def test_while_only_a_check_runs(query: str, tmp_path: Path, service: StartService) -> None:
    """All pages are out, and the check works."""
    slow = slow_to_check(tmp_path / "data" / "slow.db", 8)
    running = service(slow.parent, {"limits": {"concurrent_backups": 1}})
    with under_fire(running, slow.parent, next_query="check=none"):
        log = running.log()
        peer = running.connect(GET.format(query))
        assert peer.recv(65536)
        time.sleep(1)  # the pages take milliseconds
        assert running.readers()
        reset(peer)

        is_left_alone(running, log)
        wait_until("the outcome", lambda: left_often(running, 1), 2)


@pytest.mark.parametrize("query", ["", "?compression=stored"])
def test_at_the_very_end(
    query: str, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Some of the last bytes unread: whole or left, never an error, and the next request has the slot."""
    make_database(tmp_path / "data" / "small.db", rows=3000)
    running = service(tmp_path / "data", {"limits": {"concurrent_backups": 1}})
    with under_fire(running, tmp_path / "data", p99_seconds=None):
        # Each archive has other random bytes in it (its name), and about this length with its head.
        length = len(running.request("/api/backup" + query).body)
        for missing in (1, 5, 22, 100, 1000):
            log = running.log()
            peer = running.connect(GET.format(query))
            begin = peer.recv(4096)
            assert begin.split()[1] == b"200", begin  # the one before has freed its slot
            read_up_to(peer, length - missing - len(begin))
            reset(peer)
            is_left_alone(running, log)
            wait_until("the outcome", partial(has_outcome, running, log), 2)
