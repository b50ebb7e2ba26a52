"""A ZIP is read strictly: what two readers could take for two things is refused, and nothing is written meanwhile."""

from __future__ import annotations

import os
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from archives import END, Item, as_ours, command, deflated, judged, plain_zip, raw_zip, refused
from mothership_backup import deflate
from mothership_backup.errors import ArchiveError
from mothership_backup.names import all_names
from mothership_backup.verify.archive_file import ArchiveFile, open_archive
from mothership_backup.verify.directory import read_directory
from test_names import trees

MIB = 1024**2
GOOD = Item(b"a.db", b"a" * 100)
OTHER = Item(b"b.db", b"b" * 100)
FILES = {"a.db": b"a" * 100, "floor_plan/b.svg": b"<svg/>" * 50}


@pytest.fixture(autouse=True)
def nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither in the folder for temporary files nor in the one where the command runs."""
    for name in ("tmp", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")

    yield

    assert set(os.listdir(tmp_path)) <= {"tmp", "here", "refused.zip", "good.zip"}
    assert os.listdir(tmp_path / "tmp") == []
    assert os.listdir(tmp_path / "here") == []


def entry_names(data: bytes, folder: Path) -> list[str]:
    path = folder / "good.zip"
    path.write_bytes(data)
    with open_archive(str(path)) as opened:
        return [entry.name for entry in read_directory(opened)]


# Names.

ELSEWHERE = {
    "up": b"../evil.db",
    "up in the middle": b"floor_plan/../../evil.db",
    "up at the end": b"floor_plan/..",
    "here": b"./a.db",
    "absolute": b"/etc/cron.d/evil",
    "two slashes": b"//server/share",
    "slash in between": b"a//b",
    "drive": b"C:evil.db",
    "drive and root": b"c:/evil.db",
    "backslash": b"..\\evil.db",
    "network": b"\\\\server\\evil.db",
    "nothing": b"",
    "only a slash": b"/",
    "line break": b"a\n.db",
    "escape": b"\x1b[2J.db",
    "zero byte": b"a.db\x00.txt",
    "line separator": "a\u2028.db".encode(),
    "too long": b"a" * 256,
    "no UTF-8": b"\xff.db",
    "surrogate": b"\xed\xa0\x80.db",
}


@pytest.mark.parametrize("name", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_name_that_leads_elsewhere(name: bytes, tmp_path: Path) -> None:
    """Or that a terminal would obey, or no file system takes."""
    code, reason = refused(raw_zip(GOOD, Item(name)), tmp_path)

    assert code == "unsafe"
    assert reason.isprintable()


KINDS = {
    "link": 0o120777,
    "character device": 0o20600,
    "block device": 0o60600,
    "pipe": 0o10600,
    "socket": 0o140600,
}


@pytest.mark.parametrize("made_by", [3, 0, 19], ids=["unix", "dos", "darwin"])
@pytest.mark.parametrize("mode", KINDS.values(), ids=KINDS)
def test_an_entry_that_is_no_file(mode: int, made_by: int, tmp_path: Path) -> None:
    """Whatever system it says it was made on: some readers do not look at that.

    Seen before the mend: a link was taken for a file when the directory said DOS.
    """
    link = Item(b"link.db", b"/etc/passwd", mode=mode, both={"made_by": made_by << 8 | 20})

    code, reason = refused(raw_zip(GOOD, link), tmp_path)

    assert code == "unsafe"
    assert "link.db' is " in reason


def test_a_folder_with_bytes(tmp_path: Path) -> None:
    """Some readers make a file of it."""
    assert refused(raw_zip(Item(b"folder/", b"x", mode=0)), tmp_path)[0] == "unsafe"


@pytest.mark.parametrize(
    "names",
    [
        (b"a.db", b"a.db"),
        ("caf\u00e9.db".encode(), "cafe\u0301.db".encode()),
        (b"folder/", b"folder/"),
        (b"folder/", b"folder"),
        (b"a.db", b"a.db/inside"),
        (b"a.db/inside/deep", b"a.db"),
        (b"a.db/inside", b"a.db!", b"a.db"),
        ("e\u0301/x".encode(), "\u00e9".encode()),
    ],
)
def test_names_that_are_one_on_a_disk(names: tuple[bytes, ...], tmp_path: Path) -> None:
    """The same twice, in two forms of Unicode, or a file and a folder at once."""
    items = [Item(name, b"" if name.endswith(b"/") else b"content", mode=0) for name in names]

    assert refused(raw_zip(*items), tmp_path)[0] == "unsafe"


def test_names_that_only_look_alike(tmp_path: Path) -> None:
    """A folder and what is in it, listed apart; names of which one begins the other."""
    names = [b"a", b"a-b", b"b/", b"b/c/d", b"b-c", b"b/c/e", b"A"]
    items = [Item(name, b"" if name.endswith(b"/") else b"content", mode=0) for name in names]

    assert len(entry_names(raw_zip(*items), tmp_path)) == len(names)


@settings(deadline=None, max_examples=80)
@given(trees())
def test_every_name_of_ours_is_taken(tree: list[str]) -> None:
    """What a backup calls its sources, verify does not call unsafe.

    Seen before the mend: `é:x.db` was taken for a drive.
    """
    names = all_names(tree)
    with tempfile.TemporaryFile() as file:
        file.write(plain_zip(dict.fromkeys(names, b"x")))
        file.flush()

        assert [entry.name for entry in read_directory(ArchiveFile(file.fileno(), "any"))] == names


def test_a_deep_name_costs_no_more_than_its_length(tmp_path: Path) -> None:
    """Seen before the mend: each of its folders was kept by its whole path, a gibibyte for this one entry."""
    deep = "/".join(["a"] * 32_000)

    tracemalloc.start()
    try:
        assert entry_names(plain_zip({deep: b""}), tmp_path) == [deep]
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def unicode_path(raw: bytes, name: bytes, crc: int | None = None) -> bytes:
    field = struct.pack("<BL", 1, zlib.crc32(raw) if crc is None else crc) + name
    return struct.pack("<HH", 0x7075, len(field)) + field


def test_a_second_name_counts(tmp_path: Path) -> None:
    """unzip, 7z and bsdtar take the one of the extra field 0x7075. Seen before the mend: only the first was read."""
    extra = unicode_path(b"caf?.db", "caf\u00e9.db".encode())
    evil = unicode_path(b"a.db", b"../evil.db")

    assert entry_names(raw_zip(Item(b"caf?.db", extra=extra, both={"flags": 0})), tmp_path) == [
        "caf\u00e9.db"
    ]
    assert refused(raw_zip(Item(b"a.db", extra=evil, both={"flags": 0})), tmp_path)[0] == "unsafe"


@pytest.mark.parametrize(
    "item",
    [
        Item(b"a.db", extra=unicode_path(b"a.db", b"b.db", crc=0), both={"flags": 0}),
        Item(b"a.db", extra=unicode_path(b"a.db", b"b.db")),  # and it says that the first is UTF-8 already
        Item(b"a.db", extra=unicode_path(b"a.db", b"b.db") * 2, both={"flags": 0}),
        Item(b"a.db", extra=unicode_path(b"a.db", b"b.db"), local_extra=b"", both={"flags": 0}),
        Item(b"a.db", local_extra=unicode_path(b"a.db", b"b.db"), both={"flags": 0}),
    ],
)
def test_second_names_that_not_every_reader_takes(item: Item, tmp_path: Path) -> None:
    """Then nobody knows what the entry is called."""
    assert refused(raw_zip(item), tmp_path)[0] == "malformed"


def test_names_without_a_mark_are_what_their_system_made_them(tmp_path: Path) -> None:
    """UTF-8 on Unix (`zip` says no more than that), code page 437 elsewhere and where it is no UTF-8."""
    unmarked = {
        "caf\u00e9": Item("caf\u00e9".encode(), both={"flags": 0}),
        "cafΘ": Item(b"caf\xe9", both={"flags": 0}),
        "caf├⌐": Item("caf\u00e9".encode(), both={"flags": 0, "made_by": 20}),
    }

    assert entry_names(raw_zip(*unmarked.values()), tmp_path) == list(unmarked)


# Bombs.


def test_an_entry_that_inflates_to_more_than_it_claims(tmp_path: Path) -> None:
    """A gibibyte behind a claim of a hundred bytes is not inflated."""
    bomb = deflated(b"bomb.db", bytes(64 * MIB), both={"size": 100})

    code, reason = refused(raw_zip(bomb), tmp_path)

    assert code == "damaged"
    assert "longer than the 100 bytes that it claims" in reason


def test_an_entry_that_inflates_to_less_than_it_claims(tmp_path: Path) -> None:
    """Nothing is filled up."""
    assert refused(raw_zip(deflated(b"a.db", b"short", both={"size": 100})), tmp_path)[0] == "damaged"


def test_an_honest_run_of_zeros_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    """There is no limit of the ratio: an honest database reached 612. `--max-bytes` says how much is too much."""
    crc = 0
    for _ in range(1024):
        crc = deflate.crc32(bytes(MIB), crc)
    payload = deflate.pack(bytes(MIB), 1) * 1024 + deflate.END
    zeros = Item(b"zeros", b"", payload, both={"method": 8, "size": 1024 * MIB, "crc": crc})

    code, reason = refused(raw_zip(zeros), tmp_path, max_bytes=100 * MIB)

    assert code == "too_large"
    assert reason == f"it unpacks to {1024 * MIB} bytes, more than --max-bytes ({100 * MIB})"


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """Each one's packed bytes quote the next one's header (`better zip bomb`, USENIX WOOT 2019)."""
    kernel = deflated(b"c", bytes(MIB))
    items = [kernel]
    for name in (b"b", b"a"):
        following = b"".join(item.local_record() for item in items)
        quote = struct.pack("<BHH", 0, len(items[0].local_record()) & 0xFFFF, 0)
        items.insert(
            0, Item(name, b"", quote, both={"method": 8, "size": MIB, "packed": len(quote + following)})
        )

    code, reason = refused(raw_zip(*items), tmp_path)

    assert code == "malformed"
    assert "overlaps what follows it" in reason


def test_two_names_for_one_entry(tmp_path: Path) -> None:
    """The directory lists its bytes twice."""
    data = raw_zip(GOOD, ghosts=[Item(b"b.db", GOOD.content, central={"offset": 0})])

    assert refused(data, tmp_path)[0] == "malformed"


@pytest.mark.parametrize("entries", [2, 65_535, 10_000_000, 2**64 - 1])
def test_a_directory_that_claims_more_entries_than_it_has(entries: int, tmp_path: Path) -> None:
    """Millions too, in ZIP64's numbers."""
    short = min(entries, 65_535)
    data = raw_zip(GOOD, here=short, entries=short)

    assert refused(data, tmp_path)[0] == "malformed"
    assert refused(wide_end(data, entries=entries), tmp_path)[0] in ("malformed", "too_large")


