"""Frames out: one writer for all threads of the reader, and a sign of life when nothing else goes out."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress

from mothership_backup import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_PIPE_BYTES: Final = 1024 * 1024  # the most that an unprivileged process may ask for
_GATHERED_BYTES: Final = 64 * 1024


def take_stdout() -> int:
    """A private duplicate of fd 1; then 1 becomes 2, so that no stray print can get between two frames."""
    private = os.dup(1)
    os.set_inheritable(private, False)
    os.dup2(2, 1)
    with suppress(
        OSError, AttributeError
    ):  # not Linux, or the user's pipes are used up: slower, and nothing else
        fcntl.fcntl(private, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return private


class FrameWriter:
    """Writes whole frames; a full pipe blocks the writing thread, which is the backpressure.

    A frame that may wait goes out with the next that may not, or after a second, or when 64 KiB wait: thousands
    of small files are not as many writes. Raises BrokenPipeError when the service is gone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._last_sent = time.monotonic()
        self._closed = threading.Event()  # with the last frame: what other threads still say is dropped
        threading.Thread(target=self._keep_alive, name="alive", daemon=True).start()

    def send(self, frame_type: int, document: dict[str, Any], *, may_wait: bool = False) -> None:
        """A frame around a JSON object. After END or ERROR nothing goes out any more."""
        is_last = frame_type in (frames.END, frames.ERROR)
        self._write([frames.encode_document(frame_type, document)], may_wait=may_wait, is_last=is_last)

    def send_data(self, packed: bytes, size_bytes: int, crc: int, *, may_wait: bool = False) -> None:
        """A piece of the entry in turn: ``size_bytes`` before packing, ``crc`` of the entry so far."""
        self._write([frames.data_header(len(packed), size_bytes, crc), packed], may_wait=may_wait)

    def flush(self) -> None:
        """What waits goes out now: whoever sends next may take his time."""
        self._write([])

    def close(self) -> None:
        """The pipe's end, which must follow the last frame."""
        self._closed.set()
        with self._lock:
            os.close(self._fd)

    def _write(self, parts: list[bytes], *, may_wait: bool = False, is_last: bool = False) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            if is_last:
                self._closed.set()
            self._waiting += parts
            self._waiting_bytes += sum(map(len, parts))
            if not may_wait or self._waiting_bytes >= _GATHERED_BYTES:
                self._write_waiting()

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        *small, last = self._waiting  # a large one is the last
        parts = [b"".join(small), last]
        missing = self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        missing -= os.writev(self._fd, parts)
        if missing:
            rest = memoryview(b"".join(parts))[-missing:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._last_sent = time.monotonic()

    def _keep_alive(self) -> None:
        wait = frames.ALIVE_SECONDS
        while not self._closed.wait(wait):
            quiet = time.monotonic() - self._last_sent
            wait = frames.ALIVE_SECONDS - quiet
            if wait > 0:
                continue
            wait = frames.ALIVE_SECONDS
            # A frame on its way is a sign of life, and a full pipe is the client's doing: never wait here.
            if self._lock.acquire(blocking=False):
                try:
                    if not self._closed.is_set():
                        alive = frames.encode_document(frames.ALIVE, {})
                        self._waiting.append(alive)
                        self._waiting_bytes += len(alive)
                        self._write_waiting()
                except OSError:
                    return  # the service is gone; the watch ends this process
                finally:
                    self._lock.release()
