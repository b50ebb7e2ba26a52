"""Frames -> the chunks of a ZIP, and its exact length when it is stored. The only user of zipstream-ng.

The seam: an entry that is packed already (`_Entry`), a `ZipStream` that puts it into its place (`_Zip`), and what is
kept of it for the central directory (`_DirectoryHeader`). One private method of the library is replaced;
tests/test_archive_contract.py fails when the library moves.
"""

from __future__ import annotations

import functools
import hashlib
import stat
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

from zipstream import ZIP_STORED, ZipStream
from zipstream.ng import (
    MAX_DATE,
    MIN_DATE,
    ZIP64_ESTIMATE_FACTOR,
    ZIP64_LIMIT,
    ZIP_DEFLATED,
    ZIP_FILECOUNT_LIMIT,
    ZipStreamInfo,
    sizeCentralDir,
    sizeEndCentDir,
    sizeEndCentDir64,
    sizeEndCentDir64Locator,
    sizeFileHeader,
)

from mothership_backup import deflate, frames
from mothership_backup.decoder import Frame
from mothership_backup.errors import CutError, IncompleteError, ReaderError
from mothership_backup.manifest import Manifest, Plan, Source

Chunk = bytes | memoryview
FLUSH: Final = b""
"""An empty chunk: what was yielded before goes out now."""

VERSION: Final = "VERSION"
MANIFEST: Final = "MANIFEST.json"
SUMS: Final = "SHA256SUMS"

_FILE_MODE: Final = 0o644
_GROWTH_BYTES: Final = 64 * 1024 * 1024  # what a staged database may grow by between its plan and its copy
_SPARE_SECONDS: Final = 60
_LINES_A_PIECE: Final = 4096
_EXTENDED_TIMESTAMP: Final = 0x5455
_DESCRIPTOR_BYTES: Final = 16
_DESCRIPTOR64_BYTES: Final = 24
_EXTRA64_BYTES: Final = 20


class PinCost(NamedTuple):
    """What a backup has cost its sources: the longest pin, and the most that a WAL grew under one."""

    pin_seconds: float
    wal_growth_bytes: int

    @classmethod
    def of(cls, end: Frame) -> PinCost | None:
        """None where the END frame does not say."""
        pin_seconds, growth_bytes = (end.document.get(key) for key in cls._fields)
        if not isinstance(pin_seconds, float) or not isinstance(growth_bytes, int):
            return None
        return cls(pin_seconds, growth_bytes)


class Packed(NamedTuple):
    """A piece of an entry as it goes out: its size before packing, and the entry's CRC-32 so far."""

    chunk: Chunk
    size_bytes: int
    crc: int


class _Entry(ZipStreamInfo):  # type: ignore[misc]  # the library has no types
    """An entry that knows its name, time, mode and planned size, and takes bytes that are packed already."""

    def __init__(self, name: str, mtime_ns: int, mode: int, planned_bytes: int, *, is_deflated: bool) -> None:
        seconds = mtime_ns // 1_000_000_000
        super().__init__(name, _dos_time(seconds))
        self.compress_type = ZIP_DEFLATED if is_deflated else ZIP_STORED
        self.external_attr = _attributes(mode)
        self.file_size = planned_bytes
        self.extra = _timestamp(seconds)

    def _file_data(self, iterable: Iterable[Packed], force_zip64: bool = False) -> Iterator[Chunk]:
        zip64 = force_zip64 or _needs_zip64(self.file_size)
        self.flag_bits |= 0x08  # sizes and CRC follow in a data descriptor
        yield self.FileHeader(zip64)
        self.CRC = self.file_size = self.compress_size = 0
        for piece in iterable:
            self.CRC = piece.crc
            self.file_size += piece.size_bytes
            self.compress_size += len(piece.chunk)
            yield piece.chunk
        if not zip64 and max(self.file_size, self.compress_size) > ZIP64_LIMIT:
            raise ReaderError(
                f"{self.filename}: it outgrew its plan", code="source_failed", source=self.filename
            )
        yield self.DataDescriptor(zip64)


class _DirectoryHeader(bytes):
    """An entry that is out, as the central directory needs it: the whole of it is three times as large."""

    __slots__ = ()

    def _central_directory_header_data(self) -> bytes:
        return self


