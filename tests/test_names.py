"""Names in the archive are safe, unique and short enough, whatever the sources are called."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mothership_backup.names import RESERVED, all_names, display_name, quoted_path

# What a file system can hold: any bytes but NUL and the slash, at most 255 of them, and not the two special names.
raw_components = (
    st.one_of(
        st.binary(min_size=1, max_size=255),
        st.text("ab.~%1\\/\n\x7f\u0301é\u202e\ufeff", min_size=1, max_size=12).map(str.encode),
        st.sampled_from([*(name.encode() for name in RESERVED), b"version", b"Manifest.JSON"]),
        st.integers(60, 255).map(lambda length: "é".encode() * (length // 2)),
    )
    .map(lambda raw: raw.replace(b"/", b"").replace(b"\0", b"")[:255])
    .filter(lambda raw: raw not in (b"", b".", b".."))
)
components = raw_components.map(os.fsdecode)
paths = st.lists(components, min_size=1, max_size=3).map("/".join)


@st.composite
def trees(draw: st.DrawFn) -> list[str]:
    """Paths that can be in one directory together: what is a folder is not a file."""
    found: dict[str, None] = {}
    for path in draw(st.lists(paths, max_size=12)):
        folders = {"/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)}
        if not folders & set(found) and not any(known.startswith(path + "/") for known in found):
            found[path] = None
    return list(found)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@settings(deadline=None, max_examples=300)
@given(trees())
@example(["a\n.db", "a%0A.db", "a%0A~2.db", "a\n/b", "a%0A/b"])
@example(["caf\u00e9/x", "cafe\u0301/x", "caf\u00e9.db", "cafe\u0301.db"])
@example(["\x01" + "é" * 127, "\x02" + "é" * 127])
@example(["x" * 255, "x" * 254 + "\x01", "\x01" * 255, "\x01" * 254 + "\x02"])
def test_names_are_safe_and_unique(tree: list[str]) -> None:
    """Extracted anywhere, each is a file of its own inside the target."""
    names = all_names(tree)

    assert len(names) == len(tree)
    assert len({folded(name) for name in names}) == len(names)
    for name in names:
        for component in name.split("/"):
            assert component not in ("", ".", "..")
            assert len(component.encode()) <= 255
            assert not set(component) & {"\\", "\0", "\n", "\r", "\x7f", "\x85", "\u2028"}
        assert not Path(name).is_absolute()
    folders = {
        folded("/".join(name.split("/")[:depth])) for name in names for depth in range(1, name.count("/") + 1)
    }
    assert not folders & {folded(name) for name in names}, "a folder that is also a file cannot be extracted"
    assert not {folded(name).upper() for name in names} & {name.upper() for name in RESERVED}


@settings(deadline=None)
@given(trees())
def test_names_depend_on_nothing_but_the_paths(tree: list[str]) -> None:
    """Identical sources give identical archives."""
    assert all_names(tree) == all_names(tree)


@settings(deadline=None)
@given(trees())
def test_what_lies_in_one_folder_stays_in_one_folder(tree: list[str]) -> None:
    """The tree keeps its shape."""
    folder_of: dict[str, str] = {}
    for path, name in zip(tree, all_names(tree), strict=True):
        assert name.count("/") == path.count("/")
        folder = folder_of.setdefault(path.rpartition("/")[0], name.rpartition("/")[0])
        assert folder == name.rpartition("/")[0]
    assert len(set(folder_of.values())) == len(folder_of)


@pytest.mark.parametrize(
    "name",
    [
        "spaxel.db",
        "sp ace.db",
        "-rf.db",
        "50%41.db",
        "a?b.db",
        "a#b.db",
        "café.db",
        "日本.db",
        "~2.db",
    ],
)
def test_names_that_are_safe_stay_as_they_are(name: str) -> None:
    """Nobody has to translate them back."""
    assert all_names([name, f"floor_plan/{name}"]) == [name, f"floor_plan/{name}"]


def test_bytes_that_cannot_be_shown_are_escaped() -> None:
    """No UTF-8, control characters, line separators and the backslash, which is a folder elsewhere."""
    names = [os.fsdecode(b"\xff\xfe.db"), "new\nline.db", "bell\x07.db", "back\\slash.db", "sep\u2028.db"]

    assert all_names(names) == [
        "%FF%FE.db",
        "new%0Aline.db",
        "bell%07.db",
        "back%5Cslash.db",
        "sep%E2%80%A8.db",
    ]


def test_twins_of_normalisation_get_a_number() -> None:
    """On macOS they would be one file; the first has the name."""
    assert all_names(["caf\u00e9.db", "cafe\u0301.db"]) == ["caf\u00e9.db", "cafe\u0301~2.db"]
    assert all_names(["cafe\u0301/a", "caf\u00e9/a"]) == ["cafe\u0301/a", "caf\u00e9~2/a"]


def test_an_escaped_name_that_is_there_already_gets_a_number() -> None:
    """A file, and a folder."""
    assert all_names(["a%0A.db", "a\n.db", "a%0A~2.db"]) == ["a%0A.db", "a%0A~2.db", "a%0A~2~2.db"]
    assert all_names(["a%0A", "a\n/b"]) == ["a%0A", "a%0A~2/b"]


@pytest.mark.parametrize("name", [*RESERVED, "version", "manifest.json", "Sha256Sums"])
def test_our_own_names_are_taken(name: str) -> None:
    """In any case of letters, since case does not count everywhere; below a folder they are free."""
    (renamed, below) = all_names([name, f"floor_plan/{name}"])

    assert renamed.upper() not in {reserved.upper() for reserved in RESERVED}
    assert below == f"floor_plan/{name}"


def test_a_name_that_becomes_too_long_is_shortened_and_told_apart() -> None:
    """Escapes are longer than what they stand for; the suffix stays."""
    long = [os.fsdecode(b"\xff" * 200 + bytes([number]) + b".db") for number in (0xFE, 0xFD)]

    first, second = all_names(long)

    assert first != second
    assert max(len(first.encode()), len(second.encode())) <= 255
    assert all_names(long[1:]) == [second], "its name must not depend on what else is there"
    assert first.startswith("%FF%FF")
    assert first.endswith(".db")
    assert second.endswith(".db")


@settings(deadline=None)
@given(paths)
def test_a_path_is_told_so_that_it_can_be_read_back(path: str) -> None:
    """Percent-encoded, byte by byte, in plain ASCII."""
    quoted = quoted_path(path)

    assert unquote_to_bytes(quoted) == os.fsencode(path)
    assert quoted.isascii()
    assert quoted.isprintable()


@settings(deadline=None)
@given(paths)
def test_what_is_not_in_the_archive_can_still_be_shown(path: str) -> None:
    """A name for people and parsers, without a surrogate or a control character."""
    shown = display_name(path)

    assert shown.encode().decode() == shown
    assert not any(unicodedata.category(char) == "Cc" for char in shown)
