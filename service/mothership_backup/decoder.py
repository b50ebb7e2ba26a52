"""The reader's frames, read: whatever pieces the pipe gives -> `Frame`."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from mothership_backup.frames import DATA, DATA_HEADER, END, HEADER, MAX_PAYLOAD_BYTES, PLAN, ProtocolError

_INBOX_BYTES: Final = 16 * 1024
_MAPPED_FROM_BYTES: Final = 64 * 1024
_MOST_MAPPINGS: Final = 16  # what a stream of 4 MiB holds of deflated blocks, and some


class Frame(NamedTuple):
    """One frame. ``data``, ``size_bytes`` and ``crc`` are a DATA frame's, ``document`` is any other's."""

    type: int
    document: dict[str, Any]  # whatever JSON holds; backup.py and archive.py read it; see `_Document`
    data: memoryview
    size_bytes: int
    crc: int


class _Document(dict[str, Any]):
    """What is not there is the reader's fault, not that of whoever asks for it: ProtocolError, no KeyError."""

    def __missing__(self, key: str) -> NoReturn:
        raise ProtocolError(f"a frame without {key!r}")


class Decoder:
    """Bytes in whatever pieces the pipe gives them -> frames: read into `buffers`, then `advance`.

    The rest of a large frame is read into its place, without copying; what follows, and small frames, many at a
    time, go through an inbox.
    """

    def __init__(self) -> None:
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._arrived = 0  # bytes in it
        self._payload: memoryview | None = None
        self._filled = 0
        self._type = 0
        self._mappings: list[mmap.mmap] = []

    @property
    def buffers(self) -> list[memoryview]:
        """Where the next bytes belong, in this order, for `os.readv`."""
        rest = [] if self._payload is None else [self._payload[self._filled :]]
        return [*rest, self._inbox[self._arrived :]]

    @property
    def is_between_frames(self) -> bool:
        """False when the pipe ended inside a frame."""
        return self._payload is None and self._arrived == 0

    def advance(self, count: int) -> Iterator[Frame]:
        """Take note of ``count`` new bytes in `buffers`: the frames that they complete. To be taken to its end.

        Raises ProtocolError for an unknown type, a length over 2 MiB, or a payload that is not what it should be.
        """
        if self._payload is not None:
            taken = min(count, len(self._payload) - self._filled)
            count -= taken
            self._filled += taken
            if self._filled < len(self._payload):
                return
            payload, self._payload = self._payload, None
            yield _decode(self._type, payload)
        self._arrived += count
        begin = 0
        while self._payload is None and self._arrived - begin >= HEADER.size:
            self._type, length = HEADER.unpack_from(self._inbox, begin)
            if not PLAN <= self._type <= END or length > MAX_PAYLOAD_BYTES:
                raise ProtocolError(f"frame of type {self._type} with {length} bytes")
            begin += HEADER.size
            payload = self._new_payload(length)
            arrived = self._inbox[begin : min(begin + length, self._arrived)]
            payload[: len(arrived)] = arrived
            begin += len(arrived)
            if len(arrived) == length:
                yield _decode(self._type, payload)
            else:
                self._payload, self._filled = payload, len(arrived)
        self._arrived -= begin  # less than a header, or nothing
        self._inbox[: self._arrived] = self._inbox[begin : begin + self._arrived]

    def _new_payload(self, length: int) -> memoryview:
        """A large one is in a mapping whose last frame nobody holds any more.

        A new mapping costs a page fault and a page of zeros for every 4 KiB, which is as much as reading into it.
        In the C library's heap such blocks would leave holes between small ones, and the process would keep them.
        """
        if length < _MAPPED_FROM_BYTES:
            return memoryview(bytearray(length))
        for mapping in self._mappings:
            if not _is_in_use(mapping):
                return memoryview(mapping)[:length]
        mapping = mmap.mmap(-1, MAX_PAYLOAD_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if len(self._mappings) < _MOST_MAPPINGS:
            self._mappings.append(mapping)
        return memoryview(mapping)[:length]


def _is_in_use(mapping: mmap.mmap) -> bool:
    """Whether a view of it lives: then, and only then, its size is fixed. Where no size can be changed: always."""
    try:
        mapping.resize(len(mapping))
    except (BufferError, SystemError):
        return True
    return False


def _decode(frame_type: int, view: memoryview) -> Frame:
    if frame_type == DATA:
        if len(view) < DATA_HEADER.size:
            raise ProtocolError("a DATA frame without its header")
        size_bytes, crc = DATA_HEADER.unpack_from(view)
        return Frame(frame_type, {}, view[DATA_HEADER.size :], size_bytes, crc)
    try:
        document = json.loads(bytes(view))
    except ValueError as error:
        raise ProtocolError(f"frame of type {frame_type}: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolError(f"frame of type {frame_type} is no JSON object")
    return Frame(frame_type, _Document(document), view[:0], 0, 0)
