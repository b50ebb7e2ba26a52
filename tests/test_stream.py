from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from mothership_backup.stream import PIECE_BYTES, Chunk, ThreadStream

LIMIT_BYTES = 4 * PIECE_BYTES
SECONDS = 10

Start = Callable[..., ThreadStream]


@pytest.fixture
async def executor() -> AsyncIterator[ThreadPoolExecutor]:
    """One thread; a test that leaves it running hangs here and fails by its timeout."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def start(executor: ThreadPoolExecutor) -> Start:
    def start(
        produce: Callable[[], Iterator[Chunk]], cancel: Callable[[], None] = lambda: None
    ) -> ThreadStream:
        return ThreadStream(executor, produce, limit_bytes=LIMIT_BYTES, cancel=cancel)

    return start


async def arrived(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, SECONDS)


async def test_order_and_size(start: Start) -> None:
    """Bytes come out as they went in, in pieces of at most 256 KiB, whatever the sizes of the chunks."""
    chunks = [bytes([n % 251]) * size for n, size in enumerate((1, 70, 300_000, 0, 5, 2_000_000, 262_144, 3))]

    async with aclosing(start(lambda: iter(chunks))) as stream:
        pieces = [bytes(piece) async for piece in stream]

    assert b"".join(pieces) == b"".join(chunks)
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


async def test_small_chunks_are_joined(start: Start) -> None:
    """Ten thousand chunks of 100 bytes cross between the threads as a few pieces."""
    async with aclosing(start(lambda: iter([b"x" * 100] * 10_000))) as stream:
        pieces = [piece async for piece in stream]

    assert len(pieces) <= 6


async def test_first_chunk_passes_at_once(start: Start) -> None:
    """The first byte does not wait for the chunks after it."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        yield b"first"
        release.wait(SECONDS)

    async with aclosing(start(produce, release.set)) as stream:
        assert await anext(stream) == b"first"
        assert not release.is_set()


async def test_the_end_comes_after_the_thread(start: Start) -> None:
    """Whoever has read all of it finds the thread ended: a client's next request, at once, has the slot."""
    for _ in range(200):
        async with aclosing(start(lambda: iter([b"all"]))) as stream:
            assert [bytes(piece) async for piece in stream] == [b"all"]

            assert stream.thread.done()


async def test_a_large_chunk_is_not_copied(start: Start) -> None:
    """Its pieces are views of it, behind small ones too: a copy of every byte costs time and memory."""
    large = bytearray(3 * PIECE_BYTES + 1)

    async with aclosing(start(lambda: iter([b"small", memoryview(large), b"small"]))) as stream:
        pieces = [piece async for piece in stream]

    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert sum(map(len, views)) == len(large)
    assert all(view.obj is large for view in views)


async def test_empty_chunk_flushes(start: Start) -> None:
    """A pulse passes the joiner, with what waited in it."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        yield from (b"first", b"pulse", b"")
        release.wait(SECONDS)

    async with aclosing(start(produce, release.set)) as stream:
        assert [await anext(stream), await anext(stream)] == [b"first", b"pulse"]
        assert not release.is_set()


async def test_begun_at_an_empty_chunk(start: Start) -> None:
    """`begun` returns when the generator has decided, before there is a byte."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        yield b""
        release.wait(SECONDS)

    async with aclosing(start(produce, release.set)) as stream:
        await stream.begun()
        assert not release.is_set()


