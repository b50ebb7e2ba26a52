"""The new names for the old. Each step looks at what is there and may be repeated: after a kill, or backwards.

Where a name stands, and so what is left to do, is seen from which of its three places hold a file:

    work/new/NAME   work/old/NAME   DIR/NAME
    yes             no              old        not begun
    yes             yes             old        the old file has a second name, so that it cannot be lost
    no              yes             new        done

A file is given its second name by a hard link and replaced by a rename: at no moment is there nothing at its name,
and no file system that SQLite works on lacks these two (renameat2's exchange is missing on ZFS before 2.2, on NFS and
on most of FUSE, and leaves open, after a kill, which of the two files is which).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from mothership_backup.place import sync_folder
from mothership_backup.restore.journal import Journal, Swap, remove, write

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_BLOCK_BYTES: Final = 1024 * 1024


# Forwards.


def finish(journal: Journal, folder: Path) -> None:
    """From wherever it stands to its end; the journal is still there then. Raises OSError."""
    if journal.way == "folder":
        _finish_folder(journal, folder)
        return
    for swap in journal.swaps:
        _forwards(journal, folder, swap)
    sync_file_system(folder)
    if _has_files(journal.old):
        os.rename(journal.old, folder / journal.before)
    _keep_what_changed(journal, folder)  # of an undo that was interrupted, and turned round again
    remove_work(journal)
    sync_folder(folder)


def _forwards(journal: Journal, folder: Path, swap: Swap) -> None:
    new, old, live = journal.new / swap.path, journal.old / swap.path, folder / swap.path
    if os.path.lexists(new):
        _make_folders(live.parent, folder)
        if os.path.lexists(live) and not os.path.lexists(old):
            _make_folders(old.parent, journal.work)
            os.link(live, old, follow_symlinks=False)
        _rename(new, live)
    # After the file, not before: an old database without its WAL would be the loss, a new one can be restored again.
    for sidecar in swap.sidecars:
        if os.path.lexists(folder / sidecar) and not os.path.lexists(journal.old / sidecar):
            _make_folders((journal.old / sidecar).parent, journal.work)
            os.rename(folder / sidecar, journal.old / sidecar)


def _finish_folder(journal: Journal, folder: Path) -> None:
    """The exchange is done as soon as the journal is in ``folder``; the old tree is what is left to be put away."""
    if journal.new.is_dir():
        os.rename(journal.new, folder / journal.before)
        sync_folder(folder)
    remove_work(journal)


def changed_since(journal: Journal, folder: Path) -> list[str]:
    """The names that were swapped already, and whose files somebody has written to, or removed, since then."""
    if journal.way == "folder":
        return []
    swapped = (swap for swap in journal.swaps if not os.path.lexists(journal.new / swap.path))
    return [swap.path for swap in swapped if not _is_pristine(folder / swap.path, swap)]


# Backwards.


def undo(journal: Journal, folder: Path) -> str:
    """Everything as it was before; the journal is still there then. Where files that were changed since are kept.

    Raises OSError.
    """
    before = folder / journal.before
    journal.work.mkdir(mode=0o700, exist_ok=True)
    if before.is_dir():  # put away already
        os.rename(before, journal.new if journal.way == "folder" else journal.old)
    if journal.way == "folder":
        return _undo_folder(journal, folder)
    for swap in reversed(journal.swaps):
        _backwards(journal, folder, swap)
    for made in reversed(journal.folders):
        if (folder / made).is_dir() and not os.listdir(folder / made):
            os.rmdir(folder / made)
    sync_file_system(folder)
    write(replace(journal, is_undone=True), folder, folder)
    kept = _keep_what_changed(journal, folder)
    remove_work(journal)
    sync_folder(folder)
    return kept


def _backwards(journal: Journal, folder: Path, swap: Swap) -> None:
    new, old, live = journal.new / swap.path, journal.old / swap.path, folder / swap.path
    has_old = os.path.lexists(old)
    if has_old and os.path.lexists(live) and os.path.samefile(live, old):
        os.unlink(old)  # its second name; not begun, or undone already
        return
    is_new_there = os.path.lexists(live) if has_old else not swap.replaces and not os.path.lexists(new)
    if is_new_there:
        _take_sidecars_away(journal, folder, swap)
    for sidecar in swap.sidecars:  # before the file: see `_forwards`
        if os.path.lexists(journal.old / sidecar):
            os.rename(journal.old / sidecar, folder / sidecar)
    if is_new_there and os.path.lexists(live) and not os.path.lexists(new):
        _make_folders(new.parent, journal.work)
        if not has_old:
            os.rename(live, new)
        else:
            os.link(live, new, follow_symlinks=False)
    if has_old:
        os.rename(old, live)


def _take_sidecars_away(journal: Journal, folder: Path, swap: Swap) -> None:
    """Those that an application has made for the new file; an old one that is back in its place stays."""
    for suffix in ("-wal", "-shm", "-journal"):
        sidecar = swap.path + suffix
        is_back = sidecar in swap.sidecars and not os.path.lexists(journal.old / sidecar)
        if os.path.lexists(folder / sidecar) and not is_back:
            _make_folders((journal.new / sidecar).parent, journal.work)
            os.rename(folder / sidecar, journal.new / sidecar)


def _undo_folder(journal: Journal, folder: Path) -> str:
    exchange(journal.new, folder)
    remove(journal.new)
    kept = _keep_what_changed(journal, folder)
    remove_work(journal)
    return kept


def _keep_what_changed(journal: Journal, folder: Path) -> str:
    """What is as it came out of the archive can come again; anything else is not ours to remove."""
    for swap in journal.swaps:
        if _is_pristine(journal.new / swap.path, swap):
            os.unlink(journal.new / swap.path)
    if not _has_files(journal.new):
        return ""
    kept = folder / journal.undone
    os.rename(journal.new, kept)
    return str(kept)


def _is_pristine(path: Path, swap: Swap) -> bool:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == swap.sha256


# What both need.


def exchange(one: Path, other: Path) -> None:
    """The two names change places in one step (renameat2(2)). Raises OSError; EINVAL where it is not known."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    for folder in {one.parent, other.parent}:
        sync_folder(folder)


