"""A database whose file somebody cut before the backup began."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import MakeDatabase
from support import archive_of, error_of


@pytest.mark.live_engine
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_it_is_damaged_without_a_check_too(journal: str, tmp_path: Path, make_database: MakeDatabase) -> None:
    """SQLite reads what is left without a word when a schema may be newer than it knows; the header tells."""
    path = make_database(tmp_path / "data" / "a.db", journal=journal, rows=5000)
    os.truncate(path, path.stat().st_size // 2)

    archive = archive_of(path.parent, check="none")
    error = error_of(path.parent, check="none", strict=True)

    assert archive.source("a.db")["error"]["code"] == "damaged"
    assert len(archive.read("a.db")) == path.stat().st_size // 4096 * 4096
    assert error.code == "check"
