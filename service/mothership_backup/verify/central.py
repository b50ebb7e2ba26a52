"""The directory of a ZIP -> what it says of each entry. What the entries say themselves is held against it later."""

from __future__ import annotations

import calendar
import struct
from typing import Final, NamedTuple

from mothership_backup.verify.archive_file import ArchiveFile, refuse
from mothership_backup.verify.end_record import EndRecord

STORED: Final = 0
DEFLATED: Final = 8
UTF8: Final = 0x0800
_DESCRIPTOR_FOLLOWS: Final = 0x0008
_METHODS: Final = {STORED, DEFLATED}
_KNOWN_FLAGS: Final = 0x0006 | _DESCRIPTOR_FOLLOWS | UTF8  # 0x0006: how hard the compressor tried
_ENCRYPTED: Final = 0x2041
_UNIX: Final = 3
_MAX_VERSION_NEEDED: Final = 63  # of the specification, tenfold; a reader refuses what needs more

_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_SIGNATURE: Final = b"PK\x01\x02"
ZIP64: Final = 0x0001
UNICODE_PATH: Final = 0x7075  # another name, which unzip, 7z and bsdtar take instead (4.6.9)
_EXTENDED_TIMESTAMP: Final = 0x5455
FULL32: Final = 0xFFFFFFFF


class Listed(NamedTuple):
    """What the directory says of an entry."""

    raw_name: bytes
    unicode_path: bytes
    is_unix: bool
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int
    mode: int
    mtime_ns: int

    @property
    def has_descriptor(self) -> bool:
        """CRC-32 and sizes stand behind the bytes, not in the header."""
        return bool(self.flags & _DESCRIPTOR_FOLLOWS)


def read_central(archive: ArchiveFile, end: EndRecord) -> list[Listed]:
    data = archive.read(end.directory_offset, end.directory_bytes)
    found: list[Listed] = []
    at = 0
    while at < len(data):
        if len(data) - at < _CENTRAL.size or not data.startswith(_SIGNATURE, at):
            refuse("malformed", f"its directory is damaged at entry {len(found) + 1}")
        fields = _CENTRAL.unpack_from(data, at)
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        at += _CENTRAL.size
        following = at + name_bytes + extra_bytes + comment_bytes
        if following > len(data):
            refuse("malformed", f"its directory is damaged at entry {len(found) + 1}")
        found.append(
            _listed(fields, data[at : at + name_bytes], data[at + name_bytes : following - comment_bytes])
        )
        at = following
    if len(found) != end.entries:
        refuse("malformed", f"its directory has {len(found)} entries, and its end says {end.entries}")
    return found


def _listed(fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> Listed:
    _, made_by, needed, flags, method, time, date, crc, packed_bytes, size_bytes = fields[:10]
    disk, _, attributes, offset = fields[13:]
    shown = ascii(raw_name.decode("utf-8", "replace"))
    if flags & _ENCRYPTED:
        refuse("unsupported", f"{shown} is encrypted")
    if flags & ~_KNOWN_FLAGS or method not in _METHODS or needed & 0xFF > _MAX_VERSION_NEEDED:
        refuse(
            "unsupported",
            f"{shown} is packed in a way that is not supported (method {method}, flags {flags:#x}, version {needed})",
        )
    extras = read_extras(extra, shown)
    wide = extras.get(ZIP64, b"")
    wanted = [value == FULL32 for value in (size_bytes, packed_bytes, offset)]
    numbers = list(wide_numbers(wide, sum(wanted), shown))
    size_bytes, packed_bytes, offset = (
        numbers.pop(0) if is_wide else value
        for is_wide, value in zip(wanted, (size_bytes, packed_bytes, offset), strict=True)
    )
    if disk:
        refuse("unsupported", "it is one part of a ZIP in several files")
    return Listed(
        raw_name=raw_name,
        unicode_path=extras.get(UNICODE_PATH, b""),
        is_unix=made_by >> 8 == _UNIX,
        flags=flags,
        method=method,
        crc=crc,
        packed_bytes=packed_bytes,
        size_bytes=size_bytes,
        offset=offset,
        mode=attributes >> 16,
        mtime_ns=_mtime_ns(extras.get(_EXTENDED_TIMESTAMP, b""), date, time),
    )


def read_extras(extra: bytes, shown: str) -> dict[int, bytes]:
    """Extra fields by their number; what does not parse to the last byte is damaged."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        if len(extra) - at < 4:
            refuse("malformed", f"{shown}: an extra field is damaged")
        number, size_bytes = struct.unpack_from("<HH", extra, at)
        at += 4
        if at + size_bytes > len(extra) or (number in fields and number in (ZIP64, UNICODE_PATH)):
            refuse("malformed", f"{shown}: an extra field is damaged")
        fields[number] = extra[at : at + size_bytes]
        at += size_bytes
    return fields


def wide_numbers(field: bytes, count: int, shown: str) -> tuple[int, ...]:
    """The first so many of a ZIP64 field (4.5.3)."""
    if len(field) < 8 * count:
        refuse("malformed", f"{shown}: its ZIP64 field is missing or damaged")
    return struct.unpack_from(f"<{count}Q", field)


def _mtime_ns(field: bytes, date: int, time: int) -> int:
    """From the UTC field if there is one; DOS times have no zone and are read as UTC."""
    if len(field) >= 5 and field[0] & 1:
        return int(struct.unpack_from("<i", field, 1)[0]) * 1_000_000_000
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not day:
        return 0
    moment = (year, month, day, time >> 11, time >> 5 & 63, (time & 31) * 2)
    return calendar.timegm((*moment, 0, 0, 0)) * 1_000_000_000
