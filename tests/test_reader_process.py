"""The reader as the kernel and Python see it: what it imports, how it looks, how gently it runs."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from harness import Config, MakeDatabase, StartService, hosting
from processes import state

MALLOC = (b"MALLOC_TRIM_THRESHOLD_", b"MALLOC_MMAP_THRESHOLD_")
SLOW: Config = {"limits": {"read_bytes_per_second": 4_000_000, "nice": 7}}


def test_it_never_imports_what_the_service_is_made_of(data_dir: Path, tmp_path: Path) -> None:
    """A whole backup with each compression, under `-X importtime`: 30 ms of start, not 400.

    `typing` alone is 5 of them, and each NamedTuple half a one.
    """
    imports = tmp_path / "imports.txt"
    traced = tmp_path / "python"
    traced.write_text(f'#!/bin/sh\nexec {sys.executable} -X importtime "$@" 2>>{imports}\n')
    traced.chmod(0o755)

    with hosting(tmp_path / "host", "mothership.py", data_dir, None, "--reader-python", str(traced)) as host:
        for query in ("", "?compression=stored", "?check=full"):
            assert host.request("/api/backup" + query).archive().manifest["complete"]

    found = {line.rpartition("|")[2].strip() for line in imports.read_text().splitlines()}
    assert "mothership_backup.reader" in found
    tops = {name.partition(".")[0] for name in found}
    assert not tops & {
        "aiohttp",
        "pydantic",
        "pydantic_core",
        "typer",
        "rich",
        "zipstream",
        "asyncio",
        "yarl",
        "typing",
        "dataclasses",
    }


def test_it_runs_gently_and_apart(
    tmp_path: Path, make_database: MakeDatabase, service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the service's priority, isolated, with a small environment, and not killed by the group's signals."""
    make_database(tmp_path / "data" / "events.db", rows=12_000, random_bytes=900)
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    monkeypatch.setenv("SECRET_TOKEN", "not for children")
    running = service(tmp_path / "data", SLOW)

    with running.stream():
        reader = running.reader()
        words = Path(f"/proc/{reader}/cmdline").read_bytes().split(b"\0")
        environment = Path(f"/proc/{reader}/environ").read_bytes().split(b"\0")
        os.kill(reader, 15)
        os.kill(reader, 2)
        os.kill(reader, 1)
        os.kill(running.pid, 0)
        niceness = os.getpriority(os.PRIO_PROCESS, reader) - os.getpriority(os.PRIO_PROCESS, running.pid)
        blocked = re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{reader}/status").read_text())
        living = state(reader)

    assert words[1:6] == [b"-I", b"-S", b"-X", b"utf8", b"-c"]
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    assert names <= {b"PATH", b"LANG", b"LD_LIBRARY_PATH", b"SQLITE_TMPDIR", *MALLOC}
    assert niceness == 7
    assert blocked
    assert int(blocked[1], 16) & 0b100000000000011 == 0b100000000000011  # HUP, INT, TERM
    assert living not in ("Z", "")


@pytest.mark.long  # `test_throttle.py` has a shorter one
def test_the_reading_is_throttled_when_asked(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """`read_bytes_per_second` holds within a factor of two either way."""
    path = make_database(tmp_path / "data" / "events.db", rows=8_000, random_bytes=1000)
    running = service(tmp_path / "data", {"limits": {"read_bytes_per_second": 4_000_000}})

    asked = time.monotonic()
    running.archive("check=none")
    seconds = time.monotonic() - asked

    planned = path.stat().st_size / 4_000_000
    assert planned / 2 < seconds < planned * 2 + 1