def can_exchange(beside: Path) -> bool:
    """Whether folders can be exchanged in the folder ``beside``: tried there, with two empty ones of our own."""
    if sys.platform != "linux":
        return False
    one, other = beside / "one", beside / "other"
    one.mkdir()
    other.mkdir()
    try:
        exchange(one, other)
    except (OSError, AttributeError):  # a C library without renameat2
        return False
    finally:
        one.rmdir()
        other.rmdir()
    return True


def sync_file_system(folder: Path) -> None:
    """All that was written below it is on the disk when this returns: syncfs(2), one call for 70,000 files."""
    if sys.platform != "linux":
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)


def make_folder_like(path: Path, like: Path, mode: int) -> None:
    """With the owner of the folder ``like`` if this is root; else it is this user's. Raises PermissionError."""
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        status = like.stat()
        os.chown(path, status.st_uid, status.st_gid)
    path.chmod(mode)


def _make_folders(path: Path, top: Path) -> None:
    """``path`` and what is missing above it, up to ``top``, each like the folder that it is in."""
    missing: list[Path] = []
    while path != top and not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        make_folder_like(folder, folder.parent, stat.S_IMODE(folder.parent.stat().st_mode))


def _rename(one: Path, other: Path) -> None:
    """rename(2) does nothing when both are names of the same file."""
    if os.path.lexists(other) and os.path.samefile(one, other):
        os.unlink(one)
    else:
        os.rename(one, other)


def _has_files(folder: Path) -> bool:
    return any(names for _, _, names in os.walk(folder))


def remove_work(journal: Journal) -> None:
    """Only empty folders are left in it. Raises OSError for a file, rather than lose one."""
    for folder, _, _ in os.walk(journal.work, topdown=False):
        os.rmdir(folder)