# Structure.


def wide_end(data: bytes, *, full: bool = True, **changes: int) -> bytes:
    """The same archive with ZIP64's end record; ``changes`` are fields of it."""
    directory_bytes, offset = END.unpack(data[-22:])[5:7]
    here = {
        "entries": END.unpack(data[-22:])[3],
        "directory_bytes": directory_bytes,
        "offset": offset,
    } | changes
    end_offset = len(data) - 22
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", changes.get("record_bytes", 44), 45, 45, changes.get("disk", 0), 0,
        here["entries"], here["entries"], here["directory_bytes"], here["offset"],
    )  # fmt: skip
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, changes.get("end_offset", end_offset), 1)
    end = END.pack(b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0) if full else data[-22:]
    return data[:-22] + record + locator + end


def descriptor(item: Item, form: str = "<4s3L", **changes: int) -> bytes:
    known = {
        "crc": zlib.crc32(item.content),
        "packed": len(item.content),
        "size": len(item.content),
    } | changes
    values = (known["crc"], known["packed"], known["size"])
    return struct.pack(form, b"PK\x07\x08", *values) if form.startswith("<4s") else struct.pack(form, *values)


def described(behind: bytes, **local: int) -> Item:
    """An entry whose numbers stand behind it."""
    zeros = {"crc": 0, "packed": 0, "size": 0}
    return Item(b"a.db", GOOD.content, behind=behind, both={"flags": 0x0808}, local=zeros | local)


