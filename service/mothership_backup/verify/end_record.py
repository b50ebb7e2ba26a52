"""The end of a ZIP -> where its directory is. It must end the file, and the ZIP64 record must agree with it."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mothership_backup.errors import ArchiveError
from mothership_backup.verify.archive_file import ArchiveFile, refuse

_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_END_SIGNATURE: Final = b"PK\x05\x06"
_LOCATOR64_SIGNATURE: Final = b"PK\x06\x07"
_END64_SIGNATURE: Final = b"PK\x06\x06"
_FULL16: Final = 0xFFFF
_FULL32: Final = 0xFFFFFFFF

_MAX_ENTRIES: Final = 1_000_000  # each costs half a KiB here, and 46 bytes of a made-up file
_MAX_DIRECTORY_BYTES: Final = 512 * 1024 * 1024
_MAX_COMMENT_BYTES: Final = 0xFFFF
_FOREIGN: Final = {
    b"SQLite format 3\x00": ": it looks like a SQLite database",
    b"\x1f\x8b": ": it looks like a gzip file",
    b"{": ": it looks like JSON, perhaps an error of the service",
    b"<": ": it looks like a web page, or XML",
}


class EndRecord(NamedTuple):
    """What the end of the file says of the directory."""

    entries: int
    directory_bytes: int
    directory_offset: int
    records_offset: int


def read_end(archive: ArchiveFile) -> EndRecord:
    size_bytes = archive.size_bytes
    if size_bytes < _END.size:
        raise _foreign(archive)
    tail_bytes = min(size_bytes, _END.size + _MAX_COMMENT_BYTES)
    tail = archive.read(size_bytes - tail_bytes, tail_bytes)
    found = _find_end(archive, tail)
    end_offset = size_bytes - tail_bytes + found
    _, disk, first_disk, here, entries, length, offset, _ = _END.unpack_from(tail, found)
    if disk or first_disk or here != entries:
        refuse("unsupported", "it is one part of a ZIP in several files")
    records_offset = end_offset
    locator_offset = end_offset - _LOCATOR64.size
    if locator_offset >= 0:
        locator = archive.read(locator_offset, _LOCATOR64.size)
        if locator.startswith(_LOCATOR64_SIGNATURE):
            short = (entries, length, offset)
            entries, length, offset, records_offset = _read_end64(archive, locator, locator_offset)
            wide = (entries, length, offset)
            full = (_FULL16, _FULL32, _FULL32)
            if any(one not in (other, most) for one, other, most in zip(short, wide, full, strict=True)):
                refuse("malformed", "its end record and its ZIP64 end record contradict each other")
    if offset + length != records_offset:
        refuse("malformed", "its directory does not end where its end record begins")
    if entries > _MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        refuse("too_large", f"it lists {entries} entries; more than {_MAX_ENTRIES} are not read")
    return EndRecord(entries, length, offset, records_offset)


def _find_end(archive: ArchiveFile, tail: bytes) -> int:
    """Where the end record begins: with its comment it must reach the end of the file."""
    found = len(tail)
    while (found := tail.rfind(_END_SIGNATURE, 0, found)) >= 0:
        if len(tail) - found < _END.size:
            continue
        comment_bytes = _END.unpack_from(tail, found)[-1]
        if found + _END.size + comment_bytes == len(tail):
            return found
    if _END_SIGNATURE in tail:
        refuse("malformed", "bytes follow its end, or its end was cut off")
    raise _foreign(archive)


def _read_end64(archive: ArchiveFile, locator: bytes, locator_offset: int) -> tuple[int, int, int, int]:
    _, disk, offset64, disks = _LOCATOR64.unpack(locator)
    if disk or disks != 1 or offset64 + _END64.size != locator_offset:
        refuse("malformed", "its ZIP64 end record is not where it should be")
    record = _END64.unpack(archive.read(offset64, _END64.size))
    signature, record_bytes, _, _, disk, first_disk, here, entries, length, offset = record
    if signature != _END64_SIGNATURE or record_bytes != _END64.size - 12:
        refuse("malformed", "its ZIP64 end record is damaged")
    if disk or first_disk or here != entries:
        refuse("unsupported", "it is one part of a ZIP in several files")
    return entries, length, offset, offset64


def _foreign(archive: ArchiveFile) -> ArchiveError:
    """Why it has no end record, as far as its first bytes tell."""
    begin = archive.read(0, min(archive.size_bytes, 64))
    if not begin:
        return ArchiveError("it is empty", code="not_a_zip")
    if begin.startswith(_LOCAL_SIGNATURE):
        return ArchiveError(f"it was cut off: it ends after {archive.size_bytes} bytes", code="truncated")
    looks_like = next((kind for magic, kind in _FOREIGN.items() if begin.lstrip().startswith(magic)), "")
    return ArchiveError(f"it is no ZIP archive{looks_like}", code="not_a_zip")
