"""Who has a database open: asked of the kernel, never by a trial transaction, which succeeds beside an idle one."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SIDECARS: Final = ("-wal", "-shm", "-journal")
# Where SQLite's locks are (os_unix.c, walformat.html 2.3): PENDING, RESERVED and SHARED in the main file; the eight
# locks of a WAL and the one that every connection holds in the -shm.
_MAIN_LOCKS: Final = (0x40000000, 512)
_SHM_LOCKS: Final = (120, 9)
_FLOCK: Final = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, pid
_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h


@dataclass(frozen=True)
class Holder:
    """A process that has ``path`` open. ``pid`` 0: one that cannot be seen from here, as in another container."""

    path: Path
    pid: int

    def __str__(self) -> str:
        if self.pid <= 0:
            return f"{self.path} is locked by a process that cannot be seen from here (another container?)"
        return f"{self.path} is open in process {self.pid} ({_command(self.pid)})"


def find_holders(databases: Iterable[Path]) -> list[Holder]:
    """Every process but this one that has one of these files, or its -wal, -shm or -journal, open or locked."""
    wanted: dict[tuple[int, int], Path] = {}
    found: dict[int, Holder] = {}
    for database in databases:
        for path in (database, *(database.with_name(database.name + suffix) for suffix in SIDECARS)):
            try:
                status = os.stat(path)
            except OSError:
                continue
            wanted[status.st_dev, status.st_ino] = path
            if (pid := _locked_by(path, path != database)) is not None:
                found.setdefault(pid, Holder(path, pid))
    for pid, path in _open_in(wanted):
        found.setdefault(pid, Holder(path, pid))
    return list(found.values())


def blind_spots() -> list[str]:
    """What cannot be seen from here, in words; empty where everything can be seen."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        return ["which files other processes have open (there is no /proc)"]
    spots = []
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        spots.append("processes outside this container")
    hidden = sum(map(_is_hidden, _pids()))
    if hidden:
        spots.append(f"what {hidden} processes of other users have open (root can see it)")
    return spots


def _is_hidden(pid: int) -> bool:
    try:
        os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return True
    except OSError:
        return False  # it has ended meanwhile
    return False


def _locked_by(path: Path, is_sidecar: bool) -> int | None:
    """The process that holds a lock on it, which only a connection does; 0 when the kernel may not say which."""
    if is_sidecar and not path.name.endswith("-shm"):
        return None
    start, length = _SHM_LOCKS if is_sidecar else _MAIN_LOCKS
    try:
        # Nothing in this process has it open: its close can drop nobody's locks.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else max(0, pid)


def _open_in(wanted: dict[tuple[int, int], Path]) -> Iterator[tuple[int, Path]]:
    for pid in _pids():
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except OSError:
            continue  # gone, or another user's: see `blind_spots`
        for descriptor in descriptors:
            try:
                status = os.stat(f"{folder}/{descriptor}")
            except OSError:
                continue
            if (path := wanted.get((status.st_dev, status.st_ino))) is not None:
                yield pid, path
                break


def _pids() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    own = os.getpid()
    yield from (int(name) for name in names if name.isdigit() and int(name) != own)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended meanwhile"
    return b" ".join(words).decode("utf-8", "replace").strip()[:80] or "no command line"
