"""Which entry goes where, what it replaces, what leaves with that, and by which way: before anything is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mothership_backup.errors import ArchiveError, RestoreError
from mothership_backup.names import RESERVED, RESTORE_FOLDER, RESTORE_JOURNAL
from mothership_backup.reader.discover import SIDECARS, compile_patterns, mount_points
from mothership_backup.verify import unpack
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.claims import Claimed
from mothership_backup.verify.contents import Contents
from mothership_backup.verify.directory import Entry
from mothership_backup.verify.verdict import DATABASE_MAGIC

ROOM_A_FILE_BYTES: Final = 4096
_EMPTY_DISK: Final = {"lost+found"}  # what a fresh ext4 volume holds

Way = Literal["new", "folder", "names"]


@dataclass(frozen=True, slots=True)
class Item:
    """One entry and its place. ``sidecars`` are files of the old database that must not stay beside the new one.

    ``is_database``: the entry is one, or what it replaces.
    """

    entry: Entry
    path: str
    is_database: bool
    replaces: bool
    sidecars: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a restore into ``folder`` will do.

    ``way``: ``new``, DIR is made whole and then named; ``folder``, it changes places with the old one in one step;
    ``names``, each file is put into its place in DIR, under a journal. ``keeps`` are files that stay as they are.
    """

    folder: Path
    way: Way
    items: tuple[Item, ...]
    folders: tuple[str, ...]
    keeps: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        return sum(item.entry.size_bytes + ROOM_A_FILE_BYTES for item in self.items)

    @property
    def is_occupied(self) -> bool:
        return any(item.replaces or item.sidecars for item in self.items) or bool(self.keeps)

    @property
    def replaces_databases(self) -> bool:
        return any(item.is_database and (item.replaces or item.sidecars) for item in self.items)

    @property
    def databases(self) -> list[Path]:
        """Whose old files nobody may have open."""
        return [self.folder / item.path for item in self.items if item.is_database]

    @property
    def room_in(self) -> Path:
        """The folder on whose disk the new files are made."""
        return self.folder if self.way == "names" else self.folder.parent


def make_plan(archive: ArchiveFile, contents: Contents, folder: Path, only: tuple[str, ...]) -> Plan:
    """Raises RestoreError (``in_progress``, ``conflict``, ``no_match``, …), ArchiveError for a path that leads out."""
    look_for_journal(folder)
    present = _present(folder)
    items = tuple(_items(archive, contents, folder, _selected(contents, only)))
    if not items:
        raise RestoreError(
            "nothing of the archive is asked for: see `inspect` for its names", code="no_match"
        )
    _look_for_conflicts(folder, items)
    leaving = {item.path for item in items} | {sidecar for item in items for sidecar in item.sidecars}
    keeps = tuple(sorted(path for path in present if path not in leaving))
    return Plan(folder, _way(folder, keeps), items, tuple(_new_folders(folder, items)), keeps)


def look_for_journal(folder: Path) -> None:
    """Raises RestoreError when a restore into it was interrupted."""
    if os.path.lexists(folder / RESTORE_JOURNAL):
        raise RestoreError(
            f"a restore into {folder} was interrupted, and it may hold old and new files beside each other:"
            f" end it with `restore --continue {folder}`, or take it back with `restore --undo {folder}`",
            code="in_progress",
        )


