"""Which databases and files there are now, and which of them may be taken.

Everything is looked at by `lstat` first, and every header is read before SQLite opens anything: closing a
descriptor of a file that SQLite has open in this process would drop SQLite's locks (howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from mothership_backup.errors import DataDirError, SourceError
from mothership_backup.names import RESTORE_FOLDER, RESTORE_JOURNAL
from mothership_backup.reader.source import DATABASE, FILE, FOLDER, LINK, OTHER, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIDECARS: Final = ("-wal", "-shm", "-journal")
_MAGIC: Final = b"SQLite format 3\x00"
_WAL_VERSION: Final = 2  # byte 19 of the header (fileformat2.html, 1.3.3): the version needed to read
_MAX_OPEN_FILES: Final = 256
_MAX_LOOKS: Final = 3
_EXCLUDED: Final = ("excluded", "named by exclude")
_NOT_ASKED_FOR: Final = ("not_selected", "not asked for")
_VERSION_MAX_BYTES: Final = 4096
_SHARED_FILE_SYSTEMS: Final = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs"}


class Discovery:
    """One look at the data directory.

    ``sources`` are all that the patterns match, databases by name, then files by path, then what is not taken.
    Raises DataDirError when the directory itself cannot be read.
    """

    def __init__(
        self,
        data_dir: str,
        *,
        databases: Sequence[str],
        include: Sequence[str],
        exclude: Sequence[str],
        only: Sequence[str],
    ) -> None:
        self._root = data_dir
        self._exclude = compile_patterns(exclude)
        self._only = compile_patterns(only)
        self._mounts = mount_points()
        self._found: dict[str, Source] = {}
        self._inodes: defaultdict[int, set[int]] = defaultdict(set)  # of each device
        self._with_sidecars: set[str] = set()  # folders in which something is named like a sidecar
        self._open_files = 0
        check_data_dir(data_dir)
        for pattern in databases:
            for path in sorted(self._expand(pattern)):
                self._add(path, is_named=True)
        for pattern in include:
            for path in sorted(self._expand(pattern)):
                self._add_tree(path)
        self._look_again()
        self._inodes.clear()
        # In two steps: a tuple for each of 70,000 would be there at once.
        self.sources = sorted(self._found.values(), key=lambda source: os.fsencode(source.path))
        self.sources.sort(key=_rank)

    def _expand(self, pattern: str) -> Iterator[str]:
        """The paths that match, relative to the data directory; links to folders are never entered."""
        head, _, rest = pattern.strip("/").partition("/")
        yield from self._expand_in("", head, rest)

    def _expand_in(self, folder: str, head: str, rest: str) -> Iterator[str]:
        following, _, beyond = rest.partition("/")
        if head == "**":
            if rest:
                yield from self._expand_in(folder, following, beyond)
            for path in self._list(folder):
                if self._is_folder(path):
                    yield from self._expand_in(path, head, rest)
                elif not rest:
                    yield path
            return
        matches = _translate(head).fullmatch
        for path in self._list(folder):
            if not matches(path.rpartition("/")[2]):
                continue
            if not rest:
                yield path
            elif self._is_folder(path):
                yield from self._expand_in(path, following, beyond)

    def _list(self, folder: str) -> list[str]:
        try:
            names = os.listdir(os.path.join(self._root, folder))
        except FileNotFoundError:
            return []  # it went while we looked
        except OSError as error:
            self._unreadable_folder(folder, error)
            return []
        if _any_sidecar(names):
            self._with_sidecars.add(folder)
        if not folder:
            return [name for name in names if not RESTORE_FOLDER.fullmatch(name)]
        return [f"{folder}/{name}" for name in names]

    def _is_folder(self, path: str) -> bool:
        """A link to a folder is none, and is told: databases may lie behind it."""
        status = self._lstat(path)
        if status is None:
            return False
        if stat.S_ISLNK(status.st_mode) and os.path.isdir(os.path.join(self._root, path)):
            self._add(path)
        if stat.S_ISDIR(status.st_mode) and self._is_excluded_folder(path):
            self._new_excluded(path)
            return False
        return stat.S_ISDIR(status.st_mode)

    def _add_tree(self, path: str) -> None:
        status = self._lstat(path)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            self._add(path, status)
            return
        if self._is_excluded_folder(path):
            self._new_excluded(path)
            return
        for child in sorted(self._list(path)):
            self._add_tree(child)

    def _new_excluded(self, path: str) -> None:
        source = self._new(path)
        if source is not None:
            source.skip(*_EXCLUDED)

    def _unreadable_folder(self, path: str, error: OSError) -> None:
        if not path:
            raise DataDirError(
                f"the data directory {self._root} cannot be read ({error.strerror});"
                " give this user the right to list and search it",
                code="data_dir_unreadable",
            ) from error
        source = self._new(path)
        if source is not None:
            source.fail(SourceError(f"the folder cannot be read: {error.strerror}", code="not_readable"))

    def _new(self, path: str, status: os.stat_result | None = None) -> Source | None:
        """A source for ``path`` unless it is known already, or gone; ``status`` if it was looked at just now."""
        if path in self._found:
            return None
        if status is None:
            status = self._lstat(path)
        if status is None:
            return None
        source = self._found[path] = Source(path, self._root, _kind(status.st_mode), status)
        return source

    def _lstat(self, path: str) -> os.stat_result | None:
        """None if it went while we looked, or if its folder cannot be searched, which is told."""
        try:
            return os.lstat(os.path.join(self._root, path))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unreadable_folder(path.rpartition("/")[0], error)
            return None

    def _add(self, path: str, status: os.stat_result | None = None, *, is_named: bool = False) -> None:
        for _ in range(_MAX_LOOKS):
            source = self._new(path, status)
            if source is None:
                return
            source.is_named = is_named
            self._look_at(source)
            if source.error is None or source.error.code not in ("vanished", "replaced"):
                return
            self._forget(source)
            status = None

    def _forget(self, source: Source) -> None:
        """Looked at in the middle of a change: as if it had come a moment later."""
        del self._found[source.path]
        self._inodes[source.stat.st_dev].discard(source.stat.st_ino)
        if source.fd >= 0:
            os.close(source.fd)
            self._open_files -= 1

    def _look_again(self) -> None:
        """What got a sidecar after its folder was listed is a live database, and no plain file any more.

        Three looks beside each of 70,000 files would be a third of the time before the first byte, so each folder
        that had no sidecar is listed once more instead, when every header has been read: nearer to the copy.
        """
        files = [source for source in self._found.values() if source.kind == FILE and source.status == "ok"]
        folders = {source.folder for source in files} - self._with_sidecars
        changed = {folder for folder in folders if self._has_sidecars_now(folder)}
        self._with_sidecars |= changed
        for source in files:
            if source.folder in changed and _has_sidecar(source):
                self._forget(source)
                self._add(source.path, is_named=source.is_named)

    def _has_sidecars_now(self, folder: str) -> bool:
        """True too if it cannot be listed any more: then a sidecar is looked for beside each of its files."""
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                return _any_sidecar(entry.name for entry in entries)
        except OSError:
            return True

    def _look_at(self, source: Source) -> None:
        path = source.path
        is_excluded = self._is_excluded(path)
        if source.kind == LINK and (is_excluded or self._is_asked_for(path) or not source.is_named):
            message = "a symbolic link is never followed: it may hide a live database; name its target, or exclude it"
            source.skip("symlink", message) if is_excluded else source.fail(
                SourceError(message, code="symlink")
            )
        elif is_excluded:
            source.skip(*_EXCLUDED)
        elif source.is_named and not self._is_asked_for(path):
            source.skip(*_NOT_ASKED_FOR)
        elif source.kind == FOLDER:
            source.skip("folder", "a folder, though its name matches a pattern for files")
        elif source.kind == OTHER:
            source.skip("not_a_file", "a FIFO, socket or device")
        elif self._is_sidecar(source):
            source.skip("sidecar", "belongs to the database beside it, whose snapshot holds what it says")
        else:
            self._add_file(source)

    def _add_file(self, source: Source) -> None:
        if source.full_path in self._mounts:
            message = "it is a mount point: its WAL is not visible here; mount the folder that it lies in"
            source.fail(SourceError(message, code="mount_point"))
        elif source.stat.st_nlink > 1:
            message = "it has more than one hard link: its WAL may lie beside another name; remove them, or exclude it"
            source.fail(SourceError(message, code="hard_link"))
        elif source.stat.st_ino in self._inodes[source.stat.st_dev]:
            source.skip("same_file", "the same file is there under another name")
        else:
            self._inodes[source.stat.st_dev].add(source.stat.st_ino)
            self._sniff(source)
        if source.status != "skipped" and source.kind == DATABASE and not self._is_asked_for(source.path):
            source.skip(*_NOT_ASKED_FOR)

    def _is_sidecar(self, source: Source) -> bool:
        for suffix in SIDECARS:
            if source.path.endswith(suffix):
                status = self._lstat(source.path.removesuffix(suffix))
                return status is not None and stat.S_ISREG(status.st_mode)
        return False

    def _sniff(self, source: Source) -> None:
        """Tell databases from files by their headers; a plain file stays open for its turn."""
        try:
            fd = _open_seen(source)
        except SourceError as error:
            source.fail(error)
            return
        try:
            header = os.read(fd, 100)
            source.kind, source.is_wal = self._classify(source, header)
            if source.status == "ok" and source.kind == FILE and self._open_files < _MAX_OPEN_FILES:
                self._open_files += 1
                source.fd, fd = fd, -1
        except OSError as error:
            source.fail(SourceError(f"it cannot be read: {error.strerror}", code="not_readable"))
        finally:
            if fd >= 0:
                os.close(fd)

    def _classify(self, source: Source, header: bytes) -> tuple[str, bool]:
        if header.startswith(_MAGIC):
            is_wal = len(header) > 19 and header[19] == _WAL_VERSION
            if is_wal and _file_system(source.full_path, self._mounts) in _SHARED_FILE_SYSTEMS:
                message = (
                    "a WAL database on a network file system cannot be read consistently from here;"
                    " run the backup on the machine that has the disk"
                )
                source.fail(SourceError(message, code="network_file_system"))
            return DATABASE, is_wal
        if source.folder not in self._with_sidecars or not _has_sidecar(source):
            return FILE, False
        if not header:
            return DATABASE, False  # its first transaction is not through
        message = "not a plain SQLite file, but it has a sidecar: a live encrypted database, whose bytes would be torn"
        source.fail(SourceError(message, code="encrypted_live"))
        return DATABASE, False

    def _is_excluded(self, path: str) -> bool:
        return any(pattern.fullmatch(path) for pattern in self._exclude)

    def _is_excluded_folder(self, path: str) -> bool:
        """By its own name, or because all that is in it is excluded: then nobody looks inside."""
        return self._is_excluded(path) or self._is_excluded(path + "/")

    def _is_asked_for(self, path: str) -> bool:
        return not self._only or any(pattern.fullmatch(path) for pattern in self._only)

    @property
    def databases_asked_for(self) -> bool:
        """False if nothing that ``only`` names is there."""
        return not self._only or any(
            self._is_asked_for(source.path) and (source.is_named or source.kind == DATABASE)
            for source in self._found.values()
        )


def check_data_dir(data_dir: str) -> None:
    """Raises DataDirError with the remedy: ``data_dir`` cannot be listed, or a restore into it was interrupted."""
    try:
        with os.scandir(data_dir):
            pass
    except FileNotFoundError as error:
        raise DataDirError(
            f"the data directory {data_dir} does not exist; create it, mount it, or set data.dir (--data-dir)",
            code="data_dir_missing",
        ) from error
    except NotADirectoryError as error:
        raise DataDirError(
            f"the data directory {data_dir} is not a directory; name the folder that holds the databases",
            code="data_dir_not_a_directory",
        ) from error
    except OSError as error:
        raise DataDirError(
            f"the data directory {data_dir} cannot be read ({error.strerror});"
            " give this user the right to list and read it",
            code="data_dir_unreadable",
        ) from error
    if os.path.lexists(os.path.join(data_dir, RESTORE_JOURNAL)):
        raise DataDirError(
            f"a restore into {data_dir} was interrupted (or still runs), and it may hold old and new files beside each"
            f" other: {os.path.join(data_dir, RESTORE_JOURNAL)} is there; end it with `restore --continue {data_dir}`,"
            f" or take it back with `restore --undo {data_dir}`",
            code="data_dir_restoring",
        )


def open_regular(source: Source) -> int:
    """A descriptor of the very file that was looked at; never a link, never waiting for a FIFO.

    Raises SourceError: ``vanished``, ``replaced``, ``not_readable``.
    """
    try:
        now = os.lstat(source.full_path)
    except OSError as error:
        raise _not_opened(error) from error
    if (now.st_dev, now.st_ino) != source.identity or not stat.S_ISREG(now.st_mode):
        raise _replaced()
    return _open_seen(source)


def _open_seen(source: Source) -> int:
    """The same for one that `lstat` has shown to be regular just now; what took its name since is let go again."""
    try:
        fd = os.open(source.full_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _not_opened(error) from error
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != source.identity:
        os.close(fd)
        raise _replaced()
    return fd


def _not_opened(error: OSError) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError("it was removed while the backup ran", code="vanished")
    if error.errno == errno.ELOOP:  # O_NOFOLLOW: it is a link now
        return _replaced()
    return SourceError(f"it cannot be opened: {error.strerror}", code="not_readable")


def _replaced() -> SourceError:
    return SourceError("another file took its name while the backup ran", code="replaced")


def read_version(data_dir: str, version_file: str) -> str:
    """The application's version: the first line of a small regular file.

    Raises SourceError when it is not there, not regular, a database, or longer than 4 KiB.
    """
    full_path = os.path.join(data_dir, version_file)
    try:
        source = Source(version_file, data_dir, FILE, os.lstat(full_path))
    except OSError as error:
        raise SourceError(
            f"data.version_file cannot be read: {error.strerror}", code="version_file"
        ) from error
    fd = open_regular(source)
    try:
        content = os.read(fd, _VERSION_MAX_BYTES + 1)
    finally:
        os.close(fd)
    text = content.decode("utf-8", "replace").strip()
    if len(content) > _VERSION_MAX_BYTES or not text or not text.splitlines()[0].isprintable():
        raise SourceError("data.version_file does not hold one line of text", code="version_file")
    return text.splitlines()[0]


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return FILE
    if stat.S_ISLNK(mode):
        return LINK
    return FOLDER if stat.S_ISDIR(mode) else OTHER


def _rank(source: Source) -> int:
    """Databases, then files, then what is not taken."""
    return 2 * (source.status != "ok") + (source.kind != DATABASE)


def _any_sidecar(names: Iterable[str]) -> bool:
    """In any case, since a file system may take names that differ in it for the same."""
    return any(name.lower().endswith(SIDECARS) for name in names)


def _has_sidecar(source: Source) -> bool:
    return any(os.path.lexists(source.full_path + suffix) for suffix in SIDECARS)


def compile_patterns(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """A shell's patterns, as regular expressions for `fullmatch`."""
    return [_translate(pattern.strip("/")) for pattern in patterns]


