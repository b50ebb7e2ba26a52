"""One run of anything, as curl and the kernel saw it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CURL_SAYS = '{"seconds": %{time_total}, "first_byte": %{time_starttransfer}, "bytes": %{size_download}}'


@dataclass(frozen=True)
class Run:
    """One run of one candidate; the CPU time is without curl's."""

    seconds: float
    first_byte_seconds: float
    archive_bytes: int
    cpu_seconds: float
    moved_bytes: int = 0
    """What went through read and write of any file or pipe (a socket's send is not among them)."""
    calls: int = 0
    """How many such calls that took."""


@dataclass(frozen=True)
class Usage:
    """What a process, and the children that it has waited for, have used so far."""

    own_cpu_seconds: float
    children_cpu_seconds: float
    moved_bytes: int
    calls: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """See proc(5): stat's fields 14 to 17, and io, which counts ended children in."""
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, children_user, children_system = (int(word) for word in words[11:15])
        io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return cls(
            (user + system) / TICKS_PER_SECOND,
            (children_user + children_system) / TICKS_PER_SECOND,
            int(io["rchar"]) + int(io["wchar"]),
            int(io["syscr"]) + int(io["syscw"]),
        )

    def since(self, before: Usage) -> Usage:
        return Usage(
            self.own_cpu_seconds - before.own_cpu_seconds,
            self.children_cpu_seconds - before.children_cpu_seconds,
            self.moved_bytes - before.moved_bytes,
            self.calls - before.calls,
        )


@dataclass(frozen=True)
class Transfer:
    """What curl said of one download, and its own CPU time."""

    seconds: float
    first_byte_seconds: float
    size_bytes: int
    cpu_seconds: float


def start_curl(url: str) -> subprocess.Popen[bytes]:
    command = ["curl", "-q", "-sSf", "--noproxy", "*", "-o", "/dev/null", "-w", CURL_SAYS, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def end_curl(client: subprocess.Popen[bytes]) -> Transfer:
    """RuntimeError if the download failed."""
    assert client.stdout is not None
    with client.stdout:
        said = client.stdout.read()
    used = wait(client)
    document = json.loads(said)
    return Transfer(
        document["seconds"], document["first_byte"], document["bytes"], used.ru_utime + used.ru_stime
    )


def wait(process: subprocess.Popen[bytes]) -> resource.struct_rusage:
    """What it used, once it has ended; RuntimeError if it failed."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return used


def children(pid: int) -> list[int]:
    """Those too that have ended and were not waited for: their CPU time is not counted yet."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread may end while we look
            found += [int(word) for word in task.read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """Its share of memory (PSS: pages that several processes have count once in all); 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


class PeakMemory:
    """The most that a process and its children had at once while the block ran: the PSS, every 20 ms."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            now = sum(map(resident_bytes, [self._pid, *children(self._pid)]))
            self.peak_bytes = max(self.peak_bytes, now)
            if self._done.wait(SAMPLE_SECONDS):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
