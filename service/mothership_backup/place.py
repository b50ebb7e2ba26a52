"""A file that was written beside another takes its place: there is the old one or the new one, never half of one.

And whether it may lie there at all: nothing of ours is written inside the data directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def may_be_replaced(file: Path) -> bool:
    """Whether it is a regular file or not there: root could put a file in the place of /dev/null."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:
        return True  # not there yet, or what writes beside it says what is wrong


def is_inside(file: Path, folder: Path) -> bool:
    """By device and inode, so that a bind mount or a link of the folder counts too; nothing is opened."""
    try:
        wanted = os.stat(folder)
    except OSError:
        return False  # the plan says what is wrong with it
    for parent in file.parents:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(parent), wanted):
                return True
    return False


def put_in_place(fd: int, part: Path, file: Path) -> None:
    """``part``, open as ``fd``, is ``file`` from now on, after a power cut too. Raises OSError."""
    os.fsync(fd)
    os.replace(part, file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Its names are on the disk when this returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no fsync of a folder
            raise
    finally:
        os.close(descriptor)
