"""Frames arrive as they were sent, however the pipe splits them, and anything else is told at once."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import threading
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mothership_backup import frames
from mothership_backup.decoder import Decoder, Frame
from mothership_backup.frames import DATA, HEADER, MAX_PAYLOAD_BYTES, ProtocolError
from mothership_backup.reader.output import FrameWriter

DOCUMENT_TYPES = [kind for kind in range(frames.PLAN, frames.END + 1) if kind != DATA]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
documents = st.tuples(st.sampled_from(DOCUMENT_TYPES), st.dictionaries(st.text(), values, max_size=4))
pieces = st.tuples(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


def encode(item: tuple[Any, ...]) -> bytes:
    if len(item) == 2:
        frame_type, document = item
        return frames.encode_document(frame_type, document)
    packed, size_bytes, crc = item
    return frames.data_header(len(packed), size_bytes, crc) + bytes(packed)


def fill(decoder: Decoder, data: memoryview) -> int:
    """What `readv` would do, had the pipe ``data``."""
    count = 0
    for buffer in decoder.buffers:
        piece = data[count : count + len(buffer)]
        buffer[: len(piece)] = piece
        count += len(piece)
    return count


def decode(data: bytes, cuts: list[int]) -> list[Frame]:
    """As `readv` gives them: never more than the decoder's buffer holds."""
    decoder = Decoder()
    found: list[Frame] = []
    for begin, end in pairwise([0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]):
        rest = memoryview(data)[begin:end]
        while rest:
            count = fill(decoder, rest)
            rest = rest[count:]
            found += decoder.advance(count)
    assert decoder.is_between_frames
    return found


@settings(deadline=None)  # the machine is shared
@given(st.lists(documents | pieces, max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_any_split_of_the_bytes_gives_the_frames_that_were_sent(
    sent: list[tuple[Any, ...]], cuts: list[int]
) -> None:
    """Bytes come in whatever pieces the pipe has."""
    found = decode(b"".join(map(encode, sent)), cuts)

    for frame, item in zip(found, sent, strict=True):
        if len(item) == 2:
            assert (frame.type, frame.document) == item
            assert bytes(frame.data) == b""
        else:
            assert (bytes(frame.data), frame.size_bytes, frame.crc) == item
            assert frame.type == DATA


def test_one_byte_at_a_time() -> None:
    """The slowest pipe there is."""
    data = frames.encode_document(frames.PLAN, {"sources": []}) + frames.data_header(3, 9, 7) + b"abc"

    assert len(decode(data, list(range(len(data))))) == 2


def test_names_that_are_no_utf8_travel_as_they_are() -> None:
    """As lone surrogates, which JSON can say in ASCII."""
    name = os.fsdecode(b"\xff\xfe.db")

    (frame,) = decode(frames.encode_document(frames.PLAN, {"sources": [{"path": name}]}), [])

    assert os.fsencode(frame.document["sources"][0]["path"]) == b"\xff\xfe.db"


def test_the_longest_frame_and_one_byte_more() -> None:
    """2 MiB is the most that is ever held; more is refused before a byte of it is taken."""
    packed = bytes(MAX_PAYLOAD_BYTES - frames.DATA_HEADER.size)
    (longest,) = decode(frames.data_header(len(packed), 1, 1) + packed, [])

    assert len(longest.data) == len(packed)
    with pytest.raises(ProtocolError, match=str(MAX_PAYLOAD_BYTES + 1)):
        decode(HEADER.pack(DATA, MAX_PAYLOAD_BYTES + 1), [])


@pytest.mark.parametrize("frame_type", [0, frames.END + 1, 255])
def test_an_unknown_type_is_refused(frame_type: int) -> None:
    """A stray print, or a reader of another version."""
    with pytest.raises(ProtocolError, match=f"type {frame_type}"):
        decode(HEADER.pack(frame_type, 2) + b"{}", [])


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (frames.PLAN, b""),
        (frames.PLAN, b"{"),
        (frames.END, b"[]"),
        (frames.CHECK, b"\xff\xfe"),
        (DATA, b""),
        (DATA, b"1234567"),
    ],
)
def test_a_payload_that_is_not_what_its_type_says_is_refused(frame_type: int, payload: bytes) -> None:
    """Each with a word about the type."""
    with pytest.raises(ProtocolError):
        decode(HEADER.pack(frame_type, len(payload)) + payload, [])


