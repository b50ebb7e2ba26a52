"""The reference algorithm in plain Python, over HTTP: `python -m benchmarks.reference DATA_DIR`.

Every database is copied into memory, 100 pages at a time, serialised, and deflated at level 6 into the response.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from benchmarks.plain_http import serve

PAGES = 100
PIECE_BYTES = 1 << 20


def write_archive(data: Path, stream: BinaryIO) -> None:
    """All of it; the stream need not be seekable."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in sorted(data.glob("*.db")):
            content = memoryview(serialised(path))
            with archive.open(path.name, "w", force_zip64=True) as entry:
                for begin in range(0, len(content), PIECE_BYTES):
                    entry.write(content[begin : begin + PIECE_BYTES])
        for path in sorted((data / "floor_plan").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(data))
        archive.writestr("VERSION", "unknown\n")


def serialised(path: Path) -> bytes:
    """A snapshot of the database, by way of one in memory."""
    with (
        contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(":memory:")) as memory,
    ):
        source.backup(memory, pages=PAGES)
        return memory.serialize()


def main() -> None:
    data = Path(sys.argv[1])

    def write(stream: BinaryIO, _peer: socket.socket) -> None:
        write_archive(data, stream)

    serve(write)


if __name__ == "__main__":
    main()
