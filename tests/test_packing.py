"""Pieces on threads come back as if there had been none."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mothership_backup import deflate
from mothership_backup.reader.packing import Packer, one_by_one
from support import archive_of

PIECES = [random.Random(number).randbytes(2000) * 50 for number in range(40)]
WHOLE = b"".join(PIECES)


@pytest.mark.parametrize("level", [None, 1, 6])
@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_any_number_of_threads_gives_the_same(threads: int, level: int | None) -> None:
    """Data, order, sizes and sums; also for the second entry on the same threads."""
    expected = list(one_by_one(iter(PIECES), level, hashlib.sha256()))
    packer = Packer(threads)
    for _ in range(2):
        sha256 = hashlib.sha256()
        found = list(packer.on_threads(iter(PIECES), level, sha256))
        assert found == expected
        assert sha256.hexdigest() == hashlib.sha256(WHOLE).hexdigest()

    assert found[-1][2] == zlib.crc32(WHOLE)
    assert [size_bytes for _, size_bytes, _ in found] == [len(piece) for piece in PIECES]
    data = b"".join(data for data, _, _ in found)
    assert (data if level is None else zlib.decompress(data + deflate.END, -15)) == WHOLE


@pytest.mark.parametrize("threads", [1, 3])
def test_few_pieces_are_held(threads: int) -> None:
    """One for each thread and two more, however slowly they are taken."""
    asked = 0

    def count() -> Iterator[bytes]:
        nonlocal asked
        for piece in PIECES:
            asked += 1
            yield piece

    packed = Packer(threads).on_threads(count(), 1, hashlib.sha256())
    for taken, _ in enumerate(packed):
        assert asked - taken <= threads + 2
    assert asked == len(PIECES)


def test_a_failure_on_a_thread_is_raised_here() -> None:
    """There is no level 99."""
    with pytest.raises(ValueError, match=r"level|initialization"):
        list(Packer(2).on_threads(iter(PIECES), 99, hashlib.sha256()))


def test_a_source_that_fails_is_raised_here() -> None:
    """What was given before it may be lost: the entry is."""

    def broken() -> Iterator[bytes]:
        yield from PIECES[:5]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(Packer(2).on_threads(broken(), 1, hashlib.sha256()))


def test_the_archive_is_the_same(tmp_path: Path) -> None:
    """To the last byte of its entries, and whole."""
    large = tmp_path / "data" / "floor_plan" / "large.svg"
    large.parent.mkdir(parents=True)
    large.write_bytes(WHOLE + random.Random(0).randbytes(5_000_000))

    first, second = (archive_of(tmp_path / "data", {"limits": {"threads": threads}}) for threads in (1, 5))

    # Before that name stand 30 bytes of its header, with the time of the backup.
    end = first.data.index(b"VERSION") - 30
    assert end > 5_000_000
    assert first.data[:end] == second.data[:end]
    assert first.manifest["complete"] is True
