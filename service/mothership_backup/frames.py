"""What the reader says to the service: frame types, and how they are written; `decoder` reads them.

A frame is its type (1 byte), the length of its payload (4 bytes, big-endian, at most 2 MiB), the payload.
A DATA payload begins with the size before packing and the CRC-32 so far (4 bytes each); all others are JSON objects.

    PLAN          {"sources": [...]}: a batch of them; 70,000 files do not fit into one frame
    PLAN_END      what holds for the whole plan
    DATA          packed bytes of the entry in turn
    END_OF_ENTRY  {"index", "size_bytes", "sha256", ...}, or {"index", "error"}: left out, no DATA came before
    CHECK         {"index", "verdict", "text"}
    ALIVE         {}: it has begun, or has had nothing to say for a second
    ERROR         {"code", "message", "source"}: always the last
    END           {"entries", "size_bytes", ...}: always the last, and then the pipe ends; of a backup with
                  "pin_seconds" and "wal_growth_bytes", the most that a pin was held and a WAL grew under it
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PLAN: Final = 1
PLAN_END: Final = 2
DATA: Final = 3
END_OF_ENTRY: Final = 4
CHECK: Final = 5
ALIVE: Final = 6
ERROR: Final = 7
END: Final = 8

MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024
ALIVE_SECONDS: Final = 1.0
"""The reader says ALIVE after this long in which nothing else went out."""

HEADER: Final = struct.Struct(">BI")
DATA_HEADER: Final = struct.Struct(">II")

# The watch ends the reader with a status of its own for each reason: a full pipe takes no frame.
EXIT_HOLD: Final = 81
EXIT_WAL_GROWTH: Final = 82
EXIT_DISK_FULL: Final = 83
EXIT_PARENT_GONE: Final = 84


class ProtocolError(Exception):
    """The bytes are no frames, or not what a frame must hold: a reader of another version, or a defect."""


def encode_document(frame_type: int, document: dict[str, Any]) -> bytes:
    """A whole frame around a JSON document."""
    payload = json.dumps(document).encode("ascii")
    return HEADER.pack(frame_type, len(payload)) + payload


def data_header(packed_bytes: int, size_bytes: int, crc: int) -> bytes:
    """What stands before the packed bytes of a DATA frame."""
    length = DATA_HEADER.size + packed_bytes
    return HEADER.pack(DATA, length) + DATA_HEADER.pack(size_bytes, crc)
