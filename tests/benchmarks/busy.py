"""Processes that only burn CPU: an equal load to hold a backup against. `python -m benchmarks.busy SHARE NICE`."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness import TESTS


@dataclass(frozen=True)
class Share:
    """How much of one CPU a process takes, 1.5 being one and a half of them, and how nice it is."""

    of_one: float
    nice: int


@contextlib.contextmanager
def busy(shares: Sequence[Share]) -> Iterator[None]:
    """A process for each share, or several where one CPU does not suffice."""
    with contextlib.ExitStack() as stack:
        for share in shares:
            count = max(1, math.ceil(share.of_one))
            for _ in range(count):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.busy",
                    str(share.of_one / count),
                    str(share.nice),
                ]
                process = subprocess.Popen(command, cwd=TESTS)
                stack.callback(process.wait)
                stack.callback(process.kill)
        yield


def burn(share: float) -> None:
    """In the long run this share of one CPU, in turns of a millisecond or two."""
    began, used = time.monotonic(), time.process_time()
    while True:
        while time.process_time() - used < share * (time.monotonic() - began):
            sum(range(1000))
        time.sleep(0.001)


if __name__ == "__main__":
    os.nice(int(sys.argv[2]))
    burn(float(sys.argv[1]))
