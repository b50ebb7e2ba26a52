"""Where staged copies go: the folder that is configured, and no other."""

from __future__ import annotations

from pathlib import Path

from harness import Config, MakeDatabase
from support import archive_of


def test_a_configured_folder_that_is_missing_is_told(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Somebody chose it for its room or its disk: another one in its place would surprise them."""
    make_database(tmp_path / "data" / "rollback.db", journal="delete")
    (tmp_path / "data" / "plain.db").write_bytes(b"")
    missing = str(tmp_path / "missing")
    config: Config = {"snapshot": {"staging_dir": missing, "staging_memory_bytes": 0}}

    archive = archive_of(tmp_path / "data", config)

    assert archive.source("rollback.db")["error"]["code"] == "staging"
    assert missing in archive.source("rollback.db")["error"]["message"]
