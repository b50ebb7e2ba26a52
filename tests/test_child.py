"""A reader process lives exactly as long as its backup, whatever happens to it, to the service or to the host."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Archive, Config, MakeDatabase
from mothership_backup import child
from mothership_backup.backup import Backup
from mothership_backup.errors import BackupError, CutError, ReaderError
from processes import children, gone_within, open_paths, wait_until
from support import backup_of, error_of, reading, request_for, take
from writers import create_bank, writing

SLOW: Config = {"limits": {"read_bytes_per_second": 2_000_000}}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """12 MB that do not compress: far more than the pipe holds."""
    folder = tmp_path_factory.mktemp("large")
    make_database(folder / "events.db", rows=12_000, random_bytes=900)
    make_database(folder / "nodes.db", journal="delete", rows=100)
    return folder


def reader_of(run: Backup) -> int:
    assert run._reader is not None
    return run._reader._process.pid


def begun(run: Backup) -> Iterator[bytes | memoryview]:
    """In mid-stream: its first bytes are out, and the reader waits for somebody to take more."""
    chunks = run.chunks()
    for chunk in chunks:
        if len(chunk):
            return chunks
    raise AssertionError("it had no bytes")


# It is ended.


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_cancelled_in_mid_stream(compression: str, large: Path) -> None:
    """From another thread: the reason comes out in place of what the kill looked like, and the locks are free."""
    run = backup_of(large, compression=compression)
    chunks = begun(run)
    reader = reader_of(run)

    threading.Thread(target=run.cancel, args=(CutError("too slow", code="stall"),)).start()
    assert gone_within(reader, 1)
    run.cancel(CutError("too late", code="shutdown"))
    with pytest.raises(CutError, match="too slow"):
        list(chunks)

    assert run.is_reader_gone()
    assert run.outcome is not None
    assert (run.outcome.word, run.outcome.reason) == ("cut", "stall")
    with contextlib.closing(sqlite3.connect(large / "events.db", timeout=0)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def test_cancelled_before_it_began(large: Path) -> None:
    """A client that left while its backup waited for a thread."""
    run = backup_of(large)
    run.cancel(CutError("no more", code="shutdown"))

    with pytest.raises(CutError, match="no more"):
        next(run.chunks())

    wait_until("no reader", lambda: not children(os.getpid()))


def test_cancelled_while_it_plans(tmp_path: Path, make_database: MakeDatabase) -> None:
    """It waits for a lock that never goes, and is not waited for."""
    path = make_database(tmp_path / "data" / "a.db", journal="delete", rows=2)
    run = backup_of(path.parent, {"snapshot": {"busy_timeout_seconds": 600}})
    with writing("exclusive", path):
        timer = threading.Timer(0.3, run.cancel, args=(CutError("no more", code="shutdown"),))
        timer.start()
        with pytest.raises(CutError, match="no more"):
            next(run.chunks())
        timer.join()


def test_left_in_mid_stream(large: Path) -> None:
    """Whoever drives it may just stop: the generator's end is the reader's."""
    run = backup_of(large)
    chunks = begun(run)
    reader = reader_of(run)

    chunks.close()  # type: ignore[attr-defined]  # it is a generator

    assert gone_within(reader, 1)
    assert run.outcome is not None
    assert run.outcome.word == "cancelled"


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_killed_in_mid_stream(compression: str, large: Path) -> None:
    """By the kernel's hand, or a person's: no archive, and a word about how it ended."""
    run = backup_of(large, compression=compression)
    chunks = begun(run)
    os.kill(reader_of(run), signal.SIGKILL)

    with pytest.raises(ReaderError, match="by signal 9") as caught:
        list(chunks)

    assert caught.value.code == "reader_died"


def test_signals_of_a_terminal_or_a_unit_do_not_end_it(large: Path) -> None:
    """They go to the whole group; a running backup may finish."""
    run = backup_of(large, strict=True)
    chunks = begun(run)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(reader_of(run), number)
    list(chunks)

    assert run.outcome is not None
    assert run.outcome.word == "complete"


@pytest.mark.parametrize("killer", ["us", "another"])
def test_only_the_kill_of_another_is_a_sudden_end(killer: str, large: Path) -> None:
    """Ours also meets a reader that has said all and is slow to end, while its client still takes what waits."""
    with reading(request_for(large)) as (reader, incoming):
        next(incoming)
        assert reader.sudden_end() is None
        os.kill(reader._process.pid, signal.SIGSTOP)
        if killer == "another":
            os.kill(reader._process.pid, signal.SIGKILL)
            assert gone_within(reader._process.pid, 2)
            reason = reader.sudden_end()
            assert reason is not None
            assert reason.code == "reader_died"

    if killer == "us":
        assert reader._process.returncode == -signal.SIGKILL
        assert reader.sudden_end() is None


def test_why_it_died_is_told_while_another_thread_asks_the_same(large: Path) -> None:
    """The loop asks `sudden_end`, which holds the process's lock, in the moment in which its frames end."""
    with reading(request_for(large)) as (reader, incoming):
        next(incoming)
        asked = vars(reader._process)["_waitpid_lock"]
        os.kill(reader._process.pid, signal.SIGKILL)
        asked.acquire()
        threading.Timer(0.1, asked.release).start()
        with pytest.raises(ReaderError, match="by signal 9"):
            list(incoming)


