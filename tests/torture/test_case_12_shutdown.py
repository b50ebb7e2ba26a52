"""Case 12, what tests/test_shutdown.py lacks: SIGTERM in each phase, alone and mounted, and the real exit time.

A host's own timeout is aiohttp's 60 s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Config, MakeDatabase, Service, drain, hosting, serving
from processes import wait_until
from torture.harness import listing
from torture.sockets import GET
from writers import writing

GRACE_SECONDS = 3
CONFIG: Config = {
    "server": {"shutdown_grace_seconds": GRACE_SECONDS},
    "limits": {"read_bytes_per_second": 1_500_000, "buffer_bytes": 262_144},
    "snapshot": {"busy_timeout_seconds": 30},
}


@pytest.fixture
def data(tmp_path: Path, make_database: MakeDatabase) -> Path:
    """A database that takes 16 s to send, and one that can be locked."""
    make_database(tmp_path / "data" / "events.db", rows=24_000, random_bytes=900)
    make_database(tmp_path / "data" / "locked.db", journal="delete")
    return tmp_path / "data"


@pytest.fixture(params=["alone", "mounted"])
def running(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[Service]:
    if request.param == "alone":
        with serving(tmp_path / "service", data, CONFIG) as service:
            yield service
    else:
        with hosting(tmp_path / "host", "mothership.py", data, CONFIG, "--json-errors") as service:
            yield service


def refused(service: Service) -> bool:
    """Whether a new request is turned away: 503, or nobody listens."""
    try:
        return service.request(seconds=5).status == 503
    except OSError:
        return True


def body_of(peer: socket.socket) -> tuple[bytes, bool]:
    peer.settimeout(2)
    return drain(peer)


@contextlib.contextmanager
def planning(service: Service, data: Path) -> Iterator[socket.socket]:
    with writing("exclusive", data / "locked.db"), service.connect(GET.format("")) as peer:
        wait_until("the reader", service.readers)
        time.sleep(0.3)
        yield peer


@contextlib.contextmanager
def streaming(service: Service, data: Path) -> Iterator[socket.socket]:
    with service.stream("/api/backup?database=events.db") as peer:
        yield peer


@contextlib.contextmanager
def stalled(service: Service, data: Path) -> Iterator[socket.socket]:
    with service.stream("/api/backup?database=events.db&compression=stored") as peer:
        time.sleep(1)  # it has read its head and reads no more; the buffers on the way are full now
        yield peer


Phase = Callable[[Service, Path], contextlib.AbstractContextManager[socket.socket]]


@pytest.mark.parametrize("phase", [planning, streaming, stalled])
def test_it_ends_within_the_grace(phase: Phase, running: Service, data: Path) -> None:
    """With status 0; new requests are refused meanwhile, and the client sees a failure."""
    before = listing(data)
    with phase(running, data) as peer:
        asked = time.monotonic()
        os.killpg(running.pid, signal.SIGTERM)  # to the whole group
        time.sleep(0.2)
        assert refused(running)
        assert phase is stalled or running.readers(), "it was not given its time"
        status = running.ended(GRACE_SECONDS + 2)
        seconds = time.monotonic() - asked
        received, was_reset = body_of(peer)

    assert status == 0
    assert seconds <= GRACE_SECONDS
    if phase is planning:
        assert received.startswith(b"HTTP/1.1 5"), received[:200]
    else:
        assert was_reset
        assert b"PK\x05\x06" not in received[-65536:]
        assert not received.endswith(b"0\r\n\r\n")
    assert "Traceback" not in running.log()
    assert listing(data) == before


@pytest.mark.parametrize("phase", [planning, stalled])
def test_twice_ends_it_now(phase: Phase, data: Path, tmp_path: Path) -> None:
    """Alone (a host has its own signals)."""
    with serving(tmp_path / "service", data, CONFIG) as running, phase(running, data):
        running.process.terminate()
        wait_until("the first to be heard", lambda: "shutting down" in running.log(), 2)
        asked = time.monotonic()
        running.process.terminate()

        assert running.ended(3) == 0
        assert time.monotonic() - asked < GRACE_SECONDS / 2
