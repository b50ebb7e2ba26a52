"""An entry of an archive -> its bytes, never more than it claims, proved by length and CRC-32."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Final

from mothership_backup import deflate
from mothership_backup.errors import ArchiveError, InputError
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.directory import Entry

BLOCK_BYTES: Final = 1024 * 1024
_PIECE_BYTES: Final = 256 * 1024


def blocks(archive: ArchiveFile, entry: Entry) -> Iterator[bytes]:
    """The entry's bytes, in blocks of at most `BLOCK_BYTES`.

    Raises ArchiveError (``damaged``): at the first byte too many, or at the end when length or CRC-32 are wrong.
    """
    crc = size_bytes = 0
    for block in _inflated(archive, entry) if entry.is_deflated else _pieces(archive, entry, BLOCK_BYTES):
        size_bytes += len(block)
        if size_bytes > entry.size_bytes:
            raise _damaged(entry, f"it is longer than the {entry.size_bytes} bytes that it claims")
        crc = deflate.crc32(block, crc)
        yield block
    if size_bytes != entry.size_bytes:
        raise _damaged(entry, f"it has {size_bytes} bytes, and claims {entry.size_bytes}")
    if crc != entry.crc:
        raise _damaged(entry, "its CRC-32 is wrong")


def write(fd: int, block: bytes) -> None:
    """All of it. Raises InputError when the disk takes no more: that says nothing about the archive."""
    view = memoryview(block)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise InputError(f"the archive cannot be unpacked here: {error.strerror}") from error


def _pieces(archive: ArchiveFile, entry: Entry, size_bytes: int) -> Iterator[bytes]:
    end = entry.data_offset + entry.packed_bytes
    for offset in range(entry.data_offset, end, size_bytes):
        yield archive.read(offset, min(size_bytes, end - offset))


def _inflated(archive: ArchiveFile, entry: Entry) -> Iterator[bytes]:
    unpacker = deflate.unpacker()
    try:
        for piece in _pieces(archive, entry, _PIECE_BYTES):
            if unpacker.eof:
                raise _damaged(entry, "bytes follow its end")
            rest = piece
            while True:
                block = unpacker.decompress(rest, BLOCK_BYTES)
                if block:
                    yield block
                rest = unpacker.unconsumed_tail
                if not rest and len(block) < BLOCK_BYTES:
                    break
    except (zlib.error, deflate.UnpackError) as error:
        raise _damaged(entry, f"it cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise _damaged(entry, "its packed bytes do not end where they should")


def _damaged(entry: Entry, reason: str) -> ArchiveError:
    return ArchiveError(f"{entry.name}: {reason}", code="damaged", source=entry.name)
