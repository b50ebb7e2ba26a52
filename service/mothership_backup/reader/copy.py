"""A plain file -> its bytes: never a link's, never another file's, never more than the plan said."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mothership_backup.deflate import BLOCK_BYTES
from mothership_backup.errors import ReaderError
from mothership_backup.reader.discover import open_regular
from mothership_backup.reader.source import Source


def blocks(source: Source) -> Iterator[bytes]:
    """The file's bytes as they are now, as many as the plan said.

    Raises SourceError before the first block when it is gone or replaced, ReaderError when it shrank or cannot be read.
    """
    fd, source.fd = source.fd, -1
    if fd < 0:
        fd = open_regular(source)
    try:
        offset = 0
        while offset < source.size_bytes:
            block = _read(fd, source, offset)
            if not block:
                raise ReaderError(
                    f"{source.path}: it shrank to {offset} bytes while it was read; it had {source.size_bytes}",
                    code="source_failed",
                    source=source.path,
                )
            offset += len(block)
            yield block
    finally:
        os.close(fd)


def _read(fd: int, source: Source, offset: int) -> bytes:
    try:
        return os.pread(fd, min(BLOCK_BYTES, source.size_bytes - offset), offset)
    except OSError as error:
        raise ReaderError(
            f"{source.path}: it cannot be read at byte {offset}: {error.strerror}",
            code="source_failed",
            source=source.path,
        ) from error
