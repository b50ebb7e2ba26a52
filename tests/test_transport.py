from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from certificates import Authority
from mothership_backup.web.transport import Connection

Talk = Callable[[Connection, web.StreamResponse], Awaitable[None]]

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.asynccontextmanager
async def answering(talk: Talk, path: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on loopback, or at a path, whose one handler streams by `talk`; its port."""

    async def handle(request: web.Request) -> web.StreamResponse:
        connection, response = Connection(request), web.StreamResponse()
        connection.arm()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await talk(connection, response)
        return response

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.UnixSite(runner, path) if path else web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield 0 if path else runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def fill_kernel(connection: Connection, response: web.StreamResponse) -> None:
    """Write until it takes no more of it, and something waits."""
    waiting = 0
    while not waiting or connection._waiting_bytes() < waiting:
        await response.write(b"x" * 20_000)  # little: from 64 KiB on it would wait for the client
        waiting = connection._waiting_bytes()
        if waiting:
            await asyncio.sleep(0.2)  # no event tells that the kernel has had enough


async def read_all(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    try:
        return await reader.read()
    finally:
        writer.close()


def is_reset(peer: socket.socket, seconds: float = 5) -> bool:
    poll = select.poll()
    poll.register(peer, select.POLLERR)
    return bool(poll.poll(seconds * 1000))


async def test_reset_is_an_error_for_the_peer() -> None:
    """A cut in mid-body is a reset and no end, with bytes on their way and without."""

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        await response.write(b"x" * 1000)
        connection.reset()

    async with answering(talk) as port:
        with pytest.raises(ConnectionResetError):
            await read_all(port)


async def test_reset_reaches_a_peer_that_does_not_read() -> None:
    """Bytes that wait in the transport do not hold it up."""
    waits = asyncio.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        asyncio.get_running_loop().call_later(0.2, connection.reset)
        while True:
            waits.set()
            await response.write(b"x" * 200_000)

    async with answering(talk) as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(REQUEST)
            await waits.wait()
            assert await asyncio.to_thread(is_reset, peer)


async def test_reset_although_a_fork_holds_the_socket() -> None:
    """A worker that the host forked in mid-stream has every connection too, and does not keep it alive."""
    workers: list[int] = []

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        await response.write(b"x" * 1000)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            while True:
                signal.pause()
        workers.append(pid)
        connection.reset()

    try:
        async with answering(talk) as port, asyncio.timeout(5):
            with pytest.raises(ConnectionResetError):
                await read_all(port)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


async def test_reset_after_the_end_is_nothing() -> None:
    """A connection that was closed while bytes waited, and then sent them, can be reset without an error."""
    failures: list[Exception] = []
    done = asyncio.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        transport = connection._transport
        assert transport is not None
        transport.write(bytes(8_000_000))
        transport.close()
        async with asyncio.timeout(5):
            while transport.get_extra_info("socket").fileno() >= 0:
                await asyncio.sleep(0.01)  # no event tells it
        try:
            connection.reset()
        except Exception as error:
            failures.append(error)
        done.set()

    async with answering(talk) as port:
        with contextlib.suppress(ConnectionError):
            await read_all(port)
        await asyncio.wait_for(done.wait(), 5)

    assert failures == []


async def test_finish_ends_in_order() -> None:
    """After `finish` the peer gets all bytes and an orderly end, and the connection serves the next request."""

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        await response.write(b"x" * 3_000_000)
        await response.write_eof()
        await connection.finish()

    async with answering(talk) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4_000_000)
        for _ in range(2):
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert body.count(b"x") == 3_000_000
        writer.close()


async def test_finish_waits_for_the_kernel() -> None:
    """`finish` returns when no byte waits in the process any more, and not before."""
    written, finished = asyncio.Event(), asyncio.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        transport = connection._transport
        assert transport is not None
        while transport.get_write_buffer_size() < 10_000:  # until the kernel takes no more
            await response.write(b"x" * 20_000)
        written.set()
        await connection.finish()
        assert transport.get_write_buffer_size() == 0
        finished.set()

    async with answering(talk) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(REQUEST)
        await written.wait()
        assert not finished.is_set()
        while not finished.is_set():
            await reader.read(100_000)
        writer.close()


async def test_finish_waits_below_tls(tmp_path: Path) -> None:
    """asyncio's TLS says that it holds nothing, while the transport below it holds hundreds of kilobytes."""
    authority = Authority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.issue("served"))
    written, finished = asyncio.Event(), asyncio.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        assert connection._transport is not None
        await fill_kernel(connection, response)
        assert connection._transport.get_write_buffer_size() == 0
        written.set()
        await connection.finish()
        assert connection._waiting_bytes() == 0
        finished.set()

    async with answering(talk, tls=tls) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000, ssl=authority.client())
        writer.write(REQUEST)
        await asyncio.wait_for(written.wait(), 10)
        assert not finished.is_set()
        while not finished.is_set():
            await reader.read(100_000)
        writer.transport.abort()


