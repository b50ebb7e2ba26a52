"""Whatever happens to an archive's bytes: verify never accepts entries that are not the original's (issue 4).

Seen on a copy that compared neither CRC-32 nor SHA-256: a flipped bit, and a splice of two archives, were accepted.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import MakeDatabase
from mothership_backup.errors import ArchiveError
from mothership_backup.verify import unpack
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.contents import read_contents
from mothership_backup.verify.verdict import verify
from support import archive_of

Entries = dict[str, bytes]
Edit = tuple[str, float, float, float, bytes]

EXAMPLES = int(os.environ.get("TORTURE_EXAMPLES", "150"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", params=["deflate", "stored"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase
) -> tuple[bytes, bytes]:
    """Two archives of one data directory, between which a row and a file changed."""
    data = tmp_path_factory.mktemp("pair") / "data"
    path = make_database(data / "a.db", rows=3, page_size=512)
    (data / "floor_plan").mkdir()
    (data / "floor_plan" / "a.svg").write_text("<svg/>" * 30)
    (data / "floor_plan" / "empty").touch()
    first = archive_of(data, compression=request.param).data
    path.unlink()
    make_database(path, rows=4, page_size=512)
    (data / "floor_plan" / "a.svg").write_text("<SVG/>" * 30)
    return first, archive_of(data, compression=request.param).data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mutant.zip"


def accepted(path: Path) -> Entries | None:
    """The entries as verify reads them, if it accepts the archive."""
    with open_archive(str(path)) as opened:
        try:
            contents = read_contents(opened)
            report = verify(opened, contents, check="none", make_place=lambda entry, is_database: None)
        except ArchiveError:
            return None
        if report.damaged:
            return None
        return {entry.name: b"".join(unpack.blocks(opened, entry)) for entry in contents.entries}


def by_zipfile(data: bytes) -> Entries:
    """What a reader sees that is made to read what it can."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def is_right(mutant: bytes, path: Path, originals: list[Entries]) -> bool:
    """Refused, or one of the originals to the last byte, for verify and for another reader."""
    path.write_bytes(mutant)
    found = accepted(path)
    return found is None or (found in originals and by_zipfile(mutant) == found)


# Where an edit strikes: anywhere, or near a record's signature, where the structure is.

places = st.floats(0, 1, exclude_max=True)
edits = st.tuples(
    st.sampled_from(["flip", "set", "cut", "insert", "delete", "swap", "repeat", "near"]),
    places,
    places,
    places,
    st.binary(min_size=1, max_size=8),
)


def edited(data: bytes, edit: Edit) -> bytes:
    kind, *fractions, noise = edit
    one, two, three = sorted(int(fraction * len(data)) for fraction in fractions)
    match kind:
        case "flip":
            return replaced(data, one, bytes([data[one] ^ 1 << noise[0] % 8]))
        case "set":
            return replaced(data, one, noise)
        case "cut":
            return data[:one] if noise[0] % 2 else data[one:]
        case "insert":
            return data[:one] + noise + data[one:]
        case "delete":
            return data[:one] + data[two:]
        case "swap":
            return data[:one] + data[two:three] + data[one:two] + data[three:]
        case "repeat":
            return data[:two] + data[one:]
        case _:
            marks = [at for at in range(len(data)) if data.startswith(b"PK", at)]
            if not marks:
                return data
            at = min(marks[one % len(marks)] + two % 80, len(data) - 1)
            return replaced(data, at, noise[: 1 + three % len(noise)])


def replaced(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece[: len(data) - at] + data[at + len(piece) :]


@many
@given(changes=st.lists(edits, min_size=1, max_size=3))
def test_no_change_is_accepted(changes: list[Edit], pair: tuple[bytes, bytes], path: Path) -> None:
    """Flipped, set, cut, longer, shorter, swapped, repeated, at any byte."""
    mutant = pair[0]
    for change in changes:
        mutant = edited(mutant, change) if mutant else mutant

    assert is_right(mutant, path, [by_zipfile(pair[0])])


@many
@given(ends=st.lists(st.tuples(st.booleans(), places, places), min_size=2, max_size=3))
def test_no_splice_is_accepted(
    ends: list[tuple[bool, float, float]], pair: tuple[bytes, bytes], path: Path
) -> None:
    """Pieces of two archives; where that gives one of the two again, it is that one."""
    mutant = b"".join(
        pair[which][int(one * len(pair[which])) : int(two * len(pair[which])) + 1] for which, one, two in ends
    )

    assert is_right(mutant, path, [by_zipfile(data) for data in pair])


def record_starts(data: bytes) -> list[int]:
    """Where a header, an entry's bytes, a descriptor, the directory or the end begins, and the file's two ends."""
    signatures = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
    marks = [at for at in range(len(data)) if data[at : at + 4] in signatures]
    behind = [at + 16 for at in marks if data.startswith(b"PK\x07\x08", at)]
    return sorted({0, len(data), *marks, *behind})


def test_no_splice_of_whole_records_is_accepted(pair: tuple[bytes, bytes], path: Path) -> None:
    """The beginning of one archive and the end of the other, cut where records begin: all pairs."""
    first, second = pair
    originals = [by_zipfile(first), by_zipfile(second)]
    path.write_bytes(first)
    assert accepted(path) == originals[0]

    for one, two in itertools.product(record_starts(first), record_starts(second)):
        assert is_right(first[:one] + second[two:], path, originals), (one, two)


def every_flip(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield replaced(data, at, bytes([data[at] ^ 1 << bit]))


@pytest.mark.long
def test_no_flipped_bit_is_accepted(pair: tuple[bytes, bytes]) -> None:
    """Each bit of the archive."""
    original = by_zipfile(pair[0])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for mutant in every_flip(pair[0]):
            assert is_right(mutant, Path(folder) / "mutant.zip", [original])
