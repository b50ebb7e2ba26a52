"""The seam into zipstream-ng: what we replace and rely on is still there, and does what we think.

When one of these fails after an update of the library, archive.py needs a look before anything is released.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zipstream
from zipstream.ng import ZIP64_ESTIMATE_FACTOR, ZIP64_LIMIT, ZipStream, ZipStreamInfo

from harness import run, tool
from mothership_backup import deflate
from mothership_backup.archive import Packed, _Entry, _Zip
from mothership_backup.errors import ReaderError

NOON = 1_790_000_000  # 2026-09-21T14:13:20Z
MODES = [0o644, 0o600, 0o444, 0o755, 0o4755, 0o1777, 0]


def packed(content: bytes, *, is_deflated: bool) -> Iterator[Packed]:
    yield Packed(deflate.pack(content, 1) if is_deflated else content, len(content), zlib.crc32(content))
    if is_deflated:
        yield Packed(deflate.END, 0, zlib.crc32(content))


def archive(*entries: _Entry, content: bytes = b"content") -> bytes:
    stream = _Zip()
    chunks: list[bytes | memoryview] = []
    for entry in entries:
        is_deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        chunks += stream.add_entry(entry, packed(content, is_deflated=is_deflated))
    return b"".join([*chunks, *stream.footer()])


def entry(name: str = "a.db", seconds: int = NOON, mode: int = 0o644, *, is_deflated: bool = True) -> _Entry:
    return _Entry(name, seconds * 10**9 + 999_999_999, mode, 7, is_deflated=is_deflated)


def extra_time(info: zipfile.ZipInfo) -> int | None:
    """The modification time of the extra field 0x5455, if there is one."""
    fields = info.extra
    while fields:
        kind, length = struct.unpack_from("<HH", fields)
        if kind == 0x5455:
            assert length == 5
            assert fields[4] == 1
            return int(struct.unpack_from("<i", fields, 5)[0])
        fields = fields[4 + length :]
    return None


# What is replaced, and what is called.


def test_the_method_that_is_replaced_is_the_one_that_the_library_calls() -> None:
    """A queued entry's members are handed to it as they are, and its chunks are all that comes out."""
    handed = []

    class Stream(ZipStream):  # type: ignore[misc]  # the library has no types
        def _gen_file_entry(self, **members: object) -> Iterator[bytes]:
            handed.append(members)
            yield self._track(b"12345")

    stream = Stream()
    stream._queue.append({"entry": 1, "packed": 2})

    assert list(stream.file()) == [b"12345"]
    assert handed == [{"entry": 1, "packed": 2}]
    assert stream._pos == 5
    assert stream._filelist == []


def test_an_entry_produces_its_bytes_in_the_method_that_is_replaced() -> None:
    """With these parameters."""
    assert list(inspect.signature(ZipStreamInfo._file_data).parameters) == ["self", "iterable", "force_zip64"]
    assert list(inspect.signature(ZipStreamInfo.FileHeader).parameters) == ["self", "zip64"]
    assert list(inspect.signature(ZipStreamInfo.DataDescriptor).parameters) == ["self", "zip64"]


def test_the_directory_is_made_of_what_each_entry_says_once() -> None:
    """So an entry that is out need not be kept, only its header."""

    class Header:
        def _central_directory_header_data(self) -> bytes:
            return b"header"

    stream = ZipStream()
    stream._filelist += [Header(), Header()]

    footer = b"".join(stream.footer())

    assert footer.startswith(b"headerheaderPK\x05\x06")
    assert struct.unpack_from("<HHLL", footer, 12 + 8) == (2, 2, 12, 0)


def test_the_library_decides_for_zip64_as_we_count() -> None:
    """Where its limits move, `stored_length` would be wrong."""
    assert ZIP64_LIMIT == zipfile.ZIP64_LIMIT == 2**31 - 1
    assert ZIP64_ESTIMATE_FACTOR == 1.05
    assert "self.file_size * ZIP64_ESTIMATE_FACTOR > ZIP64_LIMIT" in inspect.getsource(
        ZipStreamInfo._file_data
    )


def test_the_hosts_own_use_of_the_library_is_not_touched() -> None:
    """Nothing is patched: a plain ZipStream beside ours is the library's."""
    archive(entry())
    stream = zipstream.ZipStream()
    stream.add(b"hello", "hello.txt")

    assert zipfile.ZipFile(io.BytesIO(bytes(stream))).read("hello.txt") == b"hello"
    assert ZipStream._gen_file_entry.__module__ == ZipStreamInfo._file_data.__module__ == "zipstream.ng"


