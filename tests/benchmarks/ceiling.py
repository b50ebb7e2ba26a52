"""The ceiling: `cat` writes the databases straight into the socket. `python -m benchmarks.ceiling DATA_DIR`."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from benchmarks.plain_http import serve


def main() -> None:
    paths = [str(path) for path in sorted(Path(sys.argv[1]).glob("*.db"))]

    def write(stream: BinaryIO, peer: socket.socket) -> None:
        stream.flush()
        subprocess.run(["cat", *paths], stdout=peer.fileno(), check=True)

    serve(write)


if __name__ == "__main__":
    main()