async def test_finish_fails_when_the_client_left() -> None:
    """A client that leaves before the last bytes is no success."""
    outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        try:
            await response.write(b"x" * 60_000_000)
            await connection.finish()
        except ConnectionError as error:
            outcome.set_result(error)

    async with answering(talk) as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(REQUEST)
            await asyncio.to_thread(peer.recv, 100)

        assert isinstance(await outcome, ConnectionError)


async def test_stalled_and_left() -> None:
    """A peer that takes nothing stalls after the time; one that goes is noticed without a write."""
    told: list[str] = []
    done = asyncio.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        def stalled() -> None:
            told.append("stalled")
            connection.reset()

        def left() -> None:
            told.append("left")
            done.set()

        with connection.watched(1.0, stalled=stalled, left=left):
            if not told:
                while True:
                    await response.write(b"x" * 200_000)
            await response.write(b"one word")
            await done.wait()

    async with answering(talk) as port, asyncio.timeout(10):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(REQUEST)
            assert await asyncio.to_thread(is_reset, peer)
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(REQUEST)
            await asyncio.to_thread(peer.recv, 1000)
        await done.wait()

    assert told == ["stalled", "left"]


async def test_silence_is_no_stall() -> None:
    """While nothing waits to be sent, a client may take nothing for as long as it likes."""
    told: list[str] = []

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        with connection.watched(
            0.1, stalled=lambda: told.append("stalled"), left=lambda: told.append("left")
        ):
            await asyncio.sleep(1.2)
        await response.write_eof()
        await connection.finish()

    async with answering(talk) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()

    assert told == []


async def test_unix_socket(tmp_path: Path) -> None:
    """Without TCP below: a stall is seen by the buffer, and a cut is at least no whole body."""
    told: list[str] = []

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        def stalled() -> None:
            told.append("stalled")
            connection.reset()

        with connection.watched(0.5, stalled=stalled, left=lambda: told.append("left")):
            while True:
                await response.write(b"x" * 200_000)

    path = str(tmp_path / "socket")
    async with answering(talk, path), asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(path, limit=1000)
        writer.write(REQUEST)
        await asyncio.sleep(1.5)
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()

    assert told == ["stalled"]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_client_that_has_everything_may_leave_at_once(is_tls: bool, tmp_path: Path) -> None:
    """It was no client that left: its last bytes were out before it went."""
    authority = Authority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.issue("served"))
    outcomes: list[str] = []
    is_full = threading.Event()

    async def talk(connection: Connection, response: web.StreamResponse) -> None:
        await fill_kernel(connection, response)
        is_full.set()
        try:
            await response.write_eof()
            await connection.finish()
        except ConnectionError as error:
            outcomes.append(repr(error))
        else:
            outcomes.append("delivered")

    def take(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            peer = authority.client().wrap_socket(plain, server_hostname="127.0.0.1") if is_tls else plain
            peer.sendall(REQUEST)
            assert is_full.wait(10)
            last = b""
            while not last.endswith(b"\r\n0\r\n\r\n"):
                piece = peer.recv(65536)
                assert piece
                last = (last + piece)[-7:]
            peer.close()

    async with answering(talk, tls=tls if is_tls else None) as port:
        for _ in range(5):
            is_full.clear()
            await asyncio.to_thread(take, port)

    assert outcomes == ["delivered"] * 5