# What comes out.


@pytest.mark.parametrize("is_deflated", [True, False])
def test_packed_bytes_are_taken_as_they_are(is_deflated: bool) -> None:
    """Method, sizes and CRC are those of what came packed, in the descriptor and in the directory."""
    content = b"sensor " * 1000
    data = archive(entry(is_deflated=is_deflated), entry("b.db", is_deflated=is_deflated), content=content)

    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        for info in opened.infolist():
            assert opened.read(info) == content
            assert info.compress_type == (zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED)
            assert (info.file_size, info.CRC) == (len(content), zlib.crc32(content))
            assert info.flag_bits & 0x08, "sizes follow in a descriptor"


def test_empty_chunks_pass_through() -> None:
    """An empty one means that what came before goes out now."""
    pieces = iter(
        [Packed(b"", 0, 0), Packed(b"abc", 3, zlib.crc32(b"abc")), Packed(b"", 0, zlib.crc32(b"abc"))]
    )

    chunks = list(_Zip().add_entry(entry(is_deflated=False), pieces))

    assert chunks[1] == b""
    assert chunks[3] == b""


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_the_sources(mode: int) -> None:
    """A regular file's, with all its bits."""
    (info,) = zipfile.ZipFile(io.BytesIO(archive(entry(mode=mode)))).infolist()

    assert info.external_attr >> 16 == 0o100000 | mode
    assert info.create_system == 3, "Unix: else nobody looks at modes"


@pytest.mark.parametrize(
    ("seconds", "dos", "utc"),
    [
        (NOON, time.gmtime(NOON)[:6], NOON),
        (NOON + 1, time.gmtime(NOON)[:6], NOON + 1),  # DOS counts in twos
        (315532799, (1980, 1, 1, 0, 0, 0), 315532799),  # a second before 1980
        (0, (1980, 1, 1, 0, 0, 0), 0),
        (-86_400, (1980, 1, 1, 0, 0, 0), -86_400),
        (2**31 - 1, (2038, 1, 19, 3, 14, 6), 2**31 - 1),
        (2**31, (2038, 1, 19, 3, 14, 8), None),  # the field has 32 bits
        (4_354_819_200, (2107, 12, 31, 23, 59, 58), None),  # 2108
        (2**55, (2107, 12, 31, 23, 59, 58), None),
        (-(2**55), (1980, 1, 1, 0, 0, 0), None),
    ],
)
def test_times_are_utc_within_what_can_be_said(
    seconds: int, dos: tuple[int, ...], utc: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """In DOS form and in the extra field; before 1980 and after 2107 without a word in a host's log."""
    with caplog.at_level(logging.DEBUG):
        (info,) = zipfile.ZipFile(io.BytesIO(archive(entry(seconds=seconds)))).infolist()

    assert info.date_time == tuple(dos)
    assert extra_time(info) == utc
    assert caplog.records == []


def test_the_time_stands_in_both_headers() -> None:
    """Tools that read a stream see only the local one."""
    data = archive(entry())
    name_bytes, extra_bytes = struct.unpack_from("<HH", data, 26)
    local = data[30 + name_bytes : 30 + name_bytes + extra_bytes]

    assert local == struct.pack("<HHBi", 0x5455, 5, 1, NOON)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/St_Johns"])
def test_unzip_restores_the_time_to_the_second_in_any_zone(zone: str, tmp_path: Path) -> None:
    """DOS times have no zone; the extra field has."""
    (tmp_path / "b.zip").write_bytes(archive(entry(seconds=NOON + 1, mode=0o640)))

    done = run("env", f"TZ={zone}", tool("unzip"), "-q", tmp_path / "b.zip", "-d", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    found = os.stat(tmp_path / "out" / "a.db")
    assert found.st_mtime == NOON + 1
    assert found.st_mode & 0o777 == 0o640


def test_names_beyond_ascii_are_marked_as_utf8() -> None:
    """And plain ones are not."""
    infos = zipfile.ZipFile(io.BytesIO(archive(entry("a.db"), entry("café/日本.db")))).infolist()

    assert [info.filename for info in infos] == ["a.db", "café/日本.db"]
    assert [bool(info.flag_bits & 0x800) for info in infos] == [False, True]


def test_an_entry_that_outgrows_its_plan_into_zip64_fails_in_the_open() -> None:
    """Its header is out already and says 32 bits."""
    planned = entry(is_deflated=False)
    pieces = iter([Packed(b"x", 2**31, 0)])

    with pytest.raises(ReaderError, match=r"a\.db"):
        list(_Zip().add_entry(planned, pieces))
