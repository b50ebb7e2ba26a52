"""A reader whose system calls go wrong: a library of faults.c, preloaded by a script that stands for its Python.

Nothing in the service knows of it: the reader is started as `sys.executable`, and that is what is replaced.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import Archive, run, tool
from mothership_backup.backup import Backup
from mothership_backup.errors import BackupError
from processes import children

SOURCE = Path(__file__).with_name("faults.c")
SHORT = 0
"""In place of an errno: every such call does half of what it could."""
IO_ERROR = errno.EIO
NO_SPACE = errno.ENOSPC


@dataclass
class Ending:
    """What became of one backup: an archive, or the error."""

    archive: Archive | None
    error: BackupError | None
    seconds: float


class Faults:
    """Sets which call of the readers started from now on goes wrong."""

    def __init__(self, folder: Path, python: str) -> None:
        self.library = folder / "faults.so"
        built = run(tool("gcc"), "-shared", "-fPIC", "-O1", "-o", self.library, SOURCE, "-ldl")
        assert built.returncode == 0, built.stderr
        self._python = python
        self._fired = folder / "fired"
        self.script = folder / "python"
        self.clear()

    def clear(self) -> None:
        """The reader is itself again."""
        self._write({})

    def set(self, call: str, part: str, number: int, at: int = 1) -> None:
        """From the ``at``-th ``call`` on a file whose name has ``part`` in it: this errno once, or SHORT for ever."""
        self._fired.unlink(missing_ok=True)
        self._write(
            {
                "LD_PRELOAD": str(self.library),
                "FAULT_CALL": call,
                "FAULT_PATH": part,
                "FAULT_ERRNO": str(number),
                "FAULT_AT": str(at),
                "FAULT_FIRED": str(self._fired),
            }
        )

    def _write(self, environ: dict[str, str]) -> None:
        words = [f"{name}={shlex.quote(value)}" for name, value in environ.items()]
        self.script.write_text(f'#!/bin/sh\n{" ".join(words)} exec {shlex.quote(self._python)} "$@"\n')
        self.script.chmod(0o755)

    @property
    def fired(self) -> bool:
        return self._fired.exists()


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Readers of this process go wrong as told; none is left at the end."""
    folder = tmp_path / "faults"
    folder.mkdir()
    made = Faults(folder, sys.executable)
    monkeypatch.setattr(sys, "executable", str(made.script))
    yield made
    assert not children(os.getpid())


def ending_of(backup: Backup) -> Ending:
    """Drive it to its end, which must come; anything but an archive or a BackupError is the test's failure."""
    began = time.monotonic()
    try:
        data = b"".join(backup.chunks())
    except BackupError as error:
        return Ending(None, error, time.monotonic() - began)
    return Ending(Archive(data), None, time.monotonic() - began)
