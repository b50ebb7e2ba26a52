"""Runs the command again and again, each time in a fork of a process that has imported it: tens of times a second.

A line of JSON in ({"words", "environ"}), a line of JSON out ({"status", "stderr"}); ends with its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self


def _run(words: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.environ.update(environ)
        sys.argv = ["mothership-backup", *words]
        from mothership_backup.cli import main

        main()
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as stderr:
        text = stderr.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


class Forker:
    """The same from the test's side, with a library preloaded."""

    def __init__(self, preload: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"LD_PRELOAD": str(preload)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def run(self, *words: str | Path, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit status (negative: the signal) and what stood on stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"words": list(map(str, words)), "environ": dict(environ or {})}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["stderr"]


if __name__ == "__main__":
    from mothership_backup.cli.app import build

    build([])  # what the commands import late: here, once

    for line in sys.stdin:
        wanted = json.loads(line)
        status, text = _run(wanted["words"], wanted["environ"])
        print(json.dumps({"status": status, "stderr": text}), flush=True)
