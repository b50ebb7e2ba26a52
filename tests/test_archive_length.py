"""A stored archive is exactly as long as its headers promise, at every threshold of ZIP64.

Most entries here are memory that was mapped and never touched: their bytes are counted, not held.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zipstream.ng import ZIP64_ESTIMATE_FACTOR, ZIP64_LIMIT

from harness import run, tool
from mothership_backup import frames
from mothership_backup.archive import Archive, stored_length
from mothership_backup.decoder import Frame
from mothership_backup.errors import ReaderError
from mothership_backup.manifest import Plan
from support import INSTANT, described, manifest_of, planned

GIB = 1024**3
ESTIMATED = int(ZIP64_LIMIT / ZIP64_ESTIMATE_FACTOR)  # from here on an entry is written in ZIP64's form
WINDOW = 256 * 1024 * 1024
OWN_ENTRIES = 3  # VERSION, MANIFEST.json, SHA256SUMS
NOTHING = memoryview(b"")


def document_frame(frame_type: int, document: dict[str, Any]) -> Frame:
    return Frame(frame_type, document, NOTHING, 0, 0)


def frames_of(plan: Plan, window: memoryview, *, is_summed: bool = False, pulses: int = 0) -> Iterator[Frame]:
    """What a reader says of these sources, whose every byte is zero."""
    alive = [document_frame(frames.ALIVE, {})] * pulses
    taken = [(index, source) for index, source in enumerate(plan.sources) if source.status == "ok"]
    for index, source in taken:
        yield from alive
        left, crc = source.size_bytes, 0
        while left:
            piece = window[: min(left, len(window))]
            crc = zlib.crc32(piece, crc) if is_summed else 0
            left -= len(piece)
            yield Frame(frames.DATA, {}, piece, len(piece), crc)
        document = {
            "index": index,
            "size_bytes": source.size_bytes,
            "sha256": "0" * 64,
            "engine": source.engine,
        }
        yield document_frame(frames.END_OF_ENTRY, document | dict(source.pages or {}))
        if source.kind == "database":
            yield document_frame(frames.CHECK, {"index": index, "verdict": "unable", "text": "x" * 120})
    yield from alive
    total = sum(source.size_bytes for _, source in taken)
    yield document_frame(frames.END, {"entries": len(taken), "size_bytes": total, "instants": [INSTANT]})


def stored(plan: Plan, app_version: str = "1.2") -> Archive:
    return Archive(
        plan, manifest_of(plan, app_version=app_version), stored=True, strict=False, level=1, created=1.8e9,
        app_version=app_version, check_timeout_seconds=300,
    )  # fmt: skip


def sized(*sizes: int, **fields: Any) -> Plan:
    return planned([described(f"{n}.db", size_bytes=size, **fields) for n, size in enumerate(sizes)])


@pytest.fixture(scope="module")
def window() -> memoryview:
    """Mapped, and never touched: it takes no memory."""
    return memoryview(mmap.mmap(-1, WINDOW))


def sent_bytes(plan: Plan, window: memoryview, **kwargs: Any) -> tuple[int, int]:
    """What was promised, and what came."""
    archive = stored(plan)
    came = sum(len(chunk) for chunk in archive.chunks(frames_of(plan, window, **kwargs)))
    assert archive.content_length is not None
    return archive.content_length, came


def test_an_archive_without_a_source(window: memoryview) -> None:
    """Three entries of ours."""
    promised, came = sent_bytes(planned([]), window)

    assert promised == came


@pytest.mark.parametrize(
    "entries",
    [pytest.param(65_534, marks=pytest.mark.long), 65_535, pytest.param(65_536, marks=pytest.mark.long)],
)
def test_the_number_of_entries_at_its_16_bits(entries: int, window: memoryview) -> None:
    """The library's own `len()` is 76 short at exactly 65,535."""
    documents = [
        {"path": f"f/{n:05d}", "kind": "file", "status": "ok", "size_bytes": 0, "mtime_ns": 1, "mode": 420}
        | {"is_named": False, "engine": "plain"}
        for n in range(entries - OWN_ENTRIES)
    ]

    promised, came = sent_bytes(planned(documents), window)

    assert promised == came


@pytest.mark.parametrize(
    "size",
    [
        *(ESTIMATED + more for more in (-1, 0, 1)),
        *(ZIP64_LIMIT + more for more in (-1, 0, 1)),
        *(4 * GIB + more for more in (-2, -1, 0, 1)),
        int(4 * GIB / 1.05),
        int(4 * GIB * 0.95),
        9 * GIB,
    ],
)
def test_one_entry_around_each_limit(size: int, window: memoryview) -> None:
    """Of the library's estimate, of its 31 bits, and of the format's 32."""
    promised, came = sent_bytes(sized(size, 1), window)

    assert promised == came


