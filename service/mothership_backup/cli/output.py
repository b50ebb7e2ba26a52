"""Where `backup` writes to: a file that is whole or not there, or standard output."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from mothership_backup.cli.terminal import STANDARD_OUTPUT, cannot_write
from mothership_backup.errors import ConfigError, OutputError
from mothership_backup.place import is_inside, may_be_replaced, put_in_place


class StandardOutput:
    """The archive as a stream, for a pipe; a terminal is refused."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OutputError(f"{STANDARD_OUTPUT} is closed")
        if sys.stdout.isatty():
            raise ConfigError("an archive is no text for a terminal: name a FILE, or send - into a pipe")
        self._stream: BinaryIO = sys.stdout.buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, chunk: bytes | memoryview) -> None:
        try:
            self._stream.write(chunk)
        except OSError as error:
            raise cannot_write(STANDARD_OUTPUT, error) from error

    def keep(self, *, complete: bool) -> str:
        try:
            self._stream.flush()
        except OSError as error:
            raise cannot_write(STANDARD_OUTPUT, error) from error
        return STANDARD_OUTPUT


class FileOutput:
    """Written beside the file under a hidden name, synced, renamed: the file is the old or the new one, never half.

    Raises ConfigError for a file inside the data directory, where a name could be a live database's.
    """

    def __init__(self, file: Path, data_dir: Path) -> None:
        self._file = Path(os.path.realpath(file))  # a link's target is replaced, as with a plain write
        self._shown = file
        self._refuse_misuse(data_dir)
        name = self._file.name[:50]  # a name of 255 bytes gets a temporary one too
        self._part = self._file.with_name(f".{name}.{secrets.token_hex(6)}.part")
        self._stream: BinaryIO | None = None

    def _refuse_misuse(self, data_dir: Path) -> None:
        if is_inside(self._file, data_dir):
            raise ConfigError(
                f"{self._shown} is inside the data directory {data_dir}: choose a file elsewhere"
            )
        if not may_be_replaced(self._file):
            raise OutputError(f"{self._shown} is not a regular file: name one, or - for standard output")

    def __enter__(self) -> Self:
        try:
            # Nobody else's to read from its first byte on: databases hold secrets.
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise cannot_write(str(self._shown), error) from error
        self._stream = os.fdopen(descriptor, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(FileNotFoundError):  # renamed by keep()
            os.unlink(self._part)
        with contextlib.suppress(OSError):  # what could not be flushed is gone already
            self._stream.close()

    def write(self, chunk: bytes | memoryview) -> None:
        try:
            self._opened.write(chunk)
        except OSError as error:
            raise cannot_write(str(self._shown), error) from error

    def keep(self, *, complete: bool) -> str:
        """An incomplete archive does not take the place of an older file, which may be whole."""
        aside = not complete and self._file.exists()
        suffix = ".incomplete" if aside else ""
        try:
            self._opened.flush()
            put_in_place(self._opened.fileno(), self._part, self._file.with_name(self._file.name + suffix))
        except OSError as error:
            raise cannot_write(f"{self._shown}{suffix}", error) from error
        return f"{self._shown}{suffix}"

    @property
    def _opened(self) -> BinaryIO:
        if self._stream is None:
            raise RuntimeError("used outside its with block")
        return self._stream


Output = StandardOutput | FileOutput  # used in one `with`, at whose end all is gone that was not kept
