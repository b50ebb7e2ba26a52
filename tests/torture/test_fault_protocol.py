"""A reader that hangs, says too much, too little or something else: a visible failure, none a hang (issue 3, item 5).

A script stands in the reader's place and says what a real reader has said of the same directory, with one thing
wrong. tests/test_child_hosts.py holds what concerns single frames, here it is whole backups.

Seen before the mend: a frame without a key that it must have came out as KeyError, not as an error of ours (exit
status 1 with a traceback from `mothership-backup backup`). Seen on copies without the protection: without `_compare`
every archive of `wrong counts` was whole; without the look at the pipe after END, `goes on after END` was.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from harness import Archive, MakeDatabase
from mothership_backup import child, frames
from mothership_backup.backup import Backup
from mothership_backup.errors import ReaderError
from mothership_backup.frames import DATA, DATA_HEADER, END, END_OF_ENTRY, HEADER, PLAN, PLAN_END
from processes import children, wait_until
from support import backup_of, reading, request_for
from torture.faulty import ending_of

Said = list[bytes]
"""Frames as they stand in the pipe."""


def record(data: Path, *, stored: bool) -> Said:
    """What a real reader says of this directory."""
    said = []
    with reading(request_for(data, stored=stored)) as (_, incoming):
        for frame in incoming:
            if frame.type == DATA:
                said.append(
                    frames.data_header(len(frame.data), frame.size_bytes, frame.crc) + bytes(frame.data)
                )
            else:
                said.append(frames.encode_document(frame.type, frame.document))
    return said


def first(said: Said, frame_type: int) -> int:
    return next(number for number, frame in enumerate(said) if frame[0] == frame_type)


def changed(said: Said, frame_type: int, **fields: Any) -> Said:
    """The first frame of this type with these fields; None takes one away."""
    at = first(said, frame_type)
    document = json.loads(said[at][HEADER.size :]) | fields
    document = {key: value for key, value in document.items() if value is not None}
    return [*said[:at], frames.encode_document(frame_type, document), *said[at + 1 :]]


def without(said: Said, frame_type: int) -> Said:
    at = first(said, frame_type)
    return [*said[:at], *said[at + 1 :]]


def twice(said: Said, frame_type: int) -> Said:
    at = first(said, frame_type)
    return [*said[: at + 1], *said[at:]]


def resized(said: Said, by: int) -> Said:
    """The first DATA frame says another size before packing than it had."""
    at = first(said, DATA)
    size_bytes, crc = DATA_HEADER.unpack_from(said[at], HEADER.size)
    body = said[at][HEADER.size + DATA_HEADER.size :]
    return [*said[:at], frames.data_header(len(body), size_bytes + by, crc) + body, *said[at + 1 :]]


def swapped(said: Said) -> Said:
    """The first entry's frames come after the second's."""
    first_end = first(said, END_OF_ENTRY)
    begin = first(said, DATA)
    second_end = first_end + 1 + first(said[first_end + 1 :], END_OF_ENTRY)
    return [
        *said[:begin],
        *said[first_end + 1 : second_end + 1],
        *said[begin : first_end + 1],
        *said[second_end + 1 :],
    ]


WRONG: dict[str, Callable[[Said], Iterable[bytes]]] = {
    "nothing": lambda said: [],
    "no plan": lambda said: said[first(said, DATA) :],
    "half a plan": lambda said: without(said, PLAN),
    "no end of the plan": lambda said: without(said, PLAN_END),
    "two plans": lambda said: twice(said, PLAN_END),
    "a plan without its sources": lambda said: changed(said, PLAN, sources=None),
    "a plan of something else": lambda said: changed(said, PLAN, sources=[{"path": "a.db"}]),
    "a plan of numbers": lambda said: changed(said, PLAN, sources=[1, 2]),
    "a plan that is a number": lambda said: changed(said, PLAN, sources=7),
    "a plan without an engine": lambda said: changed(said, PLAN_END, sqlite=None),
    "no END": lambda said: without(said, END),
    "half of END": lambda said: [*said[:-1], said[-1][:-2]],
    "goes on after END": lambda said: [*said, said[0]],
    "END twice": lambda said: twice(said, END),
    "END too early": lambda said: [*said[: first(said, DATA)], said[-1]],
    "END within an entry": lambda said: [*said[: first(said, DATA) + 1], said[-1]],
    "END without its numbers": lambda said: changed(said, END, entries=None),
    "END without its instants": lambda said: changed(said, END, instants=None),
    "one entry too many": lambda said: changed(said, END, entries=3),
    "one entry too few": lambda said: changed(said, END, entries=1),
    "bytes too many": lambda said: changed(said, END, size_bytes=10**9),
    "an entry twice": lambda said: [*said[:-1], *said[first(said, DATA) : -1], said[-1]],
    "an entry missing": lambda said: [*said[: first(said, DATA)], *said[first(said, END_OF_ENTRY) + 1 :]],
    "entries in another order": swapped,
    "no end of an entry": lambda said: without(said, END_OF_ENTRY),
    "the end of an entry twice": lambda said: twice(said, END_OF_ENTRY),
    "the index of another": lambda said: changed(said, END_OF_ENTRY, index=1),
    "an index of none": lambda said: changed(said, END_OF_ENTRY, index=99),
    "no index": lambda said: changed(said, END_OF_ENTRY, index=None),
    "an entry without its size": lambda said: changed(said, END_OF_ENTRY, size_bytes=None),
    "an entry without its sum": lambda said: changed(said, END_OF_ENTRY, sha256=None),
    "a sum that is none": lambda said: changed(said, END_OF_ENTRY, sha256="sha"),
    "an entry of another size": lambda said: changed(said, END_OF_ENTRY, size_bytes=5),
    "a failure after its bytes": lambda said: changed(said, END_OF_ENTRY, error={"code": "x", "message": "y"}),
    "a piece missing": lambda said: without(said, DATA),
    "a piece twice": lambda said: twice(said, DATA),
    "a piece of more": lambda said: resized(said, 1),
    "a piece of less": lambda said: resized(said, -1),
    "the verdict of none": lambda said: changed(said, frames.CHECK, index=99),
    "half a verdict": lambda said: changed(said, frames.CHECK, verdict=None),
    "bytes that are no frames": lambda said: [*said[:-1], b"Traceback (most recent call last)\n"],
    "a length beyond all": lambda said: [*said[:-1], HEADER.pack(DATA, 2**32 - 1)],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """Two databases of a few blocks each."""
    folder = tmp_path_factory.mktemp("protocol") / "data"
    make_database(folder / "a.db", rows=2_500, random_bytes=900)
    make_database(folder / "b.db", journal="delete", rows=1_500, random_bytes=900)
    return folder


@pytest.fixture(scope="module", params=["deflate", "stored"])
def said(request: pytest.FixtureRequest, data: Path) -> tuple[str, Said]:
    return request.param, record(data, stored=request.param == "stored")


class StandIn:
    """A script that takes the request and says what it is given; then what its last line does."""

    def __init__(self, folder: Path) -> None:
        self._frames = folder / "frames"
        self._script = folder / "python"

    def says(self, said: Iterable[bytes], then: str = "exit 0") -> None:
        self._frames.write_bytes(b"".join(said))
        said_by = f"read -r _; cat {shlex.quote(str(self._frames))}"
        self._script.write_text(f"#!/bin/sh\n{said_by}\n{then}\n")
        self._script.chmod(0o755)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return StandIn(tmp_path)


def outcome_of(backup: Backup) -> str:
    assert backup.outcome is not None
    return backup.outcome.word


@pytest.mark.live_engine  # compares with the file byte for byte, which a copy by the backup API is not
def test_the_stand_in_is_as_good_as_the_reader(said: tuple[str, Said], data: Path, stand_in: StandIn) -> None:
    """What follows fails for what is wrong with it, and for nothing else."""
    compression, recorded = said
    stand_in.says(recorded)

    ending = ending_of(backup_of(data, compression=compression))

    assert ending.archive is not None
    assert ending.archive.zip.testzip() is None
    assert ending.archive.read("a.db") == (data / "a.db").read_bytes()


@pytest.mark.parametrize("how", WRONG)
def test_a_reader_that_says_something_else(
    how: str, said: tuple[str, Said], data: Path, stand_in: StandIn
) -> None:
    """With status 0, which proves nothing."""
    compression, recorded = said
    stand_in.says(WRONG[how](recorded))
    backup = backup_of(data, compression=compression)

    ending = ending_of(backup)

    assert isinstance(ending.error, ReaderError), ending
    assert ending.error.code in ("reader_protocol", "reader_died", "source_failed")
    assert outcome_of(backup) == "failed"
    assert ending.seconds < 5
    assert not children(os.getpid())


@pytest.mark.parametrize(
    "after",
    [
        "a plan",
        "the last entry",
        *(pytest.param(after, marks=pytest.mark.long) for after in ("nothing", "a piece", "an entry")),
    ],
)
def test_a_reader_that_hangs(
    after: str, said: tuple[str, Said], data: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frame for `SILENCE_SECONDS` (10 in earnest, 1 here), wherever it stops: told, and it is killed."""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 1.0)
    compression, recorded = said
    ends = {
        "nothing": 0,
        "a plan": first(recorded, DATA),
        "a piece": first(recorded, DATA) + 1,
        "an entry": first(recorded, END_OF_ENTRY) + 1,
        "the last entry": len(recorded) - 1,
    }
    stand_in.says(recorded[: ends[after]], then="exec sleep 60")

    ending = ending_of(backup_of(data, compression=compression))

    assert ending.error is not None
    assert ending.error.code == "reader_silent"
    assert 1 <= ending.seconds < 4
    wait_until("it to be gone", lambda: not children(os.getpid()), 1)


