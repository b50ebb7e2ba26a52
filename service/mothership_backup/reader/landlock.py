"""Landlock: this thread, and every thread it starts from then on, can create and remove nothing.

SQLite would otherwise leave a `-wal` and `-shm` of ours beside another user's database, and its owner
could not write to it any more. See landlock(7); no privilege is needed.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CREATE_RULESET: Final = 444  # the same numbers on every architecture
_RESTRICT_SELF: Final = 446
_PR_SET_NO_NEW_PRIVS: Final = 38
_REMOVE_AND_MAKE: Final = sum(
    1 << bit for bit in range(4, 13)
)  # REMOVE_DIR, REMOVE_FILE, MAKE_CHAR … MAKE_SYM


def deny_create_and_remove() -> bool:
    """Take the right to create and remove files from this thread; False where the kernel has no Landlock."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", _REMOVE_AND_MAKE)
    ruleset = libc.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return False
    try:
        # A ruleset without a single rule denies everything that it handles.
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return int(libc.syscall(_RESTRICT_SELF, ruleset, 0)) == 0
    finally:
        os.close(ruleset)
