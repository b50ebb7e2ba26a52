"""What the other endpoint's latency is worth: it sees a loop that is blocked, and does not see a busy machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from harness import Service
from torture.harness import Fire, probing

# Every tenth answer blocks its loop for that many seconds.
HOST = """
import itertools, socket, sys, time
from aiohttp import web

count = itertools.count(1)

async def healthz(_):
    if next(count) % 10 == 0:
        time.sleep(float(sys.argv[1]))
    return web.Response(text="ok")

app = web.Application()
app.router.add_get("/healthz", healthz)
listener = socket.create_server(("127.0.0.1", 0))
line = f"it listens on http://127.0.0.1:{listener.getsockname()[1]} "
web.run_app(app, sock=listener, access_log=None, print=lambda _: print(line, file=sys.stderr))
"""


@contextlib.contextmanager
def host(folder: Path, blocked_seconds: float) -> Iterator[Service]:
    service = Service(["-c", HOST, str(blocked_seconds)], folder / "host.log")
    try:
        yield service
    finally:
        service.kill()


@contextlib.contextmanager
def hogs(count: int, processor: int) -> Iterator[None]:
    """So many processes that never rest, on one processor."""
    code = f"import os; os.sched_setaffinity(0, [{processor}])\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            )
            stack.callback(process.kill)
        yield


def test_a_blocked_loop_is_seen(tmp_path: Path) -> None:
    fire = Fire()
    with host(tmp_path, 0.15) as service, probing(service, "/healthz", fire):
        threading.Event().wait(2)

    assert fire.latency["count"] > 10
    assert fire.latency["p99"] > 0.1
    assert fire.latency["worst"] > 0.14


def test_a_busy_processor_is_not(tmp_path: Path) -> None:
    """The service has to share one processor, as it has to with other tests; its loop does what it should."""
    fire = Fire()
    processor = min(os.sched_getaffinity(0))
    with host(tmp_path, 0) as service, hogs(80, processor):
        os.sched_setaffinity(service.pid, [processor])
        with probing(service, "/healthz", fire):
            threading.Event().wait(5)

    assert fire.latency["worst_raw"] > 0.05
    assert fire.latency["p99"] < fire.latency["worst_raw"] / 3
