"""The least HTTP server: one GET at a time on loopback, the body written by a function."""

from __future__ import annotations

import http.server
import signal
import socket
import sys
from collections.abc import Callable
from typing import BinaryIO, cast

Write = Callable[[BinaryIO, socket.socket], None]


def serve(write: Write) -> None:
    """Until SIGTERM; ``write`` gets the buffered stream, and the socket for a process to write into."""

    class Handler(http.server.BaseHTTPRequestHandler):
        wbufsize = 4096  # the head waits for the first of the body, as in Go's net/http

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            write(cast("BinaryIO", self.wfile), self.connection)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as in the base class
            pass

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"listens on http://127.0.0.1:{server.server_port} ", file=sys.stderr, flush=True)
        server.serve_forever()