def test_stopped_it_is_silent_and_that_is_told(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer looks the same. (The real limit is 10 s.)"""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 1.5)
    run = backup_of(large, SLOW)
    chunks = begun(run)
    os.kill(reader_of(run), signal.SIGSTOP)

    with pytest.raises(ReaderError) as caught:
        list(chunks)

    assert caught.value.code == "reader_silent"
    assert gone_within(reader_of(run), 1)


@pytest.mark.long
def test_a_client_that_keeps_it_waiting_is_not_its_silence(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full pipe takes no frame; when the client reads on, so does the backup."""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 1.0)
    run = backup_of(large, strict=True)
    chunks = begun(run)
    waits = threading.Event()
    threading.Timer(1.5, waits.set).start()
    waits.wait()

    list(chunks)

    assert run.outcome is not None
    assert run.outcome.word == "complete"


# It ends itself: the watch.


@pytest.fixture
def bank(tmp_path: Path, large: Path) -> Path:
    """A bank, and more to read than a pipe holds before it."""
    folder = tmp_path / "data"
    folder.mkdir()
    os.link(large / "events.db", tmp_path / "x")
    (folder / "a.db").write_bytes((tmp_path / "x").read_bytes())
    (tmp_path / "x").unlink()
    create_bank(folder / "bank.db", "wal")
    return folder / "bank.db"


WATCHED: dict[str, Config] = {
    "hold": {"limits": {"max_hold_seconds": 1}},
    "wal_growth": {"limits": {"max_wal_growth_bytes": 200_000}},
    "disk_full": {"limits": {"min_free_bytes": 2**62}},
}


@pytest.mark.live_engine
@pytest.mark.parametrize("code", WATCHED)
def test_a_pin_that_costs_too_much_is_cut(code: str, bank: Path) -> None:
    """While a client reads nothing: the application's WAL and locks are its own again."""
    run = backup_of(bank.parent, WATCHED[code])
    with writing("bank", bank, rate=500):
        chunks = begun(run)
        reader = reader_of(run)

        assert gone_within(reader, 4)
        with pytest.raises(CutError) as caught:
            list(chunks)

    assert caught.value.code == code
    assert run.outcome is not None
    assert (run.outcome.word, run.outcome.reason) == ("cut", code)
    assert "reader:" in run.reader_stderr


@pytest.mark.live_engine
def test_a_full_disk_is_no_reason_while_no_wal_grows(bank: Path) -> None:
    """On a small disk that nobody writes to a backup is wanted most."""
    run = backup_of(bank.parent, {"limits": {"min_free_bytes": 2**62, "read_bytes_per_second": 10_000_000}})

    assert take(run).manifest["sources"][0]["status"] == "ok"


@pytest.mark.long
@pytest.mark.live_engine
def test_a_hold_is_counted_from_the_pin_to_its_release(bank: Path) -> None:
    """Many databases, each within the limit, are not one long hold: what is through is let go."""
    for number in range(3):
        (bank.parent / f"z{number}.db").write_bytes(b"plain" * 800_000)
    config: Config = {"limits": {"max_hold_seconds": 2.5, "read_bytes_per_second": 8_000_000}}

    began = time.monotonic()
    archive = take(backup_of(bank.parent, config, strict=True, check="none"))

    assert time.monotonic() - began > 2.5
    assert archive.manifest["complete"] is True


# The process around it.


@pytest.mark.parametrize("count", [15, pytest.param(55, marks=pytest.mark.long)])
def test_nothing_adds_up(count: int, large: Path) -> None:
    """Descriptors, threads and processes are where they were: after good ends, bad ends, and no end."""

    def left(run: Backup) -> None:
        begun(run).close()  # type: ignore[attr-defined]  # it is a generator

    def killed(run: Backup) -> None:
        chunks = begun(run)
        os.kill(reader_of(run), signal.SIGKILL)
        with pytest.raises(BackupError):
            list(chunks)

    def missing(run: Backup) -> None:
        error_of(large / "missing")

    ends: list[Callable[[Backup], object]] = [take, left, killed, missing, take]
    counts = []
    for number in range(count):
        ends[number % len(ends)](backup_of(large, compression="stored", strict=True))
        if number in (4, count - 1):
            fds = len(os.listdir("/proc/self/fd"))
            counts.append((fds, threading.active_count(), len(children(os.getpid()))))

    assert counts[0] == counts[1]
    assert not [path for path in open_paths(os.getpid()) if str(large) in path]


def test_a_host_with_more_than_1024_descriptors(large: Path) -> None:
    """`select` could not; `poll` can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1500, hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        run = backup_of(large, strict=True)
        archive = Archive(b"".join(run.chunks()))
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert archive.manifest["complete"]


def test_many_at_once_in_one_process(large: Path) -> None:
    """Each has its own reader."""
    archives: list[Archive] = []
    threads = [
        threading.Thread(target=lambda: archives.append(take(backup_of(large, strict=True, check="none"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(archives) == 4
