"""The faults of the soak: each a function that does its harm, puts right what it must, and asserts what it can."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness import Service
from processes import wait_until
from torture.harness import CHECKPOINTS, SIDECARS
from writers import Writer

STALL_SECONDS = 4.0
STOP_SECONDS = 3.0  # the longest for which the service stands still


@dataclass
class Ground:
    """Where the faults happen. ``dice`` decides everything, so that a run can be had again by its seed."""

    service: Service
    data_dir: Path
    dice: random.Random
    victims: tuple[str, ...]
    """Databases whose only purpose is to be locked and rewritten."""
    restart_writer: Callable[[], None]
    made: int = field(default=0)

    def victim(self) -> Path:
        return self.data_dir / self.dice.choice(self.victims)

    def request(self) -> str:
        query = self.dice.choice(("", "?compression=stored", "?strict=true&check=full"))
        return f"GET /api/backup{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close"


def kill_reader(ground: Ground) -> None:
    wait_until("a reader to kill", ground.service.readers, 20)
    for pid in ground.service.readers()[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_service(ground: Ground) -> None:
    """For some seconds; afterwards it answers at once."""
    os.kill(ground.service.pid, signal.SIGSTOP)
    try:
        time.sleep(ground.dice.uniform(0.5, STOP_SECONDS))
    finally:
        os.kill(ground.service.pid, signal.SIGCONT)
    assert ground.service.request("/healthz", seconds=5).status == 200


def kill_writer(ground: Ground) -> None:
    """Its WAL stays as it is until it comes again."""
    ground.restart_writer()


def abort_clients(ground: Ground) -> None:
    """Five that reset the connection after some bytes."""
    for _ in range(5):
        with (
            contextlib.suppress(ConnectionResetError),  # another fault was first
            ground.service.connect(ground.request()) as peer,
        ):
            for _ in range(ground.dice.choice((0, 1, 10, 100))):
                if not peer.recv(65536):
                    break
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stall(ground: Ground) -> None:
    """A client that never reads is reset, or was refused, or got an error: never left waiting."""
    with ground.service.connect(ground.request(), receive_bytes=65536) as peer:
        try:
            if b" 200 " not in peer.recv(64):
                return
        except ConnectionResetError:  # another fault was first
            return
        time.sleep(STALL_SECONDS + 2 + STOP_SECONDS)
        until = time.monotonic() + 5
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(65536):
                assert time.monotonic() < until, "the stream goes on: it was not cut as stalled"
            raise AssertionError("the stream of a client that never read was ended in order")


def dribble(ground: Ground) -> None:
    """A client at 16 KB a second, which then leaves."""
    with (
        contextlib.suppress(ConnectionResetError),  # its snapshot's WAL may have grown too far
        ground.service.connect(ground.request(), receive_bytes=65536) as peer,
    ):
        until = time.monotonic() + ground.dice.uniform(4, 15)
        while time.monotonic() < until and peer.recv(4096):
            time.sleep(0.25)


def lock(ground: Ground) -> None:
    """An exclusive lock for longer than anyone waits; of the rollback-journal one: that of a WAL database keeps
    no reader out."""
    holder = Writer("exclusive", ground.data_dir / ground.victims[-1])
    try:
        time.sleep(4)
    finally:
        holder.stop()


def checkpoint(ground: Ground) -> None:
    """Of all kinds, on every WAL database; they may find it busy."""
    for path in sorted(ground.data_dir.glob("*.db")):
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as db,
        ):
            db.execute(f"PRAGMA wal_checkpoint({ground.dice.choice(CHECKPOINTS)})").fetchone()


def come_and_go(ground: Ground) -> None:
    """New databases of both kinds; renamed, replaced, deleted again."""
    ground.made += 1
    paths = [ground.data_dir / f"new-{ground.made}-{number}.db" for number in range(6)]
    for number, path in enumerate(paths):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(f"PRAGMA journal_mode={('wal', 'delete')[number % 2]}")
            db.execute("CREATE TABLE t AS SELECT randomblob(100000) AS a")
        time.sleep(0.3)
    paths[0].replace(paths[1])
    time.sleep(0.5)
    for path in paths:
        for end in ("", *SIDECARS):
            Path(f"{path}{end}").unlink(missing_ok=True)
        time.sleep(0.1)


def rewrite(ground: Ground) -> None:
    """DELETE, INSERT, VACUUM, another page size where that is possible."""
    with (
        contextlib.suppress(sqlite3.OperationalError),  # locked by another fault or a checkpoint
        contextlib.closing(sqlite3.connect(ground.victim(), timeout=3, isolation_level=None)) as db,
    ):
        db.execute("DELETE FROM reading WHERE id % 2")
        db.execute(
            "INSERT OR IGNORE INTO reading SELECT id + 1, sensor, taken, value, randomblob(900) FROM reading"
        )
        db.execute(f"PRAGMA page_size={ground.dice.choice((1024, 4096, 8192))}")
        db.execute("VACUUM")


def ask_for_plans(ground: Ground) -> None:
    """HEAD, nonsense and far too many at once, on connections of their own."""
    for target in ("/api/backup", "/api/backup?database=v*", "/api/backup?check=all", "/api/none"):
        answer = ground.service.request(target, "HEAD", seconds=20)
        assert answer.status in (200, 400, 404, 500, 503), answer
    peers = []
    with contextlib.suppress(OSError, http.client.HTTPException):
        peers = [
            ground.service.connect("GET /api/backup HTTP/1.1\r\nHost: localhost", receive_bytes=65536)
            for _ in range(10)
        ]
    for peer in peers:
        peer.close()


Fault = Callable[[Ground], None]
FAULTS: tuple[Fault, ...] = (
    kill_reader,
    stop_service,
    kill_writer,
    abort_clients,
    stall,
    dribble,
    lock,
    checkpoint,
    come_and_go,
    rewrite,
    ask_for_plans,
)