class _Zip(ZipStream):  # type: ignore[misc]  # the library has no types
    """A ZipStream whose entries come packed, one at a time."""

    def add_entry(self, entry: _Entry, packed: Iterable[Packed]) -> Iterator[Chunk]:
        self._queue.append({"entry": entry, "packed": packed})
        yield from self.file()

    def _gen_file_entry(self, *, entry: _Entry, packed: Iterable[Packed]) -> Iterator[Chunk]:
        entry.header_offset = self._pos
        for chunk in entry._file_data(packed):
            yield self._track(chunk)
        self._filelist.append(_DirectoryHeader(entry._central_directory_header_data()))


class _Frames(Iterator[Frame]):
    """The reader's frames, of which one that was looked at too early may be put back."""

    def __init__(self, incoming: Iterator[Frame]) -> None:
        self._incoming = incoming
        self._put_back: Frame | None = None

    def __next__(self) -> Frame:
        frame, self._put_back = self._put_back, None
        return next(self._incoming) if frame is None else frame

    def put_back(self, frame: Frame) -> None:
        self._put_back = frame


class Archive:
    """One archive: yields its chunks while the reader's frames come in.

    ``content_length`` is its exact length in bytes when it is stored, else None.
    """

    def __init__(
        self, plan: Plan, manifest: Manifest, *, stored: bool, strict: bool, level: int, created: float,
        app_version: str, check_timeout_seconds: float,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._manifest = manifest
        self._stored = stored
        self._strict = strict
        self._level = level
        self._created_ns = int(created) * 1_000_000_000
        self._version = f"{app_version}\n".encode()
        self._zip = _Zip()
        self._entries = 0
        self._size_bytes = 0
        self._spare_pulses = int(check_timeout_seconds) + _SPARE_SECONDS
        self._manifest_bytes = self._manifest.bound_bytes() + self._spare_pulses if stored else 0
        self.content_length = self._measure() if stored else None
        self.pin_cost: PinCost | None = None

    def chunks(self, incoming: Iterator[Frame]) -> Iterator[Chunk]:
        """The archive's bytes; an empty chunk means that what came before goes out now.

        ``incoming`` ends with the END frame, whose numbers are compared before the central directory is made.
        Raises ReaderError, IncompleteError and CutError; whatever was yielded before is then no archive.
        """
        incoming = _Frames(incoming)
        for index, source in enumerate(self._plan.sources):
            if source.status == "ok":
                yield from self._source(index, source, incoming)
        yield from self._own(VERSION, len(self._version), iter([self._version]))
        digest = hashlib.sha256()
        yield from self._own(MANIFEST, self._manifest_bytes, self._manifest_pieces(incoming, digest))
        yield from self._own(SUMS, self._sums_bytes(), self._sums(digest.hexdigest()))
        yield from self._zip.footer()

    # One source.

    def _source(self, index: int, source: Source, incoming: _Frames) -> Iterator[Chunk]:
        frame = yield from self._first_frame(index, incoming)
        if frame.type == frames.END_OF_ENTRY and "error" in frame.document:
            self._leave_out(index, source, frame)
            return
        is_deflated = source.is_packed and not self._stored
        planned_bytes = source.size_bytes if self._stored else source.size_bytes + _GROWTH_BYTES
        entry = _Entry(source.name, source.mtime_ns, source.mode, planned_bytes, is_deflated=is_deflated)
        yield from self._zip.add_entry(entry, self._packed(index, source, frame, incoming, is_deflated))
        self._entries += 1
        self._size_bytes += entry.file_size

    def _first_frame(self, index: int, incoming: Iterator[Frame]) -> Generator[Chunk, None, Frame]:
        """The next frame that belongs to the entry; until it comes, nothing is open that could take a pulse."""
        for frame in incoming:
            if not self._is_aside(frame):
                self._expect(frame, index)
                return frame
            if frame.type == frames.ALIVE:
                yield FLUSH
        raise _protocol_error("it ended before its last entry")

    def _packed(
        self, index: int, source: Source, frame: Frame, incoming: _Frames, is_deflated: bool
    ) -> Iterator[Packed]:
        size_bytes = crc = 0
        while frame.type != frames.END_OF_ENTRY:
            if frame.type == frames.DATA:
                size_bytes += frame.size_bytes
                crc = frame.crc
                yield Packed(frame.data, frame.size_bytes, crc)
            elif frame.type == frames.ALIVE:
                if is_deflated:
                    yield Packed(deflate.PULSE, 0, crc)
                yield Packed(FLUSH, 0, crc)
            frame = self._next(index, incoming)
        if "error" in frame.document:
            raise _protocol_error(f"entry {index} failed after its first byte, and it went on")
        if frame.document["size_bytes"] != size_bytes or (self._stored and size_bytes != source.size_bytes):
            raise ReaderError(
                f"{source.path}: it has {frame.document['size_bytes']} bytes, {size_bytes} came,"
                f" {source.size_bytes} were planned",
                code="source_failed",
                source=source.path,
            )
        self._manifest.take(index, frame.document)
        if is_deflated:
            yield from self._held_open(incoming, crc)
            yield Packed(deflate.END, 0, crc)

    def _held_open(self, incoming: _Frames, crc: int) -> Iterator[Packed]:
        """Pulses until the next entry begins: between two of them nothing could take one."""
        for frame in incoming:
            if not self._is_aside(frame):
                incoming.put_back(frame)
                return
            if frame.type == frames.ALIVE:
                yield Packed(deflate.PULSE, 0, crc)
                yield Packed(FLUSH, 0, crc)

    def _next(self, index: int, incoming: Iterator[Frame]) -> Frame:
        for frame in incoming:
            if frame.type == frames.ALIVE or not self._is_aside(frame):
                self._expect(frame, index)
                return frame
        raise _protocol_error("it ended inside an entry")

    def _leave_out(self, index: int, source: Source, frame: Frame) -> None:
        error = frame.document["error"]
        if self._strict:
            raise IncompleteError(f"{source.path}: {error['message']}", source=source.path)
        self._manifest.leave_out(index, error["code"], error["message"])

    def _is_aside(self, frame: Frame) -> bool:
        """True for what belongs to no entry: a verdict (which is noted), or a sign of life."""
        if frame.type != frames.CHECK:
            return frame.type == frames.ALIVE
        index, verdict = frame.document["index"], frame.document["verdict"]
        if index not in range(len(self._plan.sources)):
            raise _protocol_error(f"a verdict for entry {index}, which there is not")
        self._manifest.add_verdict(index, verdict, frame.document["text"])
        if verdict == "damaged" and self._strict:
            name = self._plan.sources[index].path
            raise CutError(f"{name}: damaged: {frame.document['text']}", code="check", source=name)
        return True

    def _expect(self, frame: Frame, index: int) -> None:
        if frame.type in (frames.DATA, frames.ALIVE):
            return
        if frame.type != frames.END_OF_ENTRY or frame.document.get("index") != index:
            raise _protocol_error(f"a frame of type {frame.type} where entry {index} was due")

    # What is ours: VERSION, MANIFEST.json, SHA256SUMS.

    def _own(self, name: str, planned_bytes: int, pieces: Iterator[bytes]) -> Iterator[Chunk]:
        entry = _Entry(name, self._created_ns, _FILE_MODE, planned_bytes, is_deflated=not self._stored)
        yield from self._zip.add_entry(entry, self._pack_own(pieces))

    def _pack_own(self, pieces: Iterator[bytes]) -> Iterator[Packed]:
        """An empty piece is a pulse in a deflated entry; in a stored one it is the flush after a blank."""
        crc = 0
        for piece in pieces:
            if not piece:
                yield Packed(FLUSH if self._stored else deflate.PULSE, 0, crc)
                yield Packed(FLUSH, 0, crc)
            for begin in range(0, len(piece), deflate.BLOCK_BYTES):
                block = piece[begin : begin + deflate.BLOCK_BYTES]
                crc = deflate.crc32(block, crc)
                yield Packed(block if self._stored else deflate.pack(block, self._level), len(block), crc)
        if not self._stored:
            yield Packed(deflate.END, 0, crc)

    def _manifest_pieces(self, incoming: Iterator[Frame], digest: hashlib._Hash) -> Iterator[bytes]:
        """Pulses while the last checks run; the manifest after the END frame, which ends them."""
        blanks = 0
        for frame in incoming:
            if frame.type == frames.END:
                self._compare(frame)
                break
            if not self._is_aside(frame):
                raise _protocol_error(f"a frame of type {frame.type} after the last entry")
            if frame.type == frames.ALIVE:
                if self._stored and blanks < self._spare_pulses:
                    blanks += 1
                    digest.update(b" ")
                    yield b" "  # allowed before a JSON text (RFC 8259, section 2)
                yield b""
        else:
            raise _protocol_error("it ended without its END frame")
        size_bytes = blanks
        for piece in self._manifest.pieces():
            size_bytes += len(piece)
            digest.update(piece)
            yield piece
        last = b"\n"
        if self._stored:
            last = last.rjust(self._manifest_bytes - size_bytes)
            if size_bytes + len(last) != self._manifest_bytes:
                raise _protocol_error(
                    f"a manifest of {size_bytes} bytes where {self._manifest_bytes} were promised"
                )
        digest.update(last)
        yield last

    def _compare(self, frame: Frame) -> None:
        self.pin_cost = PinCost.of(frame)
        self._manifest.set_instants(frame.document["instants"])
        said = (frame.document["entries"], frame.document["size_bytes"])
        if said != (self._entries, self._size_bytes):
            raise _protocol_error(
                f"it sent {self._entries} entries, {self._size_bytes} bytes, and says {said}"
            )

    def _sums(self, manifest_sha256: str) -> Iterator[bytes]:
        own = [(hashlib.sha256(self._version).hexdigest(), VERSION), (manifest_sha256, MANIFEST)]
        lines = (f"{sha256}  {name}\n" for sha256, name in chain(self._manifest.sums(), own))
        while piece := "".join(islice(lines, _LINES_A_PIECE)):
            yield piece.encode()

    def _sums_bytes(self) -> int:
        names = chain(
            (source.name for source in self._plan.sources if source.status == "ok"), (VERSION, MANIFEST)
        )
        return sum(64 + 2 + len(name.encode()) + 1 for name in names)

    def _measure(self) -> int:
        taken = (source for source in self._plan.sources if source.status == "ok")
        own = (
            (VERSION, len(self._version), self._created_ns),
            (MANIFEST, self._manifest_bytes, self._created_ns),
            (SUMS, self._sums_bytes(), self._created_ns),
        )
        return stored_length(
            chain(((source.name, source.size_bytes, source.mtime_ns) for source in taken), own)
        )


def stored_length(entries: Iterable[tuple[str, int, int]]) -> int:
    """The exact length in bytes of a stored archive of ``entries``: name, size in bytes, mtime in nanoseconds.

    As the library writes it, which differs from its own `len()`: APPNOTE.TXT 4.3.7 to 4.3.16.
    """
    count = files_bytes = directory_bytes = 0
    for name, size_bytes, mtime_ns in entries:
        named = len(name.encode()) + len(_timestamp(mtime_ns // 1_000_000_000))
        zip64 = _needs_zip64(size_bytes)
        wide = 2 * (size_bytes > ZIP64_LIMIT) + (files_bytes > ZIP64_LIMIT)
        directory_bytes += sizeCentralDir + named + (4 + 8 * wide if wide else 0)
        files_bytes += sizeFileHeader + named + size_bytes
        files_bytes += _EXTRA64_BYTES + _DESCRIPTOR64_BYTES if zip64 else _DESCRIPTOR_BYTES
        count += 1
    end_bytes = sizeEndCentDir
    if count >= ZIP_FILECOUNT_LIMIT or files_bytes > ZIP64_LIMIT or directory_bytes > ZIP64_LIMIT:
        end_bytes += sizeEndCentDir64 + sizeEndCentDir64Locator
    return int(files_bytes + directory_bytes + end_bytes)


def _needs_zip64(planned_bytes: int) -> bool:
    return bool(planned_bytes * ZIP64_ESTIMATE_FACTOR > ZIP64_LIMIT)


@functools.lru_cache(256)  # files that were written together have the same
def _dos_time(seconds: int) -> tuple[int, int, int, int, int, int]:
    """In UTC, since DOS times have no zone, within what they can say: 1980 to 2107."""
    try:
        moment = time.gmtime(seconds)[:6]
    except (OverflowError, ValueError, OSError):
        moment = MIN_DATE if seconds < 0 else MAX_DATE
    year, month, day, hour, minute, second = min(max(MIN_DATE, moment), MAX_DATE)
    return year, month, day, hour, minute, second


@functools.lru_cache(256)
def _attributes(mode: int) -> int:
    return (stat.S_IFREG | mode) << 16


@functools.lru_cache(256)
def _timestamp(seconds: int) -> bytes:
    """The UTC extra field 0x5455 with the modification time; none where 32 bits cannot hold it."""
    if not -(2**31) <= seconds < 2**31:
        return b""
    return struct.pack("<HHBi", _EXTENDED_TIMESTAMP, 5, 1, seconds)


def _protocol_error(what: str) -> ReaderError:
    return ReaderError(f"the reader broke the protocol: {what}", code="reader_protocol")
