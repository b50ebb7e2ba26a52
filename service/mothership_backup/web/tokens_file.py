"""The file of credentials: read at the start, and again when it has changed."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mothership_backup.credentials import Credential, parse
from mothership_backup.errors import ConfigError

log: Final = logging.getLogger("mothership_backup")

LOOK_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 1.0
MAX_BYTES: Final = 1024 * 1024

Stamp = tuple[int, int, int, int, int]


class UnfinishedError(Exception):
    """Somebody may be writing it right now."""


class TokensFile:
    """The last good list of one file, one credential a line, ``#`` for comments. An empty list: nobody.

    Looked at when it is asked for, at most once a second, and not behind its back: so a token that was withdrawn
    is not good for one more request. A look is one stat; only a file that has changed is read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError: without a first list there is none to keep."""
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._complaint = ""
        self._stamp: Stamp | None = None
        try:
            self._stamp = _stamp(os.stat(path))
            self._credentials = _parse(_read(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"auth.tokens_file: {path}: {_why(error)}") from None
        if not self._credentials:
            log.warning("auth.tokens_file: %s has no credential: nobody can use one of it", path)

    def credentials(self) -> tuple[Credential, ...]:
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._credentials

    def is_good(self) -> bool:
        """Whether the list is what the file holds now."""
        self.credentials()
        return not self._complaint

    def _look(self) -> None:
        try:
            status = os.stat(self._path)
            if _stamp(status) == self._stamp:
                return
            data = _read(self._path)
            _refuse_unfinished(data, status)
            self._stamp = _stamp(status)
            self._credentials = _parse(data)
        except UnfinishedError:
            return
        except OSError as error:
            self._stamp = None
            self._keep(error)
        except ValueError as error:
            self._keep(error)
        else:
            self._complaint = ""
            log.info("auth.tokens_file: %s: read again, %d credentials", self._path, len(self._credentials))

    def _keep(self, error: OSError | ValueError) -> None:
        """Told once, not each second."""
        if _why(error) == self._complaint:
            return
        self._complaint = _why(error)
        kept = len(self._credentials)
        log.error(
            "auth.tokens_file: %s: %s; the last good list stays, %d credentials",
            self._path,
            _why(error),
            kept,
        )


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(path: Path) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("is no regular file")  # opening a pipe would wait for its writer
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    return data


def _refuse_unfinished(data: bytes, status: os.stat_result) -> None:
    """A line whose end is missing may still get its ``:scope=status``. Who writes no line ends waits a second."""
    age_seconds = time.time() - status.st_mtime
    if not data.endswith(b"\n") and 0 <= age_seconds < SETTLE_SECONDS:
        raise UnfinishedError


def _parse(data: bytes) -> tuple[Credential, ...]:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    credentials = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                credentials.append(parse(text))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return tuple(credentials)


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
