"""Another endpoint's latency, asked for every 20 ms by a process of its own: `prober.py URL_PATH PORT PID`.

What the machine itself costs is taken off, as the larger of two measures of it: how late a thread here is woken from
a sleep meanwhile; and how long a thread of the service, or this one, was ready to run and had no processor, with what
the host took from the processors while something ran on them. A tenth of a second of the latter is common where the
tests share two cores, and no fault of the service's loop.
Prints `ready`, then, when its standard input closes, one line of JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path

PERIOD_SECONDS = 0.02
TICK_SECONDS = 0.005


class Lateness(threading.Thread):
    """How late a process that wants nothing is woken; the worst since it was last asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._worst = 0.0

    def run(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(TICK_SECONDS)
            self._worst = max(self._worst, time.monotonic() - before - TICK_SECONDS)

    def take(self) -> float:
        worst, self._worst = self._worst, 0.0
        return worst


def stolen_seconds() -> float:
    """How long, in all, the host ran something else while this machine's processors had work: `steal`, proc(5)."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


class Queueing:
    """How long threads stood in the kernel's run queues since `begin`, and what the host took meanwhile."""

    def __init__(self, service: int) -> None:
        self._tasks = Path(f"/proc/{service}/task")
        self._own = Path(f"/proc/self/task/{threading.get_native_id()}")
        self._before: dict[Path, float] = {}
        self._stolen_before = 0.0

    def begin(self) -> None:
        self._before = self._look()
        self._stolen_before = stolen_seconds()

    def worst(self) -> float:
        """Of any of the threads, seconds; one that is new counts from its start."""
        queued = max((s - self._before.get(task, 0.0) for task, s in self._look().items()), default=0.0)
        return queued + stolen_seconds() - self._stolen_before

    def _look(self) -> dict[Path, float]:
        found = {}
        with contextlib.suppress(OSError):  # the service has ended
            for task in [*self._tasks.iterdir(), self._own]:
                with contextlib.suppress(OSError):  # so has the thread
                    found[task] = int((task / "schedstat").read_text().split()[1]) / 1e9
        return found


def main() -> None:
    path, port = sys.argv[1], int(sys.argv[2])
    queueing = Queueing(int(sys.argv[3]))
    done = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        done.set()

    threading.Thread(target=watch, daemon=True).start()
    lateness = Lateness()
    lateness.start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    seconds: list[float] = []
    failed = 0
    raw, of_it = 0.0, 0.0  # the worst, with what the machine cost, and what of it was queueing
    print("ready", flush=True)
    while not done.wait(PERIOD_SECONDS):
        queueing.begin()
        lateness.take()
        asked = time.monotonic()
        try:
            connection.request("GET", path)
            failed += connection.getresponse().read() == b"" and path == "/healthz"
        except (OSError, http.client.HTTPException):
            failed += 1
            connection.close()
        took = time.monotonic() - asked
        queued = queueing.worst()
        time.sleep(2 * TICK_SECONDS)  # a tick that began during the answer has to end to be counted
        seconds.append(max(0.0, took - max(queued, lateness.take())))
        if took > raw:
            raw, of_it = took, queued
    seconds.sort()
    p99 = seconds[int(len(seconds) * 0.99)] if seconds else 0.0
    worst = seconds[-1] if seconds else 0.0
    found = {
        "count": len(seconds),
        "failed": failed,
        "p99": p99,
        "worst": worst,
        "worst_raw": raw,
        "queued": of_it,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
