"""Patterns name databases, files and folders below the data directory: to take, to leave out, to pick."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import MakeDatabase
from mothership_backup.errors import NoMatchError
from support import archive_of, codes, error_of, names_of, touch


def test_patterns_reach_as_deep_as_they_say(tmp_path: Path, make_database: MakeDatabase) -> None:
    """`*` stays in a folder, `**` is any number of them, brackets and question marks are one letter."""
    data = tmp_path / "data"
    for name in ("a.db", "b.db", "x/a.db", "x/y/a.db", "x/y/z/deep.db", "[1].db", "x/.hidden.db"):
        make_database(data / name, rows=2)

    def found(*patterns: str) -> set[str]:
        return names_of(archive_of(data, {"data": {"databases": list(patterns)}}, files=False, check="none"))

    assert found("*.db") == {"a.db", "b.db", "[1].db"}
    assert found("**/*.db") == {
        "a.db",
        "b.db",
        "[1].db",
        "x/a.db",
        "x/y/a.db",
        "x/y/z/deep.db",
        "x/.hidden.db",
    }
    assert found("*/a.db") == {"x/a.db"}
    assert found("x/**/a.db") == {"x/a.db", "x/y/a.db"}
    assert found("**/y/*.db", "b.*") == {"x/y/a.db", "b.db"}
    assert found("[ab].db") == {"a.db", "b.db"}
    assert found("[!a].db") == found("[!]a].db") == {"b.db"}
    assert found("[]a].db") == {"a.db"}
    assert found("?.db") == {"a.db", "b.db"}
    assert found("[[]1].db") == {"[1].db"}
    assert found("[[]*.db") == {"[1].db"}
    assert found("A.db") == set()


@pytest.mark.parametrize(
    "pattern", ["[z-a].db", "[", "[]", "[!]", "(", "a{2}.db", "\\", "[\\]", "[[:alpha:]]", "***"]
)
def test_an_odd_pattern_matches_little_and_breaks_nothing(
    pattern: str, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """It may come from anybody's query."""
    data = tmp_path / "data"
    make_database(data / "a.db", rows=2)

    if pattern == "***":
        assert names_of(archive_of(data, databases=(pattern,))) == {"a.db"}
    else:
        assert isinstance(error_of(data, databases=(pattern,)), NoMatchError)


def test_an_excluded_folder_is_not_entered(tmp_path: Path, make_database: MakeDatabase) -> None:
    """By a pattern for databases or as an included one; what a pattern below it names stays out too."""
    data = tmp_path / "data"
    for name in ("a.db", "cache/b.db", "old/b.db", "floor_plan/c.db", "floor_plan/tmp/d.db"):
        make_database(data / name, rows=2)
    config = {"data": {"databases": ["**/*.db"], "exclude": ["cache", "old/**", "floor_plan/tmp"]}}

    archive = archive_of(data, config, strict=True)

    assert names_of(archive) == {"a.db", "floor_plan/c.db"}
    assert codes(archive) == dict.fromkeys(("cache", "old", "floor_plan/tmp"), "excluded")


def test_exclude_reaches_into_included_folders(tmp_path: Path) -> None:
    """Files by their paths, with `**` and without."""
    data = tmp_path / "data"
    touch(
        *(
            data / name
            for name in ("floor_plan/a.svg", "floor_plan/a.bak", "floor_plan/x/b.bak", "floor_plan/x/b.svg")
        )
    )

    archive = archive_of(data, {"data": {"exclude": ["**/*.bak"]}}, strict=True)

    assert names_of(archive) == {"floor_plan/a.svg", "floor_plan/x/b.svg"}
    assert codes(archive) == {"floor_plan/a.bak": "excluded", "floor_plan/x/b.bak": "excluded"}


def test_links_to_folders_are_told_and_never_entered(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Databases may lie behind them."""
    data = tmp_path / "data"
    make_database(data / "a.db", rows=2)
    make_database(tmp_path / "outside" / "b.db", rows=2)
    (data / "linked").symlink_to(tmp_path / "outside")

    archive = archive_of(data, {"data": {"databases": ["**/*.db"]}})

    assert names_of(archive) == {"a.db"}
    assert codes(archive) == {"linked": "symlink"}


def test_database_names_select_and_never_add(tmp_path: Path, make_database: MakeDatabase) -> None:
    """`database=GLOB` picks among what the configuration names; nothing is no match."""
    data = tmp_path / "data"
    for name in ("a.db", "b.db", "floor_plan/c.db", "other.sqlite"):
        make_database(data / name, rows=2)
    touch(data / "floor_plan" / "d.svg")

    assert names_of(archive_of(data, databases=("a*",), strict=True)) == {"a.db", "floor_plan/d.svg"}
    assert names_of(archive_of(data, databases=("a*", "floor_plan/c.db"), files=True)) == {
        "a.db",
        "floor_plan/c.db",
        "floor_plan/d.svg",
    }
    assert names_of(archive_of(data, databases=("b.db",), files=False)) == {"b.db"}
    for nothing in ("c*", "other.sqlite", "floor_plan/d.svg"):
        assert isinstance(error_of(data, databases=(nothing,)), NoMatchError), nothing
