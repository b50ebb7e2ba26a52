"""The directory of a ZIP, read strictly: every byte of the file belongs to one entry, or to the directory.

zipfile and unzip are made to read what they can. They take bytes before, between and behind the entries, headers
that contradict the directory, entries that overlap: what they show is then not all there is. Here the directory,
the headers and the descriptors must agree, and leave no gap (APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16).
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final

from mothership_backup.verify.archive_file import ArchiveFile, refuse
from mothership_backup.verify.central import (
    DEFLATED,
    FULL32,
    STORED,
    UNICODE_PATH,
    ZIP64,
    Listed,
    read_central,
    read_extras,
    wide_numbers,
)
from mothership_backup.verify.end_record import read_end
from mothership_backup.verify.entry_names import look_at_names, read_name

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"


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


def read_directory(archive: ArchiveFile) -> tuple[Entry, ...]:
    """Every entry, in the order of the file. Raises ArchiveError, with the reason, for what is no whole ZIP.

    Codes: ``not_a_zip``, ``truncated``, ``malformed``, ``unsupported``, ``unsafe``, ``too_large``.
    """
    end = read_end(archive)
    listed = sorted(read_central(archive, end), key=lambda entry: entry.offset)
    entries = []
    here = 0
    for index, entry in enumerate(listed):
        following = listed[index + 1].offset if index + 1 < len(listed) else end.directory_offset
        entries.append(_place(archive, entry, here, following))
        here = following
    if here != end.directory_offset:  # only when there is no entry at all
        refuse("malformed", f"{end.directory_offset} bytes belong to no entry")
    look_at_names((entry.name, entry.is_folder) for entry in entries)
    return tuple(entries)


def _place(archive: ArchiveFile, listed: Listed, here: int, following: int) -> Entry:
    """The entry must begin ``here``, where the one before it ended, and end at ``following``."""
    shown = ascii(listed.raw_name.decode("utf-8", "replace"))
    if listed.offset != here:
        refuse("malformed", f"bytes before {shown} belong to no entry, or two entries overlap")
    if here + _LOCAL.size > following:
        refuse("malformed", f"{shown} overlaps what follows it")
    header = _LOCAL.unpack(archive.read(here, _LOCAL.size))
    name_bytes, extra_bytes = header[9:]
    data_offset = here + _LOCAL.size + name_bytes + extra_bytes
    data_end = data_offset + listed.packed_bytes
    if header[0] != _LOCAL_SIGNATURE or data_end > following:
        refuse("malformed", f"{shown} is not where the directory says, or overlaps what follows it")
    rest = archive.read(here + _LOCAL.size, name_bytes + extra_bytes)
    _compare_header(listed, header, rest[:name_bytes], rest[name_bytes:], shown)
    if listed.has_descriptor:
        _look_at_descriptor(archive, listed, data_end, following, shown)
    elif data_end != following:
        refuse("malformed", f"bytes follow {shown} that belong to no entry")
    name, is_folder = read_name(listed, shown)
    if listed.method == STORED and listed.packed_bytes != listed.size_bytes:
        refuse("malformed", f"{shown} is not packed, and has two sizes")
    return Entry(
        name=name,
        is_folder=is_folder,
        is_deflated=listed.method == DEFLATED,
        size_bytes=listed.size_bytes,
        packed_bytes=listed.packed_bytes,
        crc=listed.crc,
        mode=stat.S_IMODE(listed.mode) if listed.is_unix else 0,
        mtime_ns=listed.mtime_ns,
        data_offset=data_offset,
    )


def _compare_header(
    listed: Listed, header: tuple[int, ...], raw_name: bytes, extra: bytes, shown: str
) -> None:
    """The entry's own header must say what the directory says."""
    _, _, flags, method, _, _, crc, packed_bytes, size_bytes, _, _ = header
    extras = read_extras(extra, shown)
    own = (raw_name, extras.get(UNICODE_PATH, b""), flags, method)
    if own != (listed.raw_name, listed.unicode_path, listed.flags, listed.method):
        refuse("malformed", f"{shown} is called or packed otherwise in its own header")
    if ZIP64 in extras and FULL32 in (packed_bytes, size_bytes):
        size_bytes, packed_bytes = wide_numbers(extras[ZIP64], 2, shown)
    said = zip(
        (crc, packed_bytes, size_bytes), (listed.crc, listed.packed_bytes, listed.size_bytes), strict=True
    )
    if any(one != other and (one or not listed.has_descriptor) for one, other in said):  # 0: it follows
        refuse("malformed", f"{shown}: its own header and the directory contradict each other")


def _look_at_descriptor(
    archive: ArchiveFile, listed: Listed, data_end: int, following: int, shown: str
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
        refuse("malformed", f"what follows {shown} contradicts the directory")
