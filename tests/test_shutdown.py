"""SIGTERM: to the service alone, to its group, twice, and to a host; status 0, and no client is fooled."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from clients import SLOW, assert_looks_failed, curl, fetch_and
from harness import Config, StartService, hosting, run, tool
from processes import gone_within, wait_until


@pytest.mark.parametrize("query", ["", "?compression=stored"])
def test_sigterm_in_mid_stream_cuts_at_the_end_of_the_grace(
    query: str, big_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """Status 0 within the grace, a visible failure for the client, no traceback."""
    running = service(big_dir, {"server": {"shutdown_grace_seconds": 0.5}, **SLOW})
    target = tmp_path / "b.zip"

    status = fetch_and(running.process.terminate, curl(running, target, query), target)

    assert status not in (0, 22)
    assert running.ended(3) == 0
    assert_looks_failed(target.read_bytes(), target)
    assert "shutdown" in running.log()
    assert "Traceback" not in running.log()


def test_sigterm_lets_a_backup_finish_within_the_grace(
    big_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """What can be finished is finished, and new requests are turned away meanwhile."""
    running, target = service(big_dir, SLOW), tmp_path / "b.zip"
    refused = []

    def strike() -> None:
        os.killpg(running.pid, signal.SIGTERM)  # as systemd and a terminal do: the reader gets it too
        try:
            refused.append(running.request(seconds=5).status)
        except ConnectionError:
            refused.append(503)

    assert fetch_and(strike, curl(running, target, "?strict=true"), target) == 0
    assert refused == [503]
    assert run(tool("unzip"), "-tqq", target).returncode == 0
    assert running.ended(5) == 0


def test_a_second_sigterm_ends_it_now(big_dir: Path, tmp_path: Path, service: StartService) -> None:
    """Still with status 0 and a visible failure."""
    running, target = service(big_dir, {"limits": {"read_bytes_per_second": 2_000_000}}), tmp_path / "b.zip"

    def strike() -> None:
        running.process.terminate()
        wait_until("the first to be heard", lambda: "shut" in running.log().lower(), 2)
        running.process.terminate()

    assert fetch_and(strike, curl(running, target), target) not in (0, 22)
    assert running.ended(3) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_without_end_do_not_spoil_it(
    name: str, big_dir: Path, tmp_path: Path, service: StartService
) -> None:
    """An impatient manager sends them until the process is gone: still status 0, at every moment of its end."""
    running, target = service(big_dir, SLOW), tmp_path / "b.zip"

    def strike() -> None:
        while not gone_within(running.pid, 0.002):
            os.kill(running.pid, getattr(signal, name))

    assert fetch_and(strike, curl(running, target), target) not in (0, 22)
    assert running.ended(1) == 0


def test_sigterm_to_a_host_ends_its_backup_within_the_grace(big_dir: Path, tmp_path: Path) -> None:
    """The host's own, longer timeouts do not matter."""
    target = tmp_path / "b.zip"
    config: Config = {"server": {"shutdown_grace_seconds": 0.5}, **SLOW}
    with hosting(tmp_path / "host", "mothership.py", big_dir, config) as host:
        status = fetch_and(host.process.terminate, curl(host, target), target)
        ended = host.ended(5)

    assert status not in (0, 22)
    assert ended == 0
    assert_looks_failed(target.read_bytes(), target)
