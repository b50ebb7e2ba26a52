"""Fast DEFLATE in blocks: isal where it is installed, else zlib.

Each block is deflated by a fresh raw compressor and ended with a sync flush, so blocks can be joined, an
empty stored block (`PULSE`) may stand between any two, and `END` closes the stream (RFC 1951, section 3.2).
The same input gives the same bytes whatever was packed before it.
"""

from __future__ import annotations

import zlib
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class Unpacker(Protocol):
        """What zlib and isal call a decompression object."""

        eof: bool
        unused_data: bytes
        unconsumed_tail: bytes

        def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


isal_zlib: ModuleType | None
try:
    from isal import isal_zlib
except ImportError:  # the extra `fast` is not installed: slower, and nothing else changes
    isal_zlib = None

BLOCK_BYTES: Final = 1024 * 1024
PULSE: Final = b"\x00\x00\x00\xff\xff"
"""An empty stored block: adds no data, allowed between any two flushed blocks."""
END: Final = b"\x03\x00"
"""An empty final block with fixed codes."""

COMPRESSOR: Final = "isal" if isal_zlib is not None else "zlib"
UnpackError: Final[type[Exception]] = zlib.error if isal_zlib is None else isal_zlib.error
_ISAL_MAX_LEVEL: Final = 3  # ISA-L has levels 0 to 3; a higher wish goes to zlib, which can follow it


def pack(block: bytes, level: int) -> bytes:
    """Deflate one block of at most `BLOCK_BYTES`; ``level`` is 1 (fast) to 9 (small)."""
    if isal_zlib is not None and level <= _ISAL_MAX_LEVEL:
        fast = isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15)
        return bytes(fast.compress(block) + fast.flush(isal_zlib.Z_SYNC_FLUSH))
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)


def crc32(block: bytes, before: int = 0) -> int:
    """CRC-32 of ``block``, going on from the CRC of what came before."""
    if isal_zlib is not None:
        return int(isal_zlib.crc32(block, before))
    return zlib.crc32(block, before)


def unpacker() -> Unpacker:
    """Inflates one raw DEFLATE stream. Raises UnpackError for what is none."""
    found: Unpacker = (zlib if isal_zlib is None else isal_zlib).decompressobj(-15)
    return found
