"""What the tests of restores share: the command, a directory that holds an older state, and what may become of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from harness import Done
from mothership_backup.names import RESTORE_JOURNAL

COMMAND = (sys.executable, "-m", "mothership_backup")


def command(*words: str | Path, environ: Mapping[str, str] | None = None, seconds: float = 60) -> Done:
    """The real command, to its end."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MOTHERSHIP_BACKUP")}
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        env=own | dict(environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def restore(archive: Path, folder: Path, *options: str, environ: Mapping[str, str] | None = None) -> Done:
    return command("restore", archive, folder, *options, environ=environ)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below it, by its path."""
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def live(folder: Path) -> dict[str, bytes]:
    """Without what restores put beside: the application's own view."""
    return {name: data for name, data in contents(folder).items() if not is_ours(name)}


def is_ours(name: str) -> bool:
    top = name.split("/")[0]
    return top.startswith((".restore-", ".before-restore-", ".undone-restore-"))


def has_journal(folder: Path) -> bool:
    return (folder / RESTORE_JOURNAL).exists()


def before(folder: Path) -> dict[str, bytes]:
    """What the last restore has put aside."""
    [kept] = folder.glob(".before-restore-*")
    return contents(kept)
