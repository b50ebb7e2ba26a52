"""The last good list of the file counts, at most a second old."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from mothership_backup.errors import ConfigError
from mothership_backup.web.tokens_file import MAX_BYTES, TokensFile
from support import each_look_is_due

ONE = f"one:sha256:{'11' * 32}\n"
TWO = f"two:sha256:{'22' * 32}:scope=status\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who may ask\n\n  {ONE}")
    return file


def names(file: TokensFile) -> list[str]:
    return [credential.name for credential in file.credentials()]


def test_lines_and_comments(path: Path) -> None:
    """One credential a line; blank lines and comments are none."""
    assert names(TokensFile(path)) == ["one"]


def test_a_change_counts_within_a_second(path: Path) -> None:
    """Written in place, replaced by a rename, emptied."""
    file = TokensFile(path, each_look_is_due())

    path.write_text(ONE + TWO)
    assert names(file) == ["one", "two"]
    path.with_name("new").write_text(TWO)
    os.replace(path.with_name("new"), path)
    assert names(file) == ["two"]
    path.write_text("# nobody\n")
    assert names(file) == []


def test_it_is_not_looked_at_for_each_request(path: Path) -> None:
    """At most once a second."""
    file = TokensFile(path, lambda: 7.0)
    path.write_text(TWO)

    assert names(file) == ["one"]


@pytest.mark.parametrize("spoilt", [TWO + "three:sha256:secret", "\xff", "x" * MAX_BYTES + "\n"])
def test_a_malformed_list_is_not_taken(path: Path, spoilt: str, caplog: pytest.LogCaptureFixture) -> None:
    """The last good one stays, told once, and the next good one counts."""
    file = TokensFile(path, each_look_is_due())
    path.write_bytes(spoilt.encode("latin-1") + b"\n")

    with caplog.at_level(logging.INFO):
        assert [names(file) for _ in range(3)] == [["one"]] * 3
        assert not file.is_good()
        path.write_text(TWO)
        assert file.is_good()
        assert names(file) == ["two"]

    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the last good list stays, 1 credentials" in errors[0]
    assert "secret" not in errors[0]


def test_a_file_that_is_gone_is_no_empty_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is a folder in its place."""
    file = TokensFile(path, each_look_is_due())
    path.unlink()
    assert names(file) == ["one"]
    path.mkdir()
    assert names(file) == ["one"]
    path.rmdir()
    path.write_text(TWO)

    assert names(file) == ["two"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_line_without_its_end_may_be_half_a_line(path: Path) -> None:
    """`:scope=status` may still be on its way; a second later it is what somebody meant."""
    file = TokensFile(path, each_look_is_due())
    path.write_text(TWO.partition(":scope")[0])
    assert names(file) == ["one"]

    os.utime(path, (time.time() - 2, time.time() - 2))
    assert names(file) == ["two"]


@pytest.mark.parametrize(
    "text", [None, "one:sha256:11\n", "mb_" + "x" * 43], ids=["missing", "short", "a token"]
)
def test_no_first_list(path: Path, text: str | None) -> None:
    """Then there is none to keep: the start fails, names the file and nothing that stands in it."""
    path.unlink()
    if text is not None:
        path.write_text(text)

    with pytest.raises(
        ConfigError, match=r"^auth.tokens_file: /.*/tokens: (No such|line 1: is not)"
    ) as caught:
        TokensFile(path)

    assert "xxx" not in caught.value.message


def test_an_empty_file_lets_nobody_in(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And says so."""
    path.write_text("")

    assert names(TokensFile(path)) == []
    assert "no credential" in caplog.text
