"""What tests ask of the kernel: which processes there are, what they have open, how much memory they took."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def wait_until(what: str, condition: Callable[[], object], seconds: float = 10) -> None:
    """Polls what has no event (the kernel's tables, a file that another process writes)."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def gone_within(pid: int, seconds: float) -> bool:
    """Whether the process, ours or not, ends in time; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def what_holds(pid: int) -> list[str]:
    """What each thread of a process that does not end is at, as the kernel names it: for a failure's message."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # it ended after all
        for task in Path(f"/proc/{pid}/task").iterdir():
            now = (task / "stat").read_text().rpartition(")")[2].split()[0]
            found.append(
                f"{task.name} {now} {(task / 'wchan').read_text()} {(task / 'schedstat').read_text()}"
            )
    return found


def children(pid: int) -> list[int]:
    """The living children of a process, whichever of its threads started them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread may end while we look
            found += [int(word) for word in task.read_text().split()]
    return [child for child in found if state(child) not in ("Z", "")]


def open_paths(pid: int) -> list[str]:
    """What a process has open now, as the kernel names it."""
    paths: list[str] = []
    with contextlib.suppress(OSError):  # the process may end while we look
        for link in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                paths.append(os.readlink(f"/proc/{pid}/fd/{link}"))
    return paths


def peak_memory_bytes(pid: int) -> int:
    """The highest resident set the process ever had; 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def forget_peak_memory(pid: int) -> None:
    """From here on `peak_memory_bytes` starts at what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def state(pid: int) -> str:
    """The kernel's letter for it; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def marked(word: str) -> list[int]:
    """Every living process with this word in its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if word.encode() in (entry / "environ").read_bytes() and state(int(entry.name)) != "Z":
                found.append(int(entry.name))
    return found


class Samples:
    """A thread that keeps what `sample` returns, every few milliseconds, while the block runs."""

    def __init__(self, sample: Callable[[], Sequence[Any]]) -> None:
        self.seen: list[Any] = []
        self.rounds = 0
        self._sample = sample
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.003):
            self.seen += self._sample()
            self.rounds += 1

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
