"""The directory of a ZIP, read strictly: every byte of the file belongs to one entry, or to the directory.

zipfile and unzip are made to read what they can. They take bytes before, between and behind the entries, headers
that contradict the directory, entries that overlap: what they show is then not all there is. Here the directory,
the headers and the descriptors must agree, and leave no gap (APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16).
"""

from __future__ import annotations

import calendar
import stat
import struct
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, NoReturn

from mothership_backup import deflate
from mothership_backup.errors import ArchiveError
from mothership_backup.verify.archive_file import ArchiveFile

_STORED: Final = 0
_DEFLATED: Final = 8
_METHODS: Final = {_STORED, _DEFLATED}
_DESCRIPTOR_FOLLOWS: Final = 0x0008
_UTF8: Final = 0x0800
_KNOWN_FLAGS: Final = 0x0006 | _DESCRIPTOR_FOLLOWS | _UTF8  # 0x0006: how hard the compressor tried
_ENCRYPTED: Final = 0x2041
_UNIX: Final = 3
_MAX_VERSION_NEEDED: Final = 63  # of the specification, tenfold; a reader refuses what needs more

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_CENTRAL_SIGNATURE: Final = b"PK\x01\x02"
_END_SIGNATURE: Final = b"PK\x05\x06"
_LOCATOR64_SIGNATURE: Final = b"PK\x06\x07"
_END64_SIGNATURE: Final = b"PK\x06\x06"
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_ZIP64: Final = 0x0001
_EXTENDED_TIMESTAMP: Final = 0x5455
_UNICODE_PATH: Final = 0x7075  # another name, which unzip, 7z and bsdtar take instead (4.6.9)
_FULL16: Final = 0xFFFF
_FULL32: Final = 0xFFFFFFFF

