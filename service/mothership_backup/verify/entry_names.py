"""Names of entries: the one that every unzip tool takes, safe to unpack anywhere, and none of them twice."""

from __future__ import annotations

import stat
import struct
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from mothership_backup import deflate
from mothership_backup.verify.archive_file import refuse
from mothership_backup.verify.central import UTF8, Listed

_MAX_COMPONENT_BYTES: Final = 255


def read_name(listed: Listed, shown: str) -> tuple[str, bool]:
    """The entry's name without a folder's slash, safe to unpack anywhere; whether it is a folder's."""
    text = _decode(listed, shown)
    is_folder = text.endswith("/")
    kind = stat.S_IFMT(listed.mode)  # some readers look at it whatever system it was made on
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
        what = "a link" if kind == stat.S_IFLNK else "no regular file"
        refuse("unsafe", f"{shown} is {what}")
    if is_folder and listed.size_bytes:
        refuse("unsafe", f"{shown} is a folder and has bytes")
    name = text.removesuffix("/")
    has_drive = name[1:2] == ":" and name[0].isascii() and name[0].isalpha()
    if has_drive or any(not _is_safe(component) for component in name.split("/")):
        refuse("unsafe", f"the name {shown} could be unpacked elsewhere than below its target")
    return name, is_folder


def _decode(listed: Listed, shown: str) -> str:
    """As unzip, 7z and bsdtar do on Unix; where they would not agree, it is refused."""
    raw, is_utf8 = listed.raw_name, bool(listed.flags & UTF8)
    if listed.unicode_path:
        is_valid = listed.unicode_path[:5] == struct.pack("<BL", 1, deflate.crc32(raw))
        if not is_valid or (is_utf8 and listed.unicode_path[5:] != raw):
            refuse("malformed", f"{shown} has two names")
        raw, is_utf8 = listed.unicode_path[5:], True
    try:
        return raw.decode("utf-8" if is_utf8 or listed.is_unix else "cp437")  # appendix D
    except UnicodeDecodeError:
        if is_utf8:
            refuse("unsafe", f"the name {shown} is no UTF-8")
        return raw.decode("cp437")


def _is_safe(component: str) -> bool:
    """No way up, no second meaning of a slash, nothing that a terminal obeys, not too long to be made."""
    if component in ("", ".", "..") or len(component.encode("utf-8", "replace")) > _MAX_COMPONENT_BYTES:
        return False
    return not any(
        char == "\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in component
    )


def look_at_names(names: Iterable[tuple[str, bool]]) -> None:
    """No two the same, in whatever form of Unicode; none a file's and a folder's (True) at once."""
    # With the slash as the smallest character, what lies in a folder follows the folder's own name.
    keys = sorted(
        (unicodedata.normalize("NFC", name).replace("/", "\0"), is_folder) for name, is_folder in names
    )
    for (key, is_folder), (following, _) in pairwise(keys):
        shown = ascii(key.replace("\0", "/"))
        if following == key:
            refuse("unsafe", f"{shown} is in it twice")
        if not is_folder and following.startswith(key + "\0"):
            refuse("unsafe", f"{shown} is a file and a folder at once")
