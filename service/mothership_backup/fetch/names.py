"""FILE with its {words} -> the file of this run, and the pattern of those that earlier runs made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from mothership_backup.errors import ConfigError, FetchError

PREFIX: Final = "prefix"
KNOWN: Final = (PREFIX, "date", "time", "host")
# What differs from run to run, and exactly how.
CLOCK: Final = {"date": "[0-9]{4}-[0-9]{2}-[0-9]{2}", "time": "[0-9]{6}"}
_WORD: Final = re.compile(r"\{([^{}]*)\}")
# In `spaxel-backup-2026-11-24.zip` the prefix is spaxel; of several "-backup-" the last one is the service's.
_DISPOSITION: Final = re.compile(r'(?:^|[;\s])filename="?([A-Za-z0-9._-]{1,64})-backup-', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Template:
    """FILE as it was given, and the values of its words as far as they are known."""

    text: str
    values: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return Path(self.text).parent

    @property
    def needs_prefix(self) -> bool:
        """Only the service's answer names it."""
        return PREFIX in self._words and PREFIX not in self.values

    @property
    def has_clock(self) -> bool:
        """Whether each run makes another file."""
        return any(word in CLOCK for word in self._words)

    def with_prefix(self, disposition: str) -> Template:
        """The same for the answer with this Content-Disposition. Raises FetchError when that names no prefix."""
        if PREFIX not in self._words:
            return self
        found = _DISPOSITION.search(disposition)
        if found is None:
            raise FetchError(
                "the answer names no file such as spaxel-backup-2026-11-24.zip: leave {prefix} out of FILE"
            )
        return replace(self, values={**self.values, PREFIX: found[1]})

    @property
    def path(self) -> Path:
        """The file of this run."""
        return self.folder / _WORD.sub(lambda found: self.values[found[1]], Path(self.text).name)

    @property
    def siblings(self) -> re.Pattern[str]:
        """The names that other runs with the same FILE gave or will give, in full."""
        parts = _WORD.split(Path(self.text).name)  # text, word, text, …
        return re.compile(
            "".join(
                CLOCK.get(part, re.escape(self.values.get(part, ""))) if index % 2 else re.escape(part)
                for index, part in enumerate(parts)
            )
        )

    @property
    def _words(self) -> list[str]:
        return _WORD.findall(Path(self.text).name)


def parse(text: str, *, host: str, now: datetime) -> Template:
    """``now`` is UTC: one clock for all tries. Raises ConfigError for what names no file, and for unknown words."""
    path = Path(text)
    if text == "-":
        raise ConfigError(
            "fetch proves a file before it counts, so it writes to none but a file: name a FILE"
        )
    if not path.name or path.name == ".." or text.endswith("/"):
        raise ConfigError(f"{text!r} names a folder: name a FILE in it")
    for word in _WORD.findall(path.name):
        if word not in KNOWN:
            known = ", ".join(f"{{{name}}}" for name in KNOWN)
            raise ConfigError(f"{text}: {{{word}}} is unknown; there are {known}")
    for word in _WORD.findall(str(path.parent)):
        if word in KNOWN:
            raise ConfigError(f"{text}: {{{word}}} may stand in the file's own name, not in its folder's")
    values = {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H%M%S}", "host": _safe(host)}
    return Template(text, values)


def _safe(host: str) -> str:
    """An IPv6 address has colons, and may have a zone."""
    return re.sub("[^A-Za-z0-9._-]", "-", host)
