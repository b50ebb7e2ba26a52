"""Another endpoint's latency, asked for every 20 ms by a process of its own: `prober.py URL_PATH PORT`.

What the machine itself costs is taken off: a thread here measures meanwhile how late it is woken from a sleep.
Prints `ready`, then, when its standard input closes, one line of JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time

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


def main() -> None:
    path, port = sys.argv[1], int(sys.argv[2])
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
    print("ready", flush=True)
    while not done.wait(PERIOD_SECONDS):
        lateness.take()
        asked = time.monotonic()
        try:
            connection.request("GET", path)
            failed += connection.getresponse().read() == b"" and path == "/healthz"
        except (OSError, http.client.HTTPException):
            failed += 1
            connection.close()
        took = time.monotonic() - asked
        time.sleep(2 * TICK_SECONDS)  # a tick that began during the answer has to end to be counted
        seconds.append(max(0.0, took - lateness.take()))
    seconds.sort()
    p99 = seconds[int(len(seconds) * 0.99)] if seconds else 0.0
    worst = seconds[-1] if seconds else 0.0
    print(json.dumps({"count": len(seconds), "failed": failed, "p99": p99, "worst": worst}), flush=True)


if __name__ == "__main__":
    main()