def test_a_pipe_that_ends_inside_a_frame_is_seen() -> None:
    """In the header, and in the payload."""
    for data in (b"\x01\x00", HEADER.pack(frames.PLAN, 10), HEADER.pack(frames.PLAN, 10) + b"{"):
        decoder = Decoder()
        for byte in data:
            decoder.buffers[0][0] = byte
            assert list(decoder.advance(1)) == []

        assert not decoder.is_between_frames


def test_a_writer_whose_reader_is_gone_says_so() -> None:
    """The service died or hung up: the reader hears of it at its next frame."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = FrameWriter(write_end)

    with pytest.raises(BrokenPipeError):
        writer.send(frames.PLAN, {"sources": []})
    writer.close()


def test_frames_of_many_threads_never_mix() -> None:
    """Sending, checking and saying ALIVE are threads of their own; the pipe is far smaller than what they say."""
    read_end, write_end = os.pipe()
    writer = FrameWriter(write_end)
    block = os.urandom(300_000)

    def talk(number: int) -> None:
        for _ in range(10):
            writer.send(frames.CHECK, {"index": number})
            writer.send_data(block, number, number)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    found: list[Frame] = []
    with closing(os.fdopen(read_end, "rb", buffering=0)) as pipe:
        decoder = Decoder()
        while len(found) < 60:
            found += decoder.advance(os.readv(pipe.fileno(), decoder.buffers))
        for thread in threads:
            thread.join()
        writer.close()

    assert all(frame.data == block for frame in found if frame.type == DATA)
    assert sorted(frame.size_bytes for frame in found if frame.type == DATA) == sorted([0, 1, 2] * 10)


def test_small_frames_that_may_wait_go_out_together() -> None:
    """In their order, with the next that may not; when there are many; and after a second, with a sign of life."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1024 * 1024)
    writer = FrameWriter(write_end)
    with closing(os.fdopen(read_end, "rb", buffering=0)) as pipe:

        def read_once() -> list[Frame]:
            return decode(os.read(pipe.fileno(), 1 << 20), [])

        for number in range(3):
            writer.send_data(b"x", 1, number, may_wait=True)
        writer.send(frames.CHECK, {})
        assert [(frame.type, frame.crc) for frame in read_once()] == [
            (DATA, 0),
            (DATA, 1),
            (DATA, 2),
            (frames.CHECK, 0),
        ]

        for _ in range(60):
            writer.send_data(bytes(1500), 1500, 0, may_wait=True)
            if select.select([pipe], [], [], 0)[0]:
                break
        assert 2 < len(read_once()) < 60
        writer.send_data(b"x", 1, 9, may_wait=True)
        writer.flush()
        assert [frame.crc for frame in read_once()] == [9]

        writer.send(frames.END_OF_ENTRY, {}, may_wait=True)
        assert [frame.type for frame in read_once()] == [frames.END_OF_ENTRY, frames.ALIVE]
    writer.close()


@pytest.mark.parametrize("last", [frames.END, frames.ERROR])
def test_nothing_goes_out_after_the_last_frame(last: int) -> None:
    """A check that ends in the same moment would turn the end, or its reason, into a broken protocol."""
    read_end, write_end = os.pipe()
    writer = FrameWriter(write_end)

    writer.send(last, {"code": "source_failed"})
    writer.send(frames.CHECK, {"index": 0})
    writer.send_data(b"late", 4, 0)
    writer.close()

    with closing(os.fdopen(read_end, "rb")) as pipe:
        assert pipe.read() == frames.encode_document(last, {"code": "source_failed"})


def large_frame(number: int) -> bytes:
    return encode((bytes([number]) * 900_000, 0, 0))


def test_frames_that_are_held_keep_their_bytes() -> None:
    """However many come after them."""
    found = decode(b"".join(map(large_frame, range(40))), [])

    assert [bytes(frame.data[:1]) + bytes(frame.data[-1:]) for frame in found] == [
        bytes([number, number]) for number in range(40)
    ]


def test_the_memory_of_frames_that_are_gone_is_used_again() -> None:
    """Of 180 MB, less than a tenth is new to the process."""
    decoder = Decoder()
    sent = large_frame(7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        rest = memoryview(sent)
        while rest:
            count = fill(decoder, rest)
            rest = rest[count:]
            found = list(decoder.advance(count))
        assert [frame.data[-1] for frame in found] == [7]
        del found
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert faults * resource.getpagesize() < 18_000_000
