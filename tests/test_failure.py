"""What ends a backup before its end: it must look failed to the dumbest client, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients import SLOW, assert_looks_failed, curl, fetch_and, wget
from harness import MakeDatabase, Service, StartService, drain, hosting, run, serving, tool
from processes import gone_within, wait_until

SHAPES = ("alone", "json-errors", "one-second")


@pytest.fixture(scope="module", params=SHAPES)
def shape(
    request: pytest.FixtureRequest, big_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The slow stream: alone, and mounted in hosts whose middleware wants to answer."""
    folder = tmp_path_factory.mktemp("shape")
    if request.param == "alone":
        context = serving(folder, big_dir, SLOW)
    else:
        context = hosting(folder, "mothership.py", big_dir, SLOW, f"--{request.param}")
    with context as service:
        yield service


CLIENTS: dict[str, Callable[[Service, Path], list[str]]] = {
    "curl-deflate": lambda service, target: curl(service, target),
    "curl-stored": lambda service, target: curl(service, target, "?compression=stored"),
    "curl-1.0": lambda service, target: curl(service, target, "", "--http1.0"),
    "wget-deflate": lambda service, target: wget(service, target, "", "--tries=1"),
    "wget-stored": lambda service, target: wget(service, target, "?compression=stored", "--tries=1"),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_reader_killed_in_mid_stream_fails_every_client(
    client: str, shape: Service, tmp_path: Path
) -> None:
    """Whatever the host's middleware does with it."""
    target = tmp_path / "b.zip"

    status = fetch_and(
        lambda: os.kill(shape.reader(), signal.SIGKILL), CLIENTS[client](shape, target), target
    )

    assert status not in (0, 22), "the transfer, not the request, must fail"
    assert_looks_failed(target.read_bytes(), target)
    wait_until("the slot to be free", lambda: not shape.readers())


def test_the_hosts_patience_ends_the_stream_visibly(big_dir: Path, tmp_path: Path) -> None:
    """A host that gives each handler a second cuts a long backup; its JSON never lands in the ZIP."""
    target = tmp_path / "b.zip"
    with hosting(tmp_path / "host", "mothership.py", big_dir, SLOW, "--one-second", "--json-errors") as host:
        for query in ("", "?compression=stored"):
            status = fetch_and(lambda: None, curl(host, target, query), target)

            assert status != 0
            assert_looks_failed(target.read_bytes(), target)
            wait_until("the reader to be gone", lambda: not host.readers(), 2)
            target.unlink()
        assert "Traceback" not in host.log()


def test_nothing_is_logged_as_a_traceback_and_the_next_backup_is_good(
    big_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """The outcome stands in the log with its reason; the slot is free again."""
    fast = {"limits": {"read_bytes_per_second": 12_000_000, "concurrent_backups": 1}}
    running = service(big_dir, fast)
    with running.stream() as peer:
        os.kill(running.reader(), signal.SIGKILL)
        received, was_reset = drain(peer)

    assert was_reset
    assert not received.endswith(b"0\r\n\r\n")
    wait_until("the outcome", lambda: "signal 9" in running.log())
    assert "Traceback" not in running.log()
    assert running.archive("strict=true").zip.testzip() is None


def test_wget_that_tries_again_splices_nothing(big_dir: Path, tmp_path: Path, service: StartService) -> None:
    """Its second try asks for a range and is refused (412), so that it fails."""
    running, target = service(big_dir, SLOW), tmp_path / "b.zip"
    command = wget(running, target, "?compression=stored", "--tries=3", "--waitretry=0")

    status = fetch_and(lambda: os.kill(running.reader(), signal.SIGKILL), command, target)

    assert status != 0
    assert run(tool("unzip"), "-tqq", target).returncode != 0


def test_wget_fails_when_it_is_cut_in_the_middle_of_a_chunk(
    big_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """A slow one has half a chunk then; with a FIN in place of the reset it ends with 0."""
    running, target = service(big_dir), tmp_path / "b.zip"
    command = wget(running, target, "", "--tries=1", "--limit-rate=400k")

    status = fetch_and(lambda: os.kill(running.reader(), signal.SIGKILL), command, target)

    assert status == 4
    assert_looks_failed(target.read_bytes(), target)


@pytest.mark.live_engine
def test_a_database_truncated_under_the_reader_fails_visibly(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """A page that cannot be read in mid-stream resets the stream, and the log names the database."""
    victim = make_database(tmp_path / "data" / "victim.db", rows=24_000, random_bytes=900)
    running, target = service(victim.parent, SLOW), tmp_path / "b.zip"

    status = fetch_and(lambda: os.truncate(victim, 4096 * 20), curl(running, target), target)

    assert status not in (0, 22)
    assert_looks_failed(target.read_bytes(), target)
    wait_until("the log to name it", lambda: "victim.db" in running.log() and "failed" in running.log())


def test_the_service_killed_after_it_forked_a_worker_takes_the_reader_along(
    big_dir: Path, tmp_path: Path
) -> None:
    """The worker inherited every pipe and socket and lives on; the reader does not."""
    with hosting(tmp_path / "host", "mothership.py", big_dir, SLOW) as host, host.stream():
        reader = host.reader()
        worker = host.request("/fork", "POST").json()["pid"]
        try:
            os.kill(host.pid, signal.SIGKILL)

            assert gone_within(reader, 1)
            assert not gone_within(worker, 0)
        finally:
            os.kill(worker, signal.SIGKILL)