def test_a_reader_that_hangs_after_its_end(
    said: tuple[str, Said], data: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """END, and the pipe stays open: no proof that nothing follows, so no archive."""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 1.0)
    stand_in.says(said[1], then="exec sleep 60")

    ending = ending_of(backup_of(data, compression=said[0]))

    assert ending.error is not None
    assert ending.error.code == "reader_silent"


def test_a_frame_in_small_pieces_is_no_hang(
    said: tuple[str, Said], data: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than the silence allows, and moves all the time."""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 1.0)
    pieces = [f"sleep 0.4; printf '\\{byte:o}'" for byte in said[1][-1][:4]]
    rest = "".join(f"\\{byte:03o}" for byte in said[1][-1][4:])
    stand_in.says(said[1][:-1], then="; ".join([*pieces, f"printf '{rest}'"]))

    ending = ending_of(backup_of(data, compression=said[0]))

    assert ending.archive is not None, ending.error
    assert ending.seconds > 1.5


def test_an_archive_is_only_as_good_as_what_it_was_told(
    said: tuple[str, Said], data: Path, stand_in: StandIn
) -> None:
    """A known limit: sums are the reader's own, so bytes that it turned around are told by `unzip -t` alone."""
    compression, recorded = said
    at = first(recorded, DATA)
    frame = bytearray(recorded[at])
    frame[-100] ^= 1
    stand_in.says([*recorded[:at], bytes(frame), *recorded[at + 1 :]])

    ending = ending_of(backup_of(data, compression=compression))

    assert ending.archive is not None
    assert isinstance(ending.archive, Archive)
    assert broken(ending.archive)


def broken(archive: Archive) -> bool:
    try:
        return archive.zip.testzip() is not None
    except Exception:
        return True
