"""A blocking generator on a thread, read as an async iterator: bounded in bytes, prompt to cancel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor
from typing import Final

Chunk = bytes | memoryview

PIECE_BYTES: Final = 256 * 1024  # one huge write to a transport would not be bounded by its flow control


class ThreadStream(AsyncIterator[Chunk]):
    """Drives ``produce()`` in ``executor`` from now on; the loop reads its bytes as pieces of at most 256 KiB.

    Small chunks are joined, since each hop between threads costs; the first one passes at once, and an empty
    chunk means that what is there goes out now. At most ``limit_bytes`` wait here (or one chunk, if that is
    larger), besides the chunks that are being joined; then the thread waits.

    ``cancel`` is called by ``aclose()``: it must be prompt, safe from any thread, and end a generator that
    blocks. Whoever makes a stream awaits ``aclose()``: it returns when the thread has ended, never before.
    """

    def __init__(
        self,
        executor: Executor,
        produce: Callable[[], Iterator[Chunk]],
        *,
        limit_bytes: int,
        cancel: Callable[[], None],
    ) -> None:
        self._produce = produce
        self._limit_bytes = limit_bytes
        self._cancel = cancel
        self._changed = threading.Condition(threading.Lock())
        # All below belong to the condition's lock.
        self._pieces: deque[Chunk] = deque()
        self._buffered_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._begun = False
        self._ended = False
        self._closed = False

        self._loop = asyncio.get_running_loop()
        #: Done when the thread has ended: only then is what it used free again.
        self.thread: asyncio.Future[None] = self._loop.run_in_executor(executor, self._run)

    # What the loop calls.

    async def begun(self) -> None:
        """Wait until the generator has yielded for the first time, even nothing. May be cancelled and repeated.

        What it raised comes out here, as with ``__anext__``.
        """
        await self._wait(lambda: self._begun)

    async def _wait(self, arrived: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                if arrived() or self._ended or self._closed:
                    return
                if self._waiter is not None:
                    raise RuntimeError("somebody else reads this stream already")
                waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                with self._changed:
                    if self._waiter is waiter:
                        self._waiter = None

    async def __anext__(self) -> Chunk:
        """The next piece. What the generator raised comes out at once: buffered bytes are dropped for it.

        The end comes when the thread has ended: whoever sees the last byte may ask for what it used, at once.
        """
        await self._wait(lambda: bool(self._pieces))
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._pieces:
                piece = self._pieces.popleft()
                self._buffered_bytes -= len(piece)
                # Not at every piece: fewer changes of thread.
                if self._buffered_bytes <= self._limit_bytes // 2:
                    self._changed.notify()
                return piece
        await self._join()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the generator, and return when its thread has ended, however often the caller is cancelled meanwhile."""
        with self._changed:
            self._closed = True
            self._drop()
            self._changed.notify()
            ended = self._ended
            waiter = self._take_waiter()
        _wake(waiter)
        try:
            if not ended:
                self._cancel()
        finally:
            await self._join()
            if self._error is not None:
                drop_frames(self._error)

    async def _join(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        while not self.thread.done():
            try:
                # Not the future itself: cancelled with its waiter, it would let go of a thread that runs.
                await asyncio.wait({self.thread})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    # What the thread calls.

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._pump()
        except BaseException as failure:  # whatever it is, it is the reader of the stream who has to know
            error = failure
        with self._changed:
            self._ended = True
            self._error = error
            if error is not None:
                self._drop()
            waiter = self._take_waiter()
        self._wake_from_thread(waiter)

    def _pump(self) -> None:
        if self._closed:  # before it began
            return
        chunks = self._produce()
        with contextlib.ExitStack() as stack:
            if isinstance(chunks, Generator):
                # Here and nowhere else: closed from the loop it would be "already executing".
                stack.callback(chunks.close)
            for joined in _join_small(self._noted(chunks)):
                if not self._hand_over(joined):
                    return

    def _noted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if not self._begun:
                with self._changed:
                    self._begun = True
                    waiter = self._take_waiter()
                self._wake_from_thread(waiter)
            yield chunk

    def _hand_over(self, chunk: Chunk) -> bool:
        """Put it into the buffer when there is room; False if nobody wants it any more."""
        size = len(chunk)
        low = self._limit_bytes // 2
        with self._changed:
            if self._buffered_bytes + size > self._limit_bytes:
                self._changed.wait_for(
                    lambda: (
                        self._closed
                        or self._buffered_bytes == 0
                        or self._buffered_bytes <= min(low, self._limit_bytes - size)
                    )
                )
            if self._closed:
                return False
            self._pieces.extend(_cut(chunk))
            self._buffered_bytes += size
            waiter = self._take_waiter()
        self._wake_from_thread(waiter)
        return True

    # With the lock held.

    def _drop(self) -> None:
        self._pieces.clear()
        self._buffered_bytes = 0

    def _take_waiter(self) -> asyncio.Future[None] | None:
        waiter, self._waiter = self._waiter, None
        return waiter

    def _wake_from_thread(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None:
            self._loop.call_soon_threadsafe(_wake, waiter)


def drop_frames(error: BaseException) -> None:
    """Take the traceback off an error that was dealt with, and off those that it came from.

    Its frames hold megabytes of buffers, and refer to the error again: only the garbage collector would end that
    cycle, many aborted backups later.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _join_small(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Chunks joined up to PIECE_BYTES; larger ones as they are."""
    small: list[Chunk] = []
    size = 0
    begun = False
    for chunk in chunks:
        if small and size + len(chunk) > PIECE_BYTES:
            yield _joined(small)
            small, size = [], 0
        if chunk:
            small.append(chunk)
            size += len(chunk)
        if small and (not chunk or not begun or size >= PIECE_BYTES):
            yield _joined(small)
            small, size, begun = [], 0, True
    if small:
        yield _joined(small)


def _joined(chunks: list[Chunk]) -> Chunk:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)  # a large one comes alone: no copy of it


def _cut(chunk: Chunk) -> Iterator[Chunk]:
    if len(chunk) <= PIECE_BYTES:
        yield chunk
        return
    view = memoryview(chunk)
    for start in range(0, len(chunk), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
