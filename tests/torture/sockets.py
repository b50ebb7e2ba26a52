"""Clients as bare sockets, for what no HTTP library does: reset, stall, dribble."""

from __future__ import annotations

import socket
import struct

from harness import Service
from processes import wait_until

GET = "GET /api/backup{} HTTP/1.1\r\nHost: localhost"


def reset(peer: socket.socket) -> None:
    """Leave by RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def read_up_to(peer: socket.socket, count: int) -> int:
    """Take so many bytes, or all if there are fewer."""
    received = 0
    while received < count and (piece := peer.recv(min(65536, count - received))):
        received += len(piece)
    return received


def is_left_alone(service: Service, log: str, seconds: float = 1) -> None:
    """No reader within a second, and nothing in the log of now that a user would call an error."""
    wait_until("the reader to be gone", lambda: not service.readers(), seconds)
    assert "Traceback" not in service.log()[len(log) :]
    assert "a defect" not in service.log()[len(log) :]
