"""Blocks that were packed apart are one DEFLATE stream, for every tool that reads one."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import run, tool
from mothership_backup import deflate
from mothership_backup.deflate import BLOCK_BYTES, END, PULSE, crc32, pack

LEVELS = range(1, 10)


@pytest.fixture(params=["isal", "zlib"])
def compressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both where both are there."""
    if request.param == "isal" and deflate.isal_zlib is None:
        pytest.skip("isal is not installed")
    if request.param == "zlib":
        monkeypatch.setattr(deflate, "isal_zlib", None)
    return str(request.param)


def inflate(packed: bytes) -> bytes:
    """By zlib, which must find the end, and nothing after it."""
    stream = zlib.decompressobj(-15)
    data = stream.decompress(packed) + stream.flush()
    assert stream.eof
    assert stream.unused_data == b""
    return data


def sensor_rows(size_bytes: int, seed: int = 1) -> bytes:
    numbers = random.Random(seed)
    line = b"".join(b"sensor-%d,%.2f\n" % (numbers.randrange(97), numbers.random()) for _ in range(5000))
    return (line * (size_bytes // len(line) + 1))[:size_bytes]


@pytest.mark.parametrize("level", LEVELS)
def test_blocks_joined_are_one_stream(level: int, compressor: str) -> None:
    """Compressible and not, a whole block and a byte; at each level that may be configured."""
    blocks = [sensor_rows(BLOCK_BYTES), os.urandom(BLOCK_BYTES), b"x", bytes(70_000), sensor_rows(12_345)]

    packed = b"".join(pack(block, level) for block in blocks) + END

    assert inflate(packed) == b"".join(blocks)


@settings(deadline=None)  # the machine is shared
@given(
    blocks=st.lists(st.binary(min_size=1, max_size=3000), max_size=6),
    pulses=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    level=st.sampled_from(LEVELS),
)
def test_pulses_between_blocks_add_nothing(blocks: list[bytes], pulses: list[int], level: int) -> None:
    """Before the first, after the last, and several in a row."""
    packed = b"".join(
        PULSE * pulse + pack(block, level) for pulse, block in zip(pulses, blocks, strict=False)
    )

    assert inflate(packed + PULSE * pulses[-1] + END) == b"".join(blocks)


def test_an_entry_without_a_byte_is_a_stream_too() -> None:
    """Empty files are deflated like all others."""
    assert inflate(END) == b""
    assert inflate(PULSE + END) == b""


def test_the_same_block_gives_the_same_bytes(compressor: str) -> None:
    """Whatever was packed before it: identical sources give identical archives."""
    block = sensor_rows(BLOCK_BYTES)
    first = pack(block, 1)
    pack(os.urandom(1000), 9)

    assert pack(block, 1) == first


def test_every_block_ends_on_a_byte_and_is_flushed(compressor: str) -> None:
    """What was packed can be unpacked at once: nothing waits in a compressor."""
    stream = zlib.decompressobj(-15)

    for seed in range(3):
        block = sensor_rows(50_000, seed)
        assert stream.decompress(pack(block, 1)) == block


def test_rows_of_sensors_become_much_smaller(compressor: str) -> None:
    """Fast is not nothing."""
    block = sensor_rows(BLOCK_BYTES)

    assert len(pack(block, 1)) < len(block) / 3


def test_a_packed_block_fits_into_a_frame(compressor: str) -> None:
    """Also what does not compress, at every level."""
    block = os.urandom(BLOCK_BYTES)

    assert max(len(pack(block, level)) for level in LEVELS) < BLOCK_BYTES * 1.01


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_the_crc_goes_on_from_block_to_block(blocks: list[bytes]) -> None:
    """The same number as zlib's over all of it."""
    crc = 0
    for block in blocks:
        crc = crc32(block, crc)

    assert crc == zlib.crc32(b"".join(blocks))


def test_unzip_reads_an_entry_full_of_pulses(tmp_path: Path, compressor: str) -> None:
    """As it stands in an archive after a check of a quarter of an hour: 900 of them."""
    content = sensor_rows(3 * BLOCK_BYTES)
    blocks = [content[begin : begin + BLOCK_BYTES] for begin in range(0, len(content), BLOCK_BYTES)]
    packed = b"".join(pack(block, 1) + PULSE * 300 for block in blocks) + END
    head = b"".join(
        [b"\x14\0\0\0\x08\0\0\0\x21\0", zlib.crc32(content).to_bytes(4, "little")]
        + [len(data).to_bytes(4, "little") for data in (packed, content)]
    )
    local = b"PK\x03\x04" + head + b"\x01\0\0\0" + b"x" + packed
    central = b"PK\x01\x02\x14\x03" + head + b"\x01\0" + bytes(16) + b"x"
    end = b"PK\x05\x06" + bytes(4) + b"\x01\0\x01\0"
    end += len(central).to_bytes(4, "little") + len(local).to_bytes(4, "little") + b"\0\0"
    (tmp_path / "b.zip").write_bytes(local + central + end)

    unzipped = run(tool("unzip"), tmp_path / "b.zip", "-d", tmp_path / "out")

    assert unzipped.returncode == 0, unzipped.stdout
    assert (tmp_path / "out" / "x").read_bytes() == content
