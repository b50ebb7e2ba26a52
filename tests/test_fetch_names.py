"""FILE's words become a file's name, and the exact pattern of what other runs called theirs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mothership_backup.errors import ConfigError, FetchError
from mothership_backup.fetch.names import Template, parse
from mothership_backup.fetch.target import host_of

NOW = datetime(2026, 11, 24, 2, 0, 0, tzinfo=UTC)
DISPOSITION = 'attachment; filename="spaxel-backup-2026-11-24.zip"'


def template(text: str, host: str = "nas.local") -> Template:
    return parse(text, host=host, now=NOW)


def test_the_words_are_filled_in() -> None:
    """Date and time in UTC, the prefix as the answer names it."""
    file = template("/srv/{prefix}-{host}-{date}T{time}.zip").with_prefix(DISPOSITION)

    assert file.path == Path("/srv/spaxel-nas.local-2026-11-24T020000.zip")


def test_a_name_without_words_is_itself() -> None:
    """Whatever the answer names, and braces that are no word."""
    assert template("backups/home}{.zip").with_prefix("").path == Path("backups/home}{.zip")


@pytest.mark.parametrize(
    ("disposition", "prefix"),
    [
        (DISPOSITION, "spaxel"),
        ('attachment; FileName="my-backup-of-backup-2026-11-24.zip"', "my-backup-of"),
        ("attachment;filename=a.b_c-backup-x.zip", "a.b_c"),
    ],
)
def test_the_prefix_is_what_precedes_the_last_backup(disposition: str, prefix: str) -> None:
    """As the service makes its names."""
    assert template("{prefix}").with_prefix(disposition).path.name == prefix


@pytest.mark.parametrize(
    "disposition",
    [
        "",
        "attachment",
        'attachment; filename="spaxel.zip"',
        'attachment; filename="../../etc/x-backup-1.zip"',
        'attachment; filename="a b-backup-1.zip"',
        f'attachment; filename="{"p" * 65}-backup-1.zip"',
        'attachment; xfilename="a-backup-1.zip"',
    ],
)
def test_a_prefix_that_is_none_is_refused(disposition: str) -> None:
    """The name of a file here is not the server's to choose."""
    with pytest.raises(FetchError, match=r"leave \{prefix\} out"):
        template("{prefix}.zip").with_prefix(disposition)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://NAS.local:8080/api", "nas.local"),
        ("http://[fe80::1%25eth0]/api", "fe80--1-25eth0"),
        ("http://b\u00fccher/", "b-cher"),
    ],
)
def test_a_host_is_a_safe_part_of_a_name(url: str, name: str) -> None:
    """Without its port; an IPv6 address has no colons then."""
    assert template("{host}", host=host_of(url)).path.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{day}.zip", r"\{day\} is unknown; there are \{prefix\}, \{date\}, \{time\}, \{host\}"),
        ("{}.zip", r"\{\} is unknown"),
        ("{Date}.zip", r"\{Date\} is unknown"),
        ("{date}/home.zip", "not in its folder's"),
        ("-", "name a FILE"),
        ("", "names a folder"),
        ("backups/", "names a folder"),
        ("..", "names a folder"),
    ],
)
def test_misuse(text: str, message: str) -> None:
    """Named before anything is asked."""
    with pytest.raises(ConfigError, match=message):
        template(text)


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("a.b-spaxel-2025-01-31T235959.zip", True),
        ("aXb-spaxel-2025-01-31T235959.zip", False),
        ("a.b-other-2025-01-31T235959.zip", False),
        ("a.b-spaxel-2025-01-31T235959.zip.incomplete", False),
        ("a.b-spaxel-2025-01-31T235959.zip.part", False),
        ("x-a.b-spaxel-2025-01-31T235959.zip", False),
        ("a.b-spaxel-2025-1-31T235959.zip", False),
        ("a.b-spaxel-\u0662025-01-31T235959.zip", False),
        ("a.b-spaxel-2025-01-31T235959.zip\n", False),
    ],
)
def test_siblings_are_those_of_the_same_pattern(name: str, matches: bool) -> None:
    """All of the name: the prefix of this run, and dates as they are written, not what looks similar."""
    file = template("a.b-{prefix}-{date}T{time}.zip").with_prefix(DISPOSITION)

    assert bool(file.siblings.fullmatch(name)) is matches


@given(
    st.lists(st.sampled_from(["{date}", "{time}", "{host}", "(?", *"a.*[\\\u00e9 "]), min_size=1),
    st.datetimes(min_value=datetime(1970, 1, 1)),
)
def test_every_other_run_is_a_sibling(parts: list[str], then: datetime) -> None:
    """Whatever stands in FILE."""
    text = "x" + "".join(parts)

    assert template(text).siblings.fullmatch(parse(text, host="nas.local", now=then).path.name)
