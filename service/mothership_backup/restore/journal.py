"""DIR/.restore-in-progress: while it is there, DIR may be a mixture of old and new, and nobody backs it up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mothership_backup.errors import RestoreError
from mothership_backup.names import RESTORE_JOURNAL
from mothership_backup.place import sync_folder

Way = Literal["names", "folder"]  # the third way, a new directory, is one rename and needs no journal
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Swap:
    """One name: its path below DIR, what will be there, and what leaves with the old file."""

    path: str
    sha256: str
    replaces: bool
    sidecars: tuple[str, ...]


@dataclass(frozen=True)
class Journal:
    """What a restore is doing. ``work`` is where its files are, ``before`` and ``undone`` where files end.

    ``way``: ``names`` are swapped one by one, or the whole ``folder`` at once. ``folders`` are made by it.
    ``is_undone``: all is as it was, and what came out of the archive is being removed: there is no way forwards.
    """

    way: Way
    archive: str
    work: Path
    before: str
    undone: str
    swaps: tuple[Swap, ...]
    folders: tuple[str, ...]
    is_undone: bool = False

    @property
    def new(self) -> Path:
        """The new files, each below its path."""
        return self.work / "new"

    @property
    def old(self) -> Path:
        """The files that were replaced, each below its path."""
        return self.work / "old"


def path_in(folder: Path) -> Path:
    """Where the journal of a restore into ``folder`` is."""
    return folder / RESTORE_JOURNAL


def _part_in(folder: Path) -> Path:
    return folder / f"{RESTORE_JOURNAL}.part"


def write(journal: Journal, folder: Path, target: Path) -> None:
    """Into ``folder``, which is ``target`` or will be; whole or not at all, and on the disk when this returns.

    Raises OSError.
    """
    # Relative: the volume may be mounted somewhere else next time.
    work = os.path.relpath(journal.work, target)
    document: dict[str, Any] = {"format": _FORMAT, **asdict(journal), "work": work}
    part = _part_in(folder)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w", encoding="ascii") as stream:
        json.dump(document, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(part, path_in(folder))
    sync_folder(folder)


def read(folder: Path) -> Journal:
    """Raises RestoreError when there is none, or it cannot be read."""
    try:
        document = json.loads(path_in(folder).read_bytes())
        if document["format"] != _FORMAT:
            raise RestoreError(
                f"{path_in(folder)} has format {document['format']}: use the version that wrote it",
                code="journal",
            )
        return Journal(
            way=document["way"],
            archive=document["archive"],
            work=folder / document["work"],
            before=document["before"],
            undone=document["undone"],
            swaps=tuple(_swaps(document["swaps"])),
            folders=tuple(document["folders"]),
            is_undone=document["is_undone"],
        )
    except FileNotFoundError as error:
        raise RestoreError(f"no restore into {folder} was interrupted", code="no_journal") from error
    except OSError as error:
        raise RestoreError(f"{path_in(folder)}: {error.strerror}", code="journal") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RestoreError(f"{path_in(folder)} cannot be read: {error!r}", code="journal") from error


def _swaps(documents: Iterable[dict[str, Any]]) -> Iterable[Swap]:
    for document in documents:
        yield Swap(document["path"], document["sha256"], document["replaces"], tuple(document["sidecars"]))


def remove(folder: Path) -> None:
    """The last step of all."""
    _part_in(folder).unlink(missing_ok=True)
    path_in(folder).unlink(missing_ok=True)
    sync_folder(folder)
