"""Keeps a process from ending although it was killed, as a disk that does not answer does: by ptrace.

A traced process that is to stop at its exit (PTRACE_O_TRACEEXIT) stops there when it is killed too, with its locks,
descriptors and pid still its own, until its tracer lets it go. `python holder.py PID` prints `ready` and holds it
until its standard input closes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_SEIZE = 0x4206
_TRACE_EXIT = 0x40


@contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """While the block runs, this process survives a SIGKILL; skips where nobody may trace."""
    command = [sys.executable, __file__, str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip("this process may not trace another")
        try:
            yield
        finally:
            holder.communicate()  # its end lets the process go


def main() -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if ptrace(_SEIZE, int(sys.argv[1]), 0, _TRACE_EXIT):
        raise OSError(ctypes.get_errno(), "this process may not trace another")
    print("ready", flush=True)
    os.read(0, 1)


if __name__ == "__main__":
    main()
