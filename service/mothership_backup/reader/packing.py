"""An entry's pieces on threads: hashed in their order, deflated several at a time, given back in their order.

hashlib, isal and zlib let go of the GIL. Each piece is deflated by itself (see `deflate`), so the bytes are the
same for any number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue

from mothership_backup import deflate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash
    from typing import Final

    Piece = tuple[bytes, int, int]  # what goes out, its size before packing, the CRC of the entry up to here

_MOST_CHOSEN: Final = 4  # hashing keeps up with no more; each holds a piece of 1 MiB, and its deflated form
_AHEAD: Final = 2  # pieces that wait besides those in work: enough that no thread does


class Packer:
    """The threads of one reader; they start with the first entry that is worth it and end with the process."""

    def __init__(self, threads: int) -> None:
        """``threads`` deflate; 0 chooses: one less than this process has cores, for whoever runs beside it."""
        self._threads = threads or min(max(1, _cores() - 1), _MOST_CHOSEN)
        self._to_hash: SimpleQueue[_Job] = SimpleQueue()
        self._to_pack: SimpleQueue[tuple[_Job, int]] = SimpleQueue()
        self._are_running = False

    def on_threads(self, pieces: Iterator[bytes], level: int | None, sha256: _Hash) -> Iterator[Piece]:
        """``pieces`` deflated at ``level`` (None: as they are), and ``sha256`` updated with all of them.

        At most ``threads`` and two are held. Raises what deflating raised, MemoryError for one.
        """
        self._start()
        jobs: deque[_Job] = deque()
        crc = 0
        for data in pieces:
            crc = deflate.crc32(data, crc)
            job = _Job(data, crc, sha256, is_packed=level is None)
            jobs.append(job)
            self._to_hash.put(job)
            if level is not None:
                self._to_pack.put((job, level))
            while jobs and (len(jobs) >= self._threads + _AHEAD or jobs[0].is_done):
                yield jobs.popleft().wait()
        while jobs:
            yield jobs.popleft().wait()

    def _start(self) -> None:
        if self._are_running:
            return
        self._are_running = True
        threading.Thread(target=self._hash, name="sha256", daemon=True).start()
        for number in range(self._threads):
            threading.Thread(target=self._pack, name=f"deflate {number}", daemon=True).start()

    def _hash(self) -> None:
        while True:
            self._to_hash.get().hash()

    def _pack(self) -> None:
        while True:
            job, level = self._to_pack.get()
            job.pack(level)


def one_by_one(pieces: Iterator[bytes], level: int | None, sha256: _Hash) -> Iterator[Piece]:
    """The same without a thread: each piece goes out before the next is asked for."""
    crc = 0
    for data in pieces:
        crc = deflate.crc32(data, crc)
        sha256.update(data)
        yield (data if level is None else deflate.pack(data, level), len(data), crc)


def _cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """One piece, on two threads at once."""

    def __init__(self, data: bytes, crc: int, sha256: _Hash, *, is_packed: bool) -> None:
        self._data = data
        self._crc = crc
        self._sha256 = sha256
        self._packed = data
        self._error: BaseException | None = None
        # Locks as events: an Event has a lock and a list besides.
        self._is_hashed = threading.Lock()
        self._is_hashed.acquire()
        self._is_packed = threading.Lock()
        if not is_packed:
            self._is_packed.acquire()

    @property
    def is_done(self) -> bool:
        return not self._is_hashed.locked() and not self._is_packed.locked()

    def hash(self) -> None:
        self._sha256.update(self._data)
        self._is_hashed.release()

    def pack(self, level: int) -> None:
        try:
            self._packed = deflate.pack(self._data, level)
        except BaseException as error:  # raised again by whoever waits
            self._error = error
        self._is_packed.release()

    def wait(self) -> Piece:
        self._is_hashed.acquire()
        self._is_packed.acquire()
        if self._error is not None:
            raise self._error
        return (self._packed, len(self._data), self._crc)
