"""Older files of the same pattern that are not needed any more: removed only when they are archives that could be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mothership_backup.errors import BackupError, OutputError
from mothership_backup.fetch.names import Template
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.claims import Claims
from mothership_backup.verify.contents import read_contents


@dataclass(frozen=True, slots=True)
class Keep:
    """How much is kept: so many files, the new one counted, or those of so many days; both, if both are given."""

    count: int | None = None
    days: int | None = None

    def __bool__(self) -> bool:
        return self.count is not None or self.days is not None


@dataclass(frozen=True, slots=True)
class _Older:
    path: Path
    created_at: datetime


def prune(
    keep: Keep, file: Template, claims: Claims, *, now: datetime, tell: Callable[[str], None]
) -> tuple[Path, ...]:
    """Remove what ``keep`` does not; ``claims`` are those of the new archive, ``file`` its name.

    A file is looked at as far as its structure and manifest go. Its bytes are not hashed again: that would read
    gigabytes on each run, and they were proved when they came. What does not look whole is no archive that could be
    counted, so it is told and stays; so does whatever is not older than the new one, by the manifests' own times.
    Raises OutputError when one cannot be removed.
    """
    newest = _moment(claims)
    if newest is None:
        tell(f"{file.path}: no time can be read in its manifest, so nothing older is removed")
        return ()
    older = [each for each in _complete(file, tell) if each.created_at < newest]
    older.sort(key=lambda each: each.created_at, reverse=True)
    removed = tuple(
        each.path for rank, each in enumerate(older, start=2) if not _is_kept(keep, rank, each, now)
    )
    for path in removed:
        _remove(path, file.path)
    return removed


def _is_kept(keep: Keep, rank: int, each: _Older, now: datetime) -> bool:
    is_counted = keep.count is not None and rank <= keep.count
    is_young = keep.days is not None and each.created_at >= now - timedelta(days=keep.days)
    return is_counted or is_young


def _complete(file: Template, tell: Callable[[str], None]) -> Iterator[_Older]:
    """The other files of the pattern that are complete archives, as they claim themselves."""
    new = os.stat(file.path)
    pattern = file.siblings
    for entry in sorted(os.scandir(file.folder), key=lambda entry: entry.name):
        if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        if os.path.samestat(entry.stat(follow_symlinks=False), new):
            continue
        path = file.folder / entry.name
        try:
            with open_archive(os.fspath(path)) as opened:
                claims = read_contents(opened).claims
        except BackupError as error:
            tell(f"{path} stays, and is not counted: {error.message.removeprefix(f'{path}: ')}")
            continue
        created_at = _moment(claims) if claims is not None and claims.complete else None
        if created_at is not None:
            yield _Older(path, created_at)


def _moment(claims: Claims) -> datetime | None:
    try:
        moment = datetime.fromisoformat(claims.created_at)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _remove(path: Path, new: Path) -> None:
    try:
        path.unlink(missing_ok=True)  # another run may have been faster
    except OSError as error:
        raise OutputError(
            f"{new} is there and good, but {path} cannot be removed: {error.strerror or error}"
        ) from error