_MAX_ENTRIES: Final = 1_000_000  # each costs half a KiB here, and 46 bytes of a made-up file
_MAX_DIRECTORY_BYTES: Final = 512 * 1024 * 1024
_MAX_COMMENT_BYTES: Final = 0xFFFF
_MAX_COMPONENT_BYTES: Final = 255
_FOREIGN: Final = {
    b"SQLite format 3\x00": ": it looks like a SQLite database",
    b"\x1f\x8b": ": it looks like a gzip file",
    b"{": ": it looks like JSON, perhaps an error of the service",
    b"<": ": it looks like a web page, or XML",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry whose place in the file is proved; its bytes are not yet.

    ``mode`` is 0 where its maker knew none; ``mtime_ns`` is UTC.
    """

    name: str
    is_folder: bool
    is_deflated: bool
    size_bytes: int
    packed_bytes: int
    crc: int
    mode: int
    mtime_ns: int
    data_offset: int


class _Listed(NamedTuple):
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


class _End(NamedTuple):
    """What the end of the file says of the directory."""

    entries: int
    directory_bytes: int
    directory_offset: int
    records_offset: int


def read_directory(archive: ArchiveFile) -> tuple[Entry, ...]:
    """Every entry, in the order of the file. Raises ArchiveError, with the reason, for what is no whole ZIP.

    Codes: ``not_a_zip``, ``truncated``, ``malformed``, ``unsupported``, ``unsafe``, ``too_large``.
    """
    end = _read_end(archive)
    listed = sorted(_read_central(archive, end), key=lambda entry: entry.offset)
    entries = []
    here = 0
    for index, entry in enumerate(listed):
        following = listed[index + 1].offset if index + 1 < len(listed) else end.directory_offset
        entries.append(_place(archive, entry, here, following))
        here = following
    if here != end.directory_offset:  # only when there is no entry at all
        _refuse("malformed", f"{end.directory_offset} bytes belong to no entry")
    _look_at_names(entries)
    return tuple(entries)


# The end of the file.


def _read_end(archive: ArchiveFile) -> _End:
    size_bytes = archive.size_bytes
    if size_bytes < _END.size:
        raise _foreign(archive)
    tail_bytes = min(size_bytes, _END.size + _MAX_COMMENT_BYTES)
    tail = archive.read(size_bytes - tail_bytes, tail_bytes)
    found = _find_end(archive, tail)
    end_offset = size_bytes - tail_bytes + found
    _, disk, first_disk, here, entries, length, offset, _ = _END.unpack_from(tail, found)
    if disk or first_disk or here != entries:
        _refuse("unsupported", "it is one part of a ZIP in several files")
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
                _refuse("malformed", "its end record and its ZIP64 end record contradict each other")
    if offset + length != records_offset:
        _refuse("malformed", "its directory does not end where its end record begins")
    if entries > _MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        _refuse("too_large", f"it lists {entries} entries; more than {_MAX_ENTRIES} are not read")
    return _End(entries, length, offset, records_offset)


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
        _refuse("malformed", "bytes follow its end, or its end was cut off")
    raise _foreign(archive)


def _read_end64(archive: ArchiveFile, locator: bytes, locator_offset: int) -> tuple[int, int, int, int]:
    _, disk, offset64, disks = _LOCATOR64.unpack(locator)
    if disk or disks != 1 or offset64 + _END64.size != locator_offset:
        _refuse("malformed", "its ZIP64 end record is not where it should be")
    record = _END64.unpack(archive.read(offset64, _END64.size))
    signature, record_bytes, _, _, disk, first_disk, here, entries, length, offset = record
    if signature != _END64_SIGNATURE or record_bytes != _END64.size - 12:
        _refuse("malformed", "its ZIP64 end record is damaged")
    if disk or first_disk or here != entries:
        _refuse("unsupported", "it is one part of a ZIP in several files")
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


# The directory.


def _read_central(archive: ArchiveFile, end: _End) -> list[_Listed]:
    data = archive.read(end.directory_offset, end.directory_bytes)
    found: list[_Listed] = []
    at = 0
    while at < len(data):
        if len(data) - at < _CENTRAL.size or not data.startswith(_CENTRAL_SIGNATURE, at):
            _refuse("malformed", f"its directory is damaged at entry {len(found) + 1}")
        fields = _CENTRAL.unpack_from(data, at)
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        at += _CENTRAL.size
        following = at + name_bytes + extra_bytes + comment_bytes
        if following > len(data):
            _refuse("malformed", f"its directory is damaged at entry {len(found) + 1}")
        found.append(
            _listed(fields, data[at : at + name_bytes], data[at + name_bytes : following - comment_bytes])
        )
        at = following
    if len(found) != end.entries:
        _refuse("malformed", f"its directory has {len(found)} entries, and its end says {end.entries}")
    return found


def _listed(fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> _Listed:
    _, made_by, needed, flags, method, time, date, crc, packed_bytes, size_bytes = fields[:10]
    disk, _, attributes, offset = fields[13:]
    shown = ascii(raw_name.decode("utf-8", "replace"))
    if flags & _ENCRYPTED:
        _refuse("unsupported", f"{shown} is encrypted")
    if flags & ~_KNOWN_FLAGS or method not in _METHODS or needed & 0xFF > _MAX_VERSION_NEEDED:
        _refuse(
            "unsupported",
            f"{shown} is packed in a way that is not supported (method {method}, flags {flags:#x}, version {needed})",
        )
    extras = _extras(extra, shown)
    wide = extras.get(_ZIP64, b"")
    wanted = [value == _FULL32 for value in (size_bytes, packed_bytes, offset)]
    numbers = list(_wide_numbers(wide, sum(wanted), shown))
    size_bytes, packed_bytes, offset = (
        numbers.pop(0) if is_wide else value
        for is_wide, value in zip(wanted, (size_bytes, packed_bytes, offset), strict=True)
    )
    if disk:
        _refuse("unsupported", "it is one part of a ZIP in several files")
    return _Listed(
        raw_name=raw_name,
        unicode_path=extras.get(_UNICODE_PATH, b""),
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


def _extras(extra: bytes, shown: str) -> dict[int, bytes]:
    """Extra fields by their number; what does not parse to the last byte is damaged."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        if len(extra) - at < 4:
            _refuse("malformed", f"{shown}: an extra field is damaged")
        number, size_bytes = struct.unpack_from("<HH", extra, at)
        at += 4
        if at + size_bytes > len(extra) or (number in fields and number in (_ZIP64, _UNICODE_PATH)):
            _refuse("malformed", f"{shown}: an extra field is damaged")
        fields[number] = extra[at : at + size_bytes]
        at += size_bytes
    return fields


def _wide_numbers(field: bytes, count: int, shown: str) -> tuple[int, ...]:
    if len(field) < 8 * count:
        _refuse("malformed", f"{shown}: its ZIP64 field is missing or damaged")
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


# One entry in its place.


def _place(archive: ArchiveFile, listed: _Listed, here: int, following: int) -> Entry:
    """The entry must begin ``here``, where the one before it ended, and end at ``following``."""
    shown = ascii(listed.raw_name.decode("utf-8", "replace"))
    if listed.offset != here:
        _refuse("malformed", f"bytes before {shown} belong to no entry, or two entries overlap")
    if here + _LOCAL.size > following:
        _refuse("malformed", f"{shown} overlaps what follows it")
    header = _LOCAL.unpack(archive.read(here, _LOCAL.size))
    name_bytes, extra_bytes = header[9:]
    data_offset = here + _LOCAL.size + name_bytes + extra_bytes
    data_end = data_offset + listed.packed_bytes
    if header[0] != _LOCAL_SIGNATURE or data_end > following:
        _refuse("malformed", f"{shown} is not where the directory says, or overlaps what follows it")
    rest = archive.read(here + _LOCAL.size, name_bytes + extra_bytes)
    _compare_header(listed, header, rest[:name_bytes], rest[name_bytes:], shown)
    if listed.has_descriptor:
        _look_at_descriptor(archive, listed, data_end, following, shown)
    elif data_end != following:
        _refuse("malformed", f"bytes follow {shown} that belong to no entry")
    name, is_folder = _name(listed, shown)
    if listed.method == _STORED and listed.packed_bytes != listed.size_bytes:
        _refuse("malformed", f"{shown} is not packed, and has two sizes")
    return Entry(
        name=name,
        is_folder=is_folder,
        is_deflated=listed.method == _DEFLATED,
        size_bytes=listed.size_bytes,
        packed_bytes=listed.packed_bytes,
        crc=listed.crc,
        mode=stat.S_IMODE(listed.mode) if listed.is_unix else 0,
        mtime_ns=listed.mtime_ns,
        data_offset=data_offset,
    )


def _compare_header(
    listed: _Listed, header: tuple[int, ...], raw_name: bytes, extra: bytes, shown: str
) -> None:
    """The entry's own header must say what the directory says."""
    _, _, flags, method, _, _, crc, packed_bytes, size_bytes, _, _ = header
    extras = _extras(extra, shown)
    own = (raw_name, extras.get(_UNICODE_PATH, b""), flags, method)
    if own != (listed.raw_name, listed.unicode_path, listed.flags, listed.method):
        _refuse("malformed", f"{shown} is called or packed otherwise in its own header")
    if _ZIP64 in extras and _FULL32 in (packed_bytes, size_bytes):
        size_bytes, packed_bytes = _wide_numbers(extras[_ZIP64], 2, shown)
    said = zip(
        (crc, packed_bytes, size_bytes), (listed.crc, listed.packed_bytes, listed.size_bytes), strict=True
    )
    if any(one != other and (one or not listed.has_descriptor) for one, other in said):  # 0: it follows
        _refuse("malformed", f"{shown}: its own header and the directory contradict each other")


def _look_at_descriptor(
    archive: ArchiveFile, listed: _Listed, data_end: int, following: int, shown: str
) -> None:
    """With or without its signature, with 32 or 64 bits a size (4.3.9): it must fill the gap, and agree."""
    gap = following - data_end
    numbers = {12: "<3L", 16: "<4x3L", 20: "<LQQ", 24: "<4xLQQ"}.get(gap)
    data = archive.read(data_end, gap) if numbers else b""
    has_signature = gap in (16, 24)
    expected = (listed.crc, listed.packed_bytes, listed.size_bytes)
    if (
        not numbers
        or struct.unpack(numbers, data) != expected
        or (has_signature and not data.startswith(_DESCRIPTOR_SIGNATURE))
    ):
        _refuse("malformed", f"what follows {shown} contradicts the directory")


# Names.


def _name(listed: _Listed, shown: str) -> tuple[str, bool]:
    """The entry's name without a folder's slash, safe to unpack anywhere; whether it is a folder's."""
    text = _decode(listed, shown)
    is_folder = text.endswith("/")
    kind = stat.S_IFMT(listed.mode)  # some readers look at it whatever system it was made on
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
        what = "a link" if kind == stat.S_IFLNK else "no regular file"
        _refuse("unsafe", f"{shown} is {what}")
    if is_folder and listed.size_bytes:
        _refuse("unsafe", f"{shown} is a folder and has bytes")
    name = text.removesuffix("/")
    has_drive = name[1:2] == ":" and name[0].isascii() and name[0].isalpha()
    if has_drive or any(not _is_safe(component) for component in name.split("/")):
        _refuse("unsafe", f"the name {shown} could be unpacked elsewhere than below its target")
    return name, is_folder


def _decode(listed: _Listed, shown: str) -> str:
    """As unzip, 7z and bsdtar do on Unix; where they would not agree, it is refused."""
    raw, is_utf8 = listed.raw_name, bool(listed.flags & _UTF8)
    if listed.unicode_path:
        is_valid = listed.unicode_path[:5] == struct.pack("<BL", 1, deflate.crc32(raw))
        if not is_valid or (is_utf8 and listed.unicode_path[5:] != raw):
            _refuse("malformed", f"{shown} has two names")
        raw, is_utf8 = listed.unicode_path[5:], True
    try:
        return raw.decode("utf-8" if is_utf8 or listed.is_unix else "cp437")  # appendix D
    except UnicodeDecodeError:
        if is_utf8:
            _refuse("unsafe", f"the name {shown} is no UTF-8")
        return raw.decode("cp437")


def _is_safe(component: str) -> bool:
    """No way up, no second meaning of a slash, nothing that a terminal obeys, not too long to be made."""
    if component in ("", ".", "..") or len(component.encode("utf-8", "replace")) > _MAX_COMPONENT_BYTES:
        return False
    return not any(
        char == "\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in component
    )


def _look_at_names(entries: list[Entry]) -> None:
    """No two the same, in whatever form of Unicode; none a file and a folder at once."""
    # With the slash as the smallest character, what lies in a folder follows the folder's own name.
    keys = sorted(
        (unicodedata.normalize("NFC", entry.name).replace("/", "\0"), entry.is_folder) for entry in entries
    )
    for (key, is_folder), (following, _) in pairwise(keys):
        shown = ascii(key.replace("\0", "/"))
        if following == key:
            _refuse("unsafe", f"{shown} is in it twice")
        if not is_folder and following.startswith(key + "\0"):
            _refuse("unsafe", f"{shown} is a file and a folder at once")


def _refuse(code: str, reason: str) -> NoReturn:
    raise ArchiveError(reason, code=code)