def _translate(pattern: str) -> re.Pattern[str]:
    """A shell's pattern: `*`, `?` and `[…]` stay within one folder, `**/` is any number of folders."""
    parts = re.split(r"(\*\*/|\*+|\?|\[!?\]?[^\]]*\])", pattern)
    special = {"**/": "(?:[^/]+/)*", "?": "[^/]"}
    return re.compile("".join(_translate_part(part, special) for part in parts), re.DOTALL)


def _translate_part(part: str, special: dict[str, str]) -> str:
    if part in special:
        return special[part]
    if part and not part.strip("*"):
        return ".*" if part == "**" else "[^/]*"
    if len(part) > 2 and part[0] == "[" and part[-1] == "]":
        inside = re.sub(r"([\\\[\]])", r"\\\1", part[1:-1])
        letters = f"[^/{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
        try:
            re.compile(letters)
        except re.error:
            return "(?!)"  # a range that runs backwards, [z-a], holds no letter
        return letters
    return re.escape(part)


def mount_points() -> dict[str, str]:
    """Mount point -> type of its file system; nothing where there is no /proc."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            fields = [line.split() for line in lines]
    except OSError:
        return {}  # not Linux: the start said so
    return {_unescape(field[4]): field[field.index("-") + 1] for field in fields}


def _unescape(path: str) -> str:
    """The kernel writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def _file_system(path: str, mounts: dict[str, str]) -> str:
    while path not in mounts and path != "/":
        path = os.path.dirname(path)
    return mounts.get(path, "")
