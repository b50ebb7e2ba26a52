"""Another endpoint's latency, asked for every 20 ms by a process of its own: `prober.py URL_PATH PORT PID`.

What the machine itself costs is taken off, as the larger of two measures of it: how late a thread here is woken from
a sleep meanwhile; and how long a thread of the service, or this one, was ready to run and had no processor. A tenth
of a second of the latter is common where the tests share two cores, and no fault of the service's loop.
Prints `ready`, then, when its standard input closes, one line of JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
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


class Queueing:
    """How long threads stood in the kernel's run queues since `begin`."""

    def __init__(self, service: int) -> None:
        self._tasks = Path(f"/proc/{service}/task")
        self._own = Path(f"/proc/self/task/{threading.get_native_id()}")
        self._before: dict[Path, float] = {}

    def begin(self) -> None:
        self._before = self._look()

    def worst(self) -> float:
        """Of any of the threads, seconds; one that is new counts from its start."""
        return max((s - self._before.get(task, 0.0) for task, s in self._look().items()), default=0.0)

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
    raw = 0.0  # the worst, with what the machine cost
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
        raw = max(raw, took)
    seconds.sort()
    # One of each hundred begun may be later: the worst of 17 is no p99, but what the host did to one: `worst` tells.
    p99 = seconds[max(0, len(seconds) - 1 - math.ceil(len(seconds) / 100))] if seconds else 0.0
    worst = seconds[-1] if seconds else 0.0
    found = {"count": len(seconds), "failed": failed, "p99": p99, "worst": worst, "worst_raw": raw}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