SOUND = {
    "one": raw_zip(GOOD),
    "two": raw_zip(GOOD, OTHER),
    "nothing": raw_zip(),
    "ZIP64": wide_end(raw_zip(GOOD)),
    "ZIP64 that was not needed": wide_end(raw_zip(GOOD), full=False),
    "a comment": raw_zip(GOOD, comment_bytes=7, behind=b"comment"),
    "descriptor": raw_zip(described(descriptor(GOOD))),
    "descriptor without signature": raw_zip(described(descriptor(GOOD, "<3L"))),
    "wide descriptor": raw_zip(described(descriptor(GOOD, "<4sLQQ"))),
    "wide descriptor without signature": raw_zip(described(descriptor(GOOD, "<LQQ"))),
    "size before and behind": raw_zip(described(descriptor(GOOD), size=100)),
    "a month that is none": raw_zip(Item(b"a.db", both={"date": 0x5BE1})),
    "a packed one": raw_zip(deflated(b"a.db", b"a" * 5000)),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_what_is_sound(data: bytes, tmp_path: Path) -> None:
    """So the refusals below are for what they name.

    Seen before the mend: a DOS date of the 15th month was a ValueError.
    """
    (tmp_path / "good.zip").write_bytes(data)

    assert not judged(tmp_path / "good.zip").damaged


UNSOUND = {
    "bytes before": raw_zip(Item(b"a.db", before=b"#!/bin/sh\n")),
    "bytes between": raw_zip(GOOD, Item(b"b.db", before=b"hidden")),
    "bytes before the directory": raw_zip(Item(b"a.db", behind=b"hidden")),
    "bytes before the end": raw_zip(GOOD, directory_bytes=0),
    "bytes behind": raw_zip(GOOD, behind=b"\n"),
    "zeros behind": raw_zip(GOOD, behind=bytes(100)),
    "another archive behind": raw_zip(GOOD) + raw_zip(OTHER),
    "another archive before": raw_zip(OTHER) + raw_zip(GOOD),
    "only bytes": b"hidden" + raw_zip(offset=6),
    "an entry that is not listed": raw_zip(GOOD, OTHER, unlisted=[1]),
    "a first entry that is not listed": raw_zip(GOOD, OTHER, unlisted=[0]),
    "an entry that is only listed": raw_zip(GOOD, ghosts=[OTHER]),
    "an entry listed inside another": raw_zip(GOOD, ghosts=[Item(b"b.db", b"", central={"offset": 40})]),
    "an entry listed beyond the end": raw_zip(GOOD, ghosts=[Item(b"b.db", b"", central={"offset": 2**31})]),
    "two entries in each other's place": raw_zip(
        Item(b"a.db", b"a" * 100, central={"offset": 134}), Item(b"b.db", b"b" * 100, central={"offset": 0})
    ),
    "another name in its header": raw_zip(Item(b"a.db", local_name=b"b.db")),
    "another method in its header": raw_zip(Item(b"a.db", local={"method": 8})),
    "other flags in its header": raw_zip(Item(b"a.db", local={"flags": 0})),
    "another CRC in its header": raw_zip(Item(b"a.db", local={"crc": 1})),
    "another size in its header": raw_zip(Item(b"a.db", local={"size": 1})),
    "another packed size in its header": raw_zip(Item(b"a.db", local={"packed": 1})),
    "no header": raw_zip(Item(b"a.db", local={"signature": b"PK\x00\x00"})),
    "no directory header": raw_zip(Item(b"a.db", central={"signature": b"PK\x00\x00"})),
    "another size in the directory": raw_zip(Item(b"a.db", central={"size": 8})),
    "shorter in the directory": raw_zip(Item(b"a.db", central={"packed": 6, "size": 6})),
    "stored, with two sizes": raw_zip(Item(b"a.db", both={"size": 8})),
    "a name longer than the directory": raw_zip(Item(b"a.db", central={"name_bytes": 500})),
    "a comment longer than the directory": raw_zip(Item(b"a.db", central={"comment_bytes": 500})),
    "a damaged extra field": raw_zip(Item(b"a.db", extra=b"\x01\x02\x10\x00x")),
    "half an extra field": raw_zip(Item(b"a.db", extra=b"\x01")),
    "a ZIP64 number that is not there": raw_zip(Item(b"a.db", central={"size": 2**32 - 1})),
    "two ZIP64 fields": raw_zip(Item(b"a.db", extra=struct.pack("<HHQ", 1, 8, 7) * 2)),
    "no descriptor": raw_zip(described(b"")),
    "half a descriptor": raw_zip(described(descriptor(GOOD)[:10])),
    "another CRC in the descriptor": raw_zip(described(descriptor(GOOD, crc=1))),
    "another size in the descriptor": raw_zip(described(descriptor(GOOD, "<3L", size=1))),
    "another signature of the descriptor": raw_zip(described(b"PK\x00\x00" + descriptor(GOOD, "<3L"))),
    "another size before the descriptor": raw_zip(described(descriptor(GOOD), size=5)),
    "fewer entries than listed": raw_zip(GOOD, OTHER, here=1, entries=1),
    "an end in the wrong place": raw_zip(GOOD, offset=1),
    "a ZIP64 end that says otherwise": wide_end(raw_zip(GOOD, here=2, entries=2), full=False, entries=1),
    "a ZIP64 end of another length": wide_end(raw_zip(GOOD), record_bytes=60),
    "a ZIP64 end elsewhere": wide_end(raw_zip(GOOD), end_offset=0),
    "a ZIP64 end beyond the file": wide_end(raw_zip(GOOD), end_offset=2**63),
    "a ZIP64 directory beyond the file": wide_end(raw_zip(GOOD), offset=2**63, directory_bytes=2**63),
}  # fmt: skip


@pytest.mark.parametrize("data", UNSOUND.values(), ids=UNSOUND)
def test_what_two_readers_could_take_for_two_things(data: bytes, tmp_path: Path) -> None:
    """Refused, with its reason.

    Seen before the mends: a size that contradicted its descriptor, and a ZIP64 end record that contradicted the
    other one, were accepted.
    """
    code, reason = refused(data, tmp_path)

    assert code == "malformed"
    assert reason


UNSUPPORTED = {
    "encrypted": Item(b"a.db", both={"flags": 0x0801}),
    "strongly encrypted": Item(b"a.db", both={"flags": 0x0841}),
    "a masked header": Item(b"a.db", both={"flags": 0x2800}),
    "AES": Item(b"a.db", both={"flags": 0x0801, "method": 99}),
    "bzip2": Item(b"a.db", both={"method": 12}),
    "LZMA": Item(b"a.db", both={"method": 14}),
    "patched data": Item(b"a.db", both={"flags": 0x0820}),
    "a version to come": Item(b"a.db", both={"needed": 84}),
    "another disk": Item(b"a.db", central={"disk": 1}),
}


@pytest.mark.parametrize("item", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_read(item: Item, tmp_path: Path) -> None:
    """Said so, instead of left out.

    Seen before the mend: a version to come was accepted, which unzip and Python refuse.
    """
    assert refused(raw_zip(item), tmp_path)[0] == "unsupported"


def test_one_part_of_several(tmp_path: Path) -> None:
    """The other parts are not here."""
    for data in (raw_zip(GOOD, disk=1), raw_zip(GOOD, first_disk=1), raw_zip(GOOD, here=0)):
        assert refused(data, tmp_path)[0] == "unsupported"
    assert refused(wide_end(raw_zip(GOOD), disk=1), tmp_path)[0] == "unsupported"


FOREIGN = {
    "empty": (b"", "it is empty"),
    "SQLite": (b"SQLite format 3\x00" + bytes(4080), "it looks like a SQLite database"),
    "HTML": (b"<!DOCTYPE html><title>502</title>" * 9, "it looks like a web page"),
    "JSON": (b'{"code": "busy", "status": 503}', "it looks like JSON, perhaps an error of the service"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "it looks like a gzip file"),
    "text": (b"hello\n" * 20, "it is no ZIP archive"),
    "short": (b"PK", "it is no ZIP archive"),
}


@pytest.mark.parametrize(("data", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file(data: bytes, reason: str, tmp_path: Path) -> None:
    """It is told what it looks like."""
    code, said = refused(data, tmp_path)

    assert code == "not_a_zip"
    assert reason in said


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_cut_at_every_byte(compression: int, tmp_path: Path) -> None:
    """At each place of its structure, and everywhere else."""
    data = plain_zip(FILES, compression)

    for size in range(1, len(data)):
        code, reason = refused(data[:size], tmp_path)
        assert code in ("truncated", "malformed", "not_a_zip"), size
        assert reason
        assert code != "not_a_zip" or size < 4, size


def test_an_archive_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """An error of ours, not a short entry."""
    path = tmp_path / "good.zip"
    path.write_bytes(as_ours({"a.db": b"", "b.svg": os.urandom(200_000)}))
    with open_archive(str(path)) as opened:
        os.truncate(path, 1000)

        with pytest.raises(ArchiveError) as caught:
            read_directory(opened)

    assert caught.value.code == "truncated"


WORST = {
    "up": raw_zip(Item(b"../evil.db")),
    "link": raw_zip(Item(b"link.db", b"/etc/passwd", mode=0o120777)),
    "bomb": raw_zip(deflated(b"bomb.db", b"SQLite format 3\x00" + bytes(8 * MIB), both={"size": 100})),
    "twice": raw_zip(GOOD, GOOD),
}


@pytest.mark.parametrize("data", WORST.values(), ids=WORST)
def test_the_command_refuses_with_4(data: bytes, tmp_path: Path) -> None:
    """One line that names archive and reason; nothing is written (the fixture looks)."""
    (tmp_path / "refused.zip").write_bytes(data)

    result = command("verify", tmp_path / "refused.zip")

    assert result.returncode == 4
    assert result.stdout == b""
    assert result.stderr.startswith(b"mothership-backup: ")
    assert b"Traceback" not in result.stderr