def _present(folder: Path) -> frozenset[str]:
    """Every path below it, folders only where they are empty; what a volume has from its making does not count."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        if not folder.parent.is_dir():
            raise RestoreError(f"{folder.parent} does not exist: make it first", code="no_folder") from None
        return frozenset()
    except OSError as error:
        raise RestoreError(f"{folder}: {error.strerror}", code="no_folder") from error
    if not stat.S_ISDIR(status.st_mode):
        raise RestoreError(f"{folder} is not a directory", code="no_folder")
    found: set[str] = set()
    for top, folders, names in os.walk(folder, onerror=_unreadable):
        below = os.path.relpath(top, folder)
        prefix = "" if below == "." else below + "/"
        if not prefix:  # of an earlier restore: they stay as they are, whatever is in them
            names += [name for name in folders if RESTORE_FOLDER.fullmatch(name)]
            folders[:] = [name for name in folders if not RESTORE_FOLDER.fullmatch(name)]
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        found.update(prefix + name for name in [*names, *links])
        if prefix and not names and not folders:
            found.add(below)
    return frozenset(found - _EMPTY_DISK)


def _unreadable(error: OSError) -> None:
    raise RestoreError(f"{error.filename}: {error.strerror}", code="no_right") from error


def _selected(contents: Contents, only: tuple[str, ...]) -> Iterator[tuple[Entry, Claimed | None]]:
    patterns = compile_patterns(only)
    for entry, claimed in contents.sources:
        if entry.is_folder or (claimed is None and entry.name in RESERVED):
            continue
        if not patterns or any(pattern.fullmatch(entry.name) for pattern in patterns):
            yield entry, claimed


def _items(
    archive: ArchiveFile,
    contents: Contents,
    folder: Path,
    selected: Iterable[tuple[Entry, Claimed | None]],
) -> Iterator[Item]:
    taken = {(claimed.path if claimed is not None else entry.name) for entry, claimed in contents.sources}
    seen: set[str] = set()
    for entry, claimed in selected:
        path = entry.name if claimed is None else claimed.path
        _look_at_path(path)
        if path in seen:
            raise ArchiveError(f"two of its entries belong to {path!a}", code="unsafe")
        seen.add(path)
        is_database = claimed.is_database if claimed is not None else _is_database(archive, entry)
        is_database = is_database or _was_database(folder / path)
        sidecars = []
        if is_database:
            present = (path + suffix for suffix in SIDECARS)
            sidecars = [s for s in present if s not in taken and os.path.lexists(folder / s)]
        yield Item(entry, path, is_database, os.path.lexists(folder / path), tuple(sidecars))


def _look_at_path(path: str) -> None:
    """A path of the manifest is input, whatever its entry is called. Raises ArchiveError when it leads out of DIR."""
    parts = path.split("/")
    top = parts[0]
    is_ours = top.startswith(RESTORE_JOURNAL) or RESTORE_FOLDER.fullmatch(top)
    if "\0" in path or is_ours or any(part in ("", ".", "..") for part in parts):
        raise ArchiveError(f"its manifest wants {path!a} to be written", code="unsafe")


def _is_database(archive: ArchiveFile, entry: Entry) -> bool:
    try:
        return next(unpack.blocks(archive, entry), b"").startswith(DATABASE_MAGIC)
    except ArchiveError:
        return False  # damaged: the verification says so


def _was_database(path: Path) -> bool:
    """Whether a database is to be replaced by something else: its sidecars must leave with it all the same."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return is_regular and os.read(fd, len(DATABASE_MAGIC)) in (DATABASE_MAGIC, b"")
    finally:
        os.close(fd)


def _look_for_conflicts(folder: Path, items: tuple[Item, ...]) -> None:
    """What no rename can put right, or what would write somewhere else than into ``folder``."""
    mounts = mount_points()
    device = os.stat(folder).st_dev if folder.is_dir() else None
    parents: set[str] = set()
    for item in items:
        _look_at_old(folder / item.path, mounts)
        parent = os.path.dirname(item.path)
        while parent and parent not in parents:
            parents.add(parent)
            parent = os.path.dirname(parent)
    for parent in sorted(parents):
        path = folder / parent
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            what = "a link" if stat.S_ISLNK(status.st_mode) else "no folder"
            raise _conflict(path, f"is {what}, and the archive has a folder of that name")
        if status.st_dev != device:
            raise _conflict(
                path, "is on another file system than the folder it is in: restore into it by itself"
            )


def _look_at_old(path: Path, mounts: dict[str, str]) -> None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(status.st_mode):
        what = "a link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise _conflict(path, f"is {what}, and the archive has a file of that name")
    if os.path.realpath(path) in mounts:
        raise _conflict(path, "is a mount point: mount the folder that it lies in, and restore into that")


def _conflict(path: Path, reason: str) -> RestoreError:
    return RestoreError(f"{path} {reason}; move it away first", code="conflict")


def _new_folders(folder: Path, items: tuple[Item, ...]) -> Iterator[str]:
    """Those that are missing, parents first."""
    wanted: set[str] = set()
    for item in items:
        parent = os.path.dirname(item.path)
        while parent and parent not in wanted:
            wanted.add(parent)
            parent = os.path.dirname(parent)
    return (path for path in sorted(wanted) if not (folder / path).is_dir())


def _way(folder: Path, keeps: tuple[str, ...]) -> Way:
    """A directory that is a mount point, as in every container, cannot be renamed; nor can one that keeps files."""
    if not folder.exists():
        return "new"
    can_rename = os.access(folder.parent, os.W_OK | os.X_OK, effective_ids=True)
    if keeps or not can_rename or str(folder) in mount_points():
        return "names"
    return "folder" if os.listdir(folder) else "new"
