"""The watch: ends this process when its parent is gone, a pin is held too long, a WAL grows, or a disk fills.

It ends it by `os._exit`, with a status of its own for each reason: the thread that would say so in a frame may
be waiting for a full pipe, and the kernel frees every lock at once.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time

from mothership_backup import frames
from mothership_backup.reader.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from mothership_backup.reader.instant import Pin

_TICK_SECONDS: Final = 1.0
_LOCK_GRACE_SECONDS: Final = 2.0


class Watch:
    """One daemon thread. Everything that holds a lock is registered with `hold` and taken off with `release`.

    It looks at the parent from the start, and at the request's limits from `begin` on.
    """

    def __init__(self, parent_pid: int) -> None:
        self._request: Request | None = None
        self._held: set[Pin] = set()
        self._lock = threading.Lock()
        self.longest_pin_seconds = 0.0
        self.largest_growth_bytes = 0  # of a WAL while its database was pinned
        self._copy_since = 0.0  # monotonic start of the staging copy that holds a rollback lock; 0: none
        self._parent_pid = parent_pid
        self._parent = _open_parent(parent_pid)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def begin(self, request: Request) -> None:
        self._request = request

    def hold(self, pin: Pin) -> None:
        with self._lock:
            self._held.add(pin)

    def release(self, pin: Pin) -> None:
        growth_bytes = _size(pin.wal_path) - pin.wal_bytes  # a dead disk must not keep the lock
        held_seconds = time.monotonic() - pin.held_since
        with self._lock:
            if pin not in self._held:
                return
            self._held.discard(pin)
            self.longest_pin_seconds = max(self.longest_pin_seconds, held_seconds)
            self.largest_growth_bytes = max(self.largest_growth_bytes, growth_bytes)

    def copy_began(self) -> None:
        """A staging copy holds a rollback-journal database's lock from now on."""
        self._copy_since = time.monotonic()

    def copy_ended(self) -> None:
        self._copy_since = 0.0

    def _run(self) -> None:
        while True:
            if self._parent >= 0:
                poll = select.poll()
                poll.register(self._parent, select.POLLIN)
                if poll.poll(_TICK_SECONDS * 1000):
                    _end(frames.EXIT_PARENT_GONE, "the service is gone")
            else:
                time.sleep(_TICK_SECONDS)
                if os.getppid() != self._parent_pid:
                    _end(frames.EXIT_PARENT_GONE, "the service is gone")
            if self._request is not None:
                self._look(self._request)

    def _look(self, request: Request) -> None:
        now = time.monotonic()
        copy_since = self._copy_since
        if copy_since and now - copy_since > request.max_lock_seconds + _LOCK_GRACE_SECONDS:
            _end(frames.EXIT_HOLD, "a staging copy does not come to its end: the disk does not answer")
        with self._lock:
            held = list(self._held)
        growth = max((_size(pin.wal_path) - pin.wal_bytes for pin in held), default=0)
        if any(now - pin.held_since > request.max_hold_seconds for pin in held):
            _end(frames.EXIT_HOLD, f"a snapshot was held for over {request.max_hold_seconds} s")
        if growth > request.max_wal_growth_bytes:
            _end(frames.EXIT_WAL_GROWTH, f"a WAL grew by {growth} bytes while its snapshot was held")
        # Only a WAL that grows because of us makes a full disk our doing.
        if growth > 0 and _free_bytes(request.data_dir) < request.min_free_bytes:
            _end(
                frames.EXIT_DISK_FULL,
                f"less than {request.min_free_bytes} bytes are free beside a growing WAL",
            )


def _open_parent(parent_pid: int) -> int:
    """A descriptor of the parent; a pipe would not do: every process that the host forks inherits its ends."""
    fd = -1
    if sys.platform == "linux":
        try:
            fd = os.pidfd_open(parent_pid)
        except ProcessLookupError:
            _end(frames.EXIT_PARENT_GONE, "the service is gone")
        except OSError:
            pass  # a kernel before 5.3: asked once a second
    if os.getppid() != parent_pid:
        _end(frames.EXIT_PARENT_GONE, "the service is gone")
    return fd


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # no WAL any more: nothing grows


def _free_bytes(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _end(status: int, reason: str) -> NoReturn:
    try:
        os.write(2, f"reader: {reason}\n".encode())
    finally:
        os._exit(status)
