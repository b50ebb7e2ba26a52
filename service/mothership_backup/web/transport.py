"""The connection below a response: cut so that it looks cut, and watched for a client that stalls or leaves."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web

NOTSENT_LOWAT_BYTES: Final = 128 * 1024
SAMPLE_SECONDS: Final = 0.5  # the reader has to be gone within a second of its client
RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)
CLOSE_IN_ORDER: Final = struct.pack("ii", 0, 0)
# struct tcp_info of linux/tcp.h: eight u8, twenty-four u32, two u64, then tcpi_bytes_acked (Linux 4.1)
BYTES_ACKED_OFFSET: Final = 8 + 24 * 4 + 2 * 8
AF_UNSPEC_ADDRESS: Final = bytes(16)


class _Ear(asyncio.BaseProtocol):
    """Between a transport and its protocol, to hear at once when nothing is left to send, or the transport is lost.

    A client that has everything leaves at once, and by the time that a task which waited for a drain goes on, it
    would look like one that left too early.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, is_empty: Callable[[], bool]) -> None:
        self.heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._protocol: Any = protocol  # of one of two kinds, and each has what its transport calls
        self._is_empty = is_empty

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()  # TLS may have more for it now
        if self._is_empty() and not self.heard.done():
            self.heard.set_result(True)

    def eof_received(self) -> bool | None:
        keep: bool | None = self._protocol.eof_received()
        return keep

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        if not self.heard.done():
            self.heard.set_result(False)


class _PlainEar(_Ear, asyncio.Protocol):
    """Below aiohttp's own."""

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)


class _TlsEar(_Ear, asyncio.BufferedProtocol):
    """Below asyncio's TLS."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._protocol.get_buffer(sizehint))

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.buffer_updated(nbytes)


class Connection:
    """The connection of one request. Held from its start: aiohttp forgets a transport before our cleanup may run."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._transport = request.transport
        self._writer = request.writer
        self._socket: socket.socket | None = None
        if self._transport is not None:
            self._socket = self._transport.get_extra_info("socket")

    @property
    def is_lost(self) -> bool:
        """Whether the client has left, or the connection was cut."""
        return self._transport is None or self._transport.is_closing()

    def arm(self) -> None:
        """From now on every end of this connection is a reset, also when this process is killed.

        A FIN in the middle of a chunked body, or of one to an HTTP/1.0 client, is a good end for many clients.
        """
        self._set(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        if self._is_tcp() and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # What waits is to wait in our buffer: the kernel's grows to megabytes and wakes a writer in lumps.
            self._set(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)

    async def finish(self) -> None:
        """Wait until the kernel has every byte; then the connection may end in order, or serve another request.

        aiohttp does not wait for the last 64 KiB, and a process that ends meanwhile takes them along.
        Raises ConnectionResetError if the connection ended first.
        """
        if self._transport is None or self.is_lost or not await self._emptied(self._transport):
            raise ConnectionResetError("the connection ended before its last bytes were sent")
        self._set(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_IN_ORDER)

    def reset(self) -> None:
        """Cut it so that the peer sees an error; bytes that still wait are thrown away."""
        if self._transport is None or self._has_ended():
            return
        if (
            not self.is_lost
        ):  # a close under way is a reset by arm(), and its descriptor may be somebody else's
            self._set(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self._disconnect()
        self._transport.abort()

    @contextmanager
    def watched(
        self,
        stall_timeout_seconds: float,
        *,
        stalled: Callable[[], None],
        left: Callable[[], None],
        looked: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Meanwhile one of the two is called, once, when the client stalls or leaves; and ``looked`` at each look.

        Stalled means: bytes wait, and the peer's TCP has acknowledged none for so long. How long one write
        takes says nothing: a healthy client at 32 KB/s keeps one waiting for 44 s.
        """
        loop = asyncio.get_running_loop()
        progress = self._progress()
        since = loop.time()
        handle: asyncio.TimerHandle

        def sample() -> None:
            nonlocal handle, progress, since
            looked()
            if self._transport is None or self.is_lost:
                left()
                return
            before, progress = progress, self._progress()
            if progress != before or not self._waiting_bytes():
                since = loop.time()
            elif loop.time() - since >= stall_timeout_seconds:
                stalled()
                return
            handle = loop.call_later(SAMPLE_SECONDS, sample)

        handle = loop.call_later(SAMPLE_SECONDS, sample)
        try:
            yield
        finally:
            handle.cancel()

    def _progress(self) -> int:
        """A number that changes when the peer has taken bytes."""
        if self._is_tcp() and sys.platform == "linux" and self._socket is not None:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= BYTES_ACKED_OFFSET + 8:
                (bytes_acked,) = struct.unpack_from("=Q", info, BYTES_ACKED_OFFSET)
                return int(bytes_acked)
        return self._writer.output_size - self._waiting_bytes()

    async def _emptied(self, transport: asyncio.Transport) -> bool:
        """Wait until the kernel has everything; False if the connection was lost before."""
        if not self._waiting_bytes():
            return True
        lowest = self._below() or transport
        protocol = lowest.get_protocol()
        kind = _TlsEar if isinstance(protocol, asyncio.BufferedProtocol) else _PlainEar
        ear = kind(protocol, lambda: not self._buffered_bytes(transport))
        lowest.set_protocol(ear)
        lowest.set_write_buffer_limits(high=0)
        try:
            return await ear.heard
        finally:
            if not self.is_lost:
                lowest.set_write_buffer_limits()
                lowest.set_protocol(protocol)

    def _below(self) -> asyncio.Transport | None:
        """The transport that asyncio's TLS writes to, and has no public name for."""
        below: asyncio.Transport | None = getattr(
            getattr(self._transport, "_ssl_protocol", None), "_transport", None
        )
        return below

    def _waiting_bytes(self) -> int:
        """What the kernel does not have yet, and will get."""
        return 0 if self._transport is None or self.is_lost else self._buffered_bytes(self._transport)

    def _buffered_bytes(self, transport: asyncio.Transport) -> int:
        below = self._below()
        waiting: int = transport.get_write_buffer_size()
        return waiting + (below.get_write_buffer_size() if below is not None else 0)

    def _has_ended(self) -> bool:
        """A transport that was closed and has sent its last byte has no loop any more: its abort() would raise."""
        return self._socket is not None and self._socket.fileno() < 0

    def _is_tcp(self) -> bool:
        return self._socket is not None and self._socket.family in (socket.AF_INET, socket.AF_INET6)

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        # A transport without a socket, or a socket without the option, has no more to give than its own abort().
        if self._socket is not None and not self.is_lost:
            try:
                self._socket.setsockopt(level, option, value)
            except OSError:
                return

    def _disconnect(self) -> None:
        """Send the reset now: close() sends none while a process that the host forked has the socket too."""
        if self._is_tcp() and sys.platform == "linux" and self._socket is not None:
            ctypes.CDLL(None).connect(self._socket.fileno(), AF_UNSPEC_ADDRESS, len(AF_UNSPEC_ADDRESS))