@pytest.mark.parametrize(
    "offset", [ZIP64_LIMIT - 100, ZIP64_LIMIT - 1, ZIP64_LIMIT, ZIP64_LIMIT + 1, 4 * GIB + 7]
)
def test_entries_that_begin_around_a_limit(offset: int, window: memoryview) -> None:
    """Small ones, and one that is large itself: each combination has a field of its own length."""
    overhead = stored_length([("0.db", 0, 10**9)]) - stored_length([]) - 46 - len("0.db") - 9
    half = (offset - 2 * overhead) // 2
    plan = sized(half, offset - 2 * overhead - half, 5, 0, 3 * GIB, 5)

    promised, came = sent_bytes(plan, window)

    assert promised == came


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, ESTIMATED, ESTIMATED + 1, ZIP64_LIMIT, ZIP64_LIMIT + 1, 5 * GIB])
        | st.integers(0, GIB),
        max_size=6,
    ),
    mtime_ns=st.sampled_from([0, 10**9, 2**31 * 10**9, -(2**31) * 10**9 - 1, 2**62]),
    name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60),
    kind=st.sampled_from(["database", "file"]),
    pulses=st.integers(0, 3),
)
def test_any_sizes_times_and_names(
    sizes: list[int], mtime_ns: int, name: str, kind: str, pulses: int, window: memoryview
) -> None:
    """Promised is what comes: entry, extra fields, descriptors, manifest, pulses."""
    documents = [
        described(f"{n}{name}", size_bytes=size, mtime_ns=mtime_ns, kind=kind) for n, size in enumerate(sizes)
    ]
    promised, came = sent_bytes(planned(documents), window, pulses=pulses)

    assert promised == came


def test_a_stored_archive_reads_back_with_pulses_before_its_manifest(window: memoryview) -> None:
    """Blanks are allowed before a JSON text; more of them than were reserved are not sent."""
    plan = sized(10, 0)
    for pulses in (0, 5, 500):
        archive = stored(plan, app_version="é" * 200)
        data = b"".join(archive.chunks(frames_of(plan, window, is_summed=True, pulses=pulses)))

        assert len(data) == archive.content_length
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            assert opened.testzip() is None
            manifest = opened.read("MANIFEST.json")
            sums = opened.read("SHA256SUMS").decode()
        assert manifest.startswith(b" " * min(pulses, 360) + b"{")
        assert hashlib.sha256(manifest).hexdigest() + "  MANIFEST.json" in sums


def test_a_source_of_another_size_than_planned_is_no_archive(window: memoryview) -> None:
    """Its length was promised; what came is told."""
    plan = sized(10, 20)
    other = sized(10, 19)

    with pytest.raises(ReaderError, match=r"1\.db.*19.*20") as caught:
        list(stored(plan).chunks(frames_of(other, window)))

    assert caught.value.source == "1.db"


def to_sparse_file(path: Path, plan: Plan) -> int:
    """The archive on disk, its zeros as holes; returns its length."""
    zeros = memoryview(bytes(2 * 1024 * 1024))
    archive = stored(plan)
    with path.open("wb") as file:
        for chunk in archive.chunks(frames_of(plan, zeros, is_summed=True)):
            if len(chunk) == len(zeros):
                file.seek(len(chunk), os.SEEK_CUR)
            else:
                file.write(chunk)
        length = file.tell()
    assert length == archive.content_length
    return length


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    [
        (int(4 * GIB * 0.95), 5),
        (4 * GIB - 1, 5),
        (4 * GIB, 5),
        (ZIP64_LIMIT, 5),
        (2 * GIB, 2 * GIB + 1, 5, 0),
    ],
    ids=["near 4 GiB", "4 GiB - 1", "4 GiB", "2 GiB - 1", "offsets over 4 GiB"],
)
def test_foreign_tools_read_what_is_large(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Python, unzip and 7z find each entry whole: sizes, offsets and CRCs stand where they look for them."""
    plan = sized(*sizes)
    path = tmp_path / "b.zip"

    to_sparse_file(path, plan)

    with zipfile.ZipFile(path) as opened:
        assert [info.file_size for info in opened.infolist()][: len(sizes)] == list(sizes)
        assert opened.read(f"{len(sizes) - 1}.db") == bytes(sizes[-1])
    # unzip 6.0 takes a real size of 2**32 - 1 for the mark of a missing one; Python's own archives too.
    commands = [["unzip", "-tqq"], ["7z", "t"]] if 4 * GIB - 1 not in sizes else [["7z", "t"]]
    for command in commands:
        tested = run(tool(command[0]), *command[1:], path, seconds=250)
        assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.long
def test_foreign_tools_read_70000_files(tmp_path: Path) -> None:
    """More entries than 16 bits can count."""
    files = [
        described(f"f/{n % 300}/{n}", kind="file", size_bytes=n % 7, engine="plain") for n in range(70_000)
    ]
    path = tmp_path / "b.zip"

    to_sparse_file(path, planned(files))

    with zipfile.ZipFile(path) as opened:
        assert len(opened.infolist()) == 70_000 + OWN_ENTRIES
    for command in (["unzip", "-tqq"], ["7z", "t"]):
        tested = run(tool(command[0]), *command[1:], path, seconds=250)
        assert tested.returncode == 0, tested.stdout[-500:] + tested.stderr[-500:]