@pytest.mark.parametrize("chunk_bytes", [1000, 100_000, PIECE_BYTES, PIECE_BYTES + 1])
async def test_buffer_is_bounded(start: Start, chunk_bytes: int) -> None:
    """However slow the consumer, the producer is never further ahead than the limit and one joined piece."""
    full = threading.Event()
    produced = consumed = furthest = 0

    def produce() -> Iterator[bytes]:
        nonlocal produced, furthest
        for _ in range(16 * LIMIT_BYTES // chunk_bytes):
            produced += chunk_bytes
            furthest = max(furthest, produced - consumed)
            if produced >= LIMIT_BYTES:
                full.set()
            yield b"x" * chunk_bytes

    async with aclosing(start(produce)) as stream:
        await arrived(full)
        async for piece in stream:
            consumed += len(piece)
            await asyncio.sleep(0)

    assert consumed == produced
    # What is in hand at the far end: a joined piece, the chunk after it, and the piece just taken here.
    assert furthest <= LIMIT_BYTES + 2 * PIECE_BYTES + 2 * chunk_bytes


async def test_chunk_beyond_the_limit(start: Start) -> None:
    """One chunk larger than the whole buffer passes alone, instead of waiting for ever."""
    size = 3 * LIMIT_BYTES

    async with aclosing(start(lambda: iter([b"a", b"x" * size, memoryview(b"z")]))) as stream:
        total = sum([len(piece) async for piece in stream])

    assert total == size + 2


async def test_error_comes_out_at_once(start: Start) -> None:
    """What the generator raises does not queue behind the bytes before it."""
    failed = threading.Event()

    def produce() -> Iterator[bytes]:
        yield b"x" * PIECE_BYTES
        yield b"y" * PIECE_BYTES
        failed.set()
        raise ZeroDivisionError("on purpose")

    stream = start(produce)
    await arrived(failed)
    await stream.thread

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        await anext(stream)
    await stream.aclose()


async def test_error_wakes_a_waiting_consumer(start: Start) -> None:
    """A consumer that waits already gets the error too."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        if release.wait(SECONDS):
            raise ZeroDivisionError
        yield b"too late"

    async with aclosing(start(produce)) as stream:
        consumer = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        release.set()

        with pytest.raises(ZeroDivisionError):
            await consumer


async def test_close_cancels_a_blocked_generator(start: Start) -> None:
    """`aclose` calls cancel, and the generator is closed in its own thread."""
    waits, release = threading.Event(), threading.Event()
    closed_in: list[int] = []

    def produce() -> Iterator[bytes]:
        try:
            yield b"first"
            waits.set()
            release.wait(SECONDS)
            yield b"second"
        finally:
            closed_in.append(threading.get_ident())

    stream = start(produce, release.set)
    await arrived(waits)
    await stream.aclose()

    assert stream.thread.done()
    assert closed_in
    assert closed_in != [threading.get_ident()]
    assert [piece async for piece in stream] == []


async def test_close_frees_a_thread_that_waits_for_room(start: Start) -> None:
    """A generator that is held up by backpressure, and knows no cancel, is closed."""
    full, closed = threading.Event(), threading.Event()

    def produce() -> Iterator[bytes]:
        try:
            for count in range(1_000_000):
                if count == LIMIT_BYTES // PIECE_BYTES:
                    full.set()
                yield b"x" * PIECE_BYTES
        finally:
            closed.set()

    stream = start(produce)
    await arrived(full)
    await stream.aclose()

    assert stream.thread.done()
    assert closed.is_set()


async def test_second_cancel_does_not_let_go(start: Start) -> None:
    """A task that is cancelled again and again while it closes still waits for the thread."""
    asked, release = threading.Event(), threading.Event()

    def produce() -> Iterator[bytes]:
        yield b"first"
        release.wait(SECONDS)  # does not obey cancel: a reader that hangs on a disk

    stream = start(produce, asked.set)

    taken = asyncio.Event()

    async def consume() -> None:
        async with aclosing(stream):
            async for _ in stream:
                taken.set()

    consumer = asyncio.ensure_future(consume())
    await taken.wait()
    for _ in range(3):
        consumer.cancel()
        await asyncio.wait({consumer}, timeout=0.02)
        assert not consumer.done()
    assert asked.is_set()
    assert not stream.thread.done()

    release.set()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert stream.thread.done()


async def test_cancelled_wait_loses_nothing(start: Start) -> None:
    """A consumer that gives up waiting finds the same bytes when it comes back."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        release.wait(SECONDS)
        yield b"late"

    async with aclosing(start(produce)) as stream:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(stream)
        release.set()

        assert [piece async for piece in stream] == [b"late"]


class Buffer(bytearray):
    """Bytes whose end can be seen: bytearray itself takes no weak references."""


async def test_what_an_error_held_is_free_at_once(start: Start) -> None:
    """A generator that failed gives its buffers back when the stream is closed, not when the collector runs."""
    held: list[weakref.ref[Buffer]] = []

    def produce() -> Iterator[Chunk]:
        buffer = Buffer(1000)
        held.append(weakref.ref(buffer))
        yield memoryview(buffer)
        raise ValueError("no more")

    gc.disable()
    try:
        async with aclosing(start(produce)) as stream:
            with pytest.raises(ValueError, match="no more") as raised:
                async for _ in stream:
                    pass
        assert raised.value.__traceback__ is None
        del raised

        assert held[0]() is None
    finally:
        gc.enable()


async def test_closed_before_it_began(executor: ThreadPoolExecutor, start: Start) -> None:
    """A stream that waits for a thread when it is closed never calls its generator."""
    release = threading.Event()
    called = threading.Event()

    def produce() -> Iterator[bytes]:
        called.set()
        return iter([b"x"])

    busy = executor.submit(release.wait, SECONDS)
    stream = start(produce, release.set)
    await stream.aclose()

    assert busy.result()
    assert not called.is_set()


async def test_one_consumer(start: Start) -> None:
    """A second consumer is an error, not a race."""
    release = threading.Event()

    def produce() -> Iterator[bytes]:
        release.wait(SECONDS)
        yield b"x"

    async with aclosing(start(produce)) as stream:
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="somebody else"):
            await anext(stream)
        release.set()

        assert await first == b"x"
