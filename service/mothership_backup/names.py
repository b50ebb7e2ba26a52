"""Names in the archive: safe to extract anywhere, and unique, whatever bytes the sources' names are made of."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RESERVED: Final = ("VERSION", "MANIFEST.json", "SHA256SUMS")
RESTORE_JOURNAL: Final = ".restore-in-progress"
"""In a data directory while a restore into it is not at its end: it may hold old and new files beside each other."""
RESTORE_FOLDER: Final = re.compile(r"\.(restore|before-restore|undone-restore)-[0-9]{8}T[0-9]{6}Z")
"""What a restore makes in a data directory, and what no backup takes along."""
_DRIVE: Final = re.compile("[A-Za-z]:")
_MAX_COMPONENT_BYTES: Final = 255  # NAME_MAX: a longer name cannot be extracted


class Namer:
    """Gives each source its name in the archive; the first to ask for a name has it.

    Bytes that are no UTF-8, control characters and backslashes become ``%XX``. Names that differ only in Unicode
    normalisation would be one file on some systems, so the later one gets ``~2`` before its suffix; so does a
    source that is called like an entry of ours.
    """

    def __init__(self) -> None:
        self._folders = {"": ""}
        self._taken = {"": {_key(name) for name in RESERVED}}

    def name(self, path: str) -> str:
        """``path`` is relative, with surrogates for bytes that are no UTF-8."""
        folder, _, component = path.rpartition("/")
        return self._place(self._folder(folder), component)

    def _folder(self, path: str) -> str:
        if path not in self._folders:
            parent, _, component = path.rpartition("/")
            name = self._place(self._folder(parent), component)
            self._folders[path] = name
            self._taken[name] = set()
        return self._folders[path]

    def _place(self, parent: str, component: str) -> str:
        wanted = _safe(component)
        if not parent and _DRIVE.match(wanted):
            wanted = _fit(f"{wanted[0]}%3A{wanted[2:]}", "")  # bsdtar takes a drive off, on every system
        taken = self._taken[parent]
        number = 1
        name = wanted
        while _key(name) in taken or (not parent and name.upper() in _RESERVED_UPPER):
            number += 1
            name = _fit(wanted, f"~{number}")
        taken.add(_key(name))
        return f"{parent}/{name}" if parent else name


_RESERVED_UPPER: Final = {name.upper() for name in RESERVED}


def display_name(path: str) -> str:
    """A name that can be shown and parsed, for what is not in the archive; not necessarily unique."""
    return "/".join(_safe(component) for component in path.split("/"))


def quoted_path(path: str) -> str:
    """The source's own name, percent-encoded byte by byte where it is not plain printable ASCII."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x25 else f"%{byte:02X}" for byte in os.fsencode(path)
    )


def all_names(paths: Iterable[str]) -> list[str]:
    """The archive's names of ``paths``, in their order."""
    namer = Namer()
    return [namer.name(path) for path in paths]


def _safe(component: str) -> str:
    if component.isascii() and component.isprintable() and "\\" not in component:
        # As nearly all of 70,000 are.
        return component if len(component) <= _MAX_COMPONENT_BYTES else _fit(component, "")
    name = "".join(char if _is_safe(char) else _escape(char) for char in component)
    return _fit(name, "")


def _is_safe(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") and char != "\\"


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _fit(name: str, mark: str) -> str:
    """``name`` with ``mark`` before its suffix, shortened (and then told apart by a hash) to 255 bytes."""
    stem, suffix = os.path.splitext(name)
    fitted = stem + mark + suffix
    if len(fitted.encode()) <= _MAX_COMPONENT_BYTES:
        return fitted
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    tail = f"~{digest}{mark}{suffix if len(suffix.encode()) <= 16 else ''}"
    room = _MAX_COMPONENT_BYTES - len(tail.encode())
    return name.encode()[:room].decode("utf-8", "ignore") + tail


def _key(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
