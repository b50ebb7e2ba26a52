"""A service that misbehaves: on loopback, each connection answered by the next of a list of answers."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

Answer = Callable[[socket.socket], None]
DISPOSITION: Final = {"Content-Disposition": 'attachment; filename="spaxel-backup-2026-11-24.zip"'}
ZIP: Final = {"Content-Type": "application/zip", **DISPOSITION}


class BadServer:
    """Used in one `with`; the last answer is given again and again."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._answers = answers
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api/backup"

    def __enter__(self) -> BadServer:
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "the client is still there"

    def _secured(self, peer: socket.socket) -> socket.socket:
        return peer if self._tls is None else self._tls.wrap_socket(peer, server_side=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                peer, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(peer,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError), self._secured(peer) as peer:
            self.requests.append(_read_request(peer))
            self._answers[min(len(self.requests), len(self._answers)) - 1](peer)


def _read_request(peer: socket.socket) -> str:
    """Head and body."""
    data = b""
    while b"\r\n\r\n" not in data and (piece := peer.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    while len(body) < length and (piece := peer.recv(65536)):
        body += piece
    return (head + b"\r\n\r\n" + body).decode("latin-1")


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 16384):
        piece = data[at : at + 16384]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def _begin_chunked(peer: socket.socket, headers: Mapping[str, str]) -> None:
    peer.sendall(_head(200, {**headers, "Transfer-Encoding": "chunked"}))


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def until_left(peer: socket.socket) -> None:
    """Says nothing more until the client has gone."""
    while peer.recv(65536):
        pass


def whole(data: bytes, headers: Mapping[str, str] = ZIP) -> Answer:
    """Nothing is wrong with it."""

    def answer(peer: socket.socket) -> None:
        _begin_chunked(peer, headers)
        for chunk in _chunks(data):
            peer.sendall(chunk)
        peer.sendall(b"0\r\n\r\n")

    return answer


def cut_by_fin(data: bytes) -> Answer:
    """Closed in the middle of a chunk."""

    def answer(peer: socket.socket) -> None:
        _begin_chunked(peer, ZIP)
        peer.sendall(b"%x\r\n%s" % (len(data), _half(data)))

    return answer


def cut_by_reset(data: bytes) -> Answer:
    """As this service cuts."""

    def answer(peer: socket.socket) -> None:
        cut_by_fin(data)(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def cut_in_silence(data: bytes) -> Answer:
    """As old Caddy does: the service was cut, and the client gets a proper last chunk."""
    return whole(_half(data))


def cut_without_length(data: bytes) -> Answer:
    """As HTTP/1.0: nothing but the archive can tell."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(_head(200, {**ZIP, "Connection": "close"}) + _half(data))

    return answer


def too_little(data: bytes) -> Answer:
    """Than its Content-Length."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(_head(200, {**ZIP, "Content-Length": str(len(data))}) + _half(data))

    return answer


def too_much(data: bytes) -> Answer:
    """Than its Content-Length."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(_head(200, {**ZIP, "Content-Length": str(len(_half(data)))}) + data)

    return answer


def stalled(data: bytes) -> Answer:
    """In the middle."""

    def answer(peer: socket.socket) -> None:
        cut_by_fin(data)(peer)
        until_left(peer)

    return answer


def held(data: bytes, go_on: threading.Event) -> Answer:
    """In the middle, until it may go on."""

    def answer(peer: socket.socket) -> None:
        cut_by_fin(data)(peer)
        go_on.wait(30)
        peer.sendall(data[len(data) // 2 :] + b"\r\n0\r\n\r\n")

    return answer


def damaged(data: bytes) -> Answer:
    """One bit in the middle."""
    middle = len(data) // 2
    return whole(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def status(number: int, body: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """Any answer that is no archive."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(_head(number, {"Content-Length": str(len(body)), **(headers or {})}) + body.encode())

    return answer


def problem(number: int, detail: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as the service gives it."""
    body = json.dumps({"status": number, "detail": detail, "code": "whatever"})
    return status(number, body, {"Content-Type": "application/json", **(headers or {})})
