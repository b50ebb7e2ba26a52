"""MANIFEST.json read back: what an archive claims of itself. Its types are checked; its truth is not, here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import unquote_to_bytes

from mothership_backup.errors import ArchiveError
from mothership_backup.manifest import FORMAT

MAX_MANIFEST_BYTES: Final = 128 * 1024 * 1024
"""70,000 files make 25 MB; a longer one is not read, since all of it is held in memory."""
_SHA256: Final = re.compile("[0-9a-f]{64}")
_STATUSES: Final = ("ok", "failed", "skipped")


@dataclass(frozen=True, slots=True)
class Claimed:
    """One source. ``size_bytes`` and ``sha256`` are there when its bytes are in the archive.

    ``path`` is its own name below the data directory, which ``name`` may not be: with surrogates for bytes that are
    no UTF-8, and as little to be trusted as all the rest.

    ``pages`` are a database's page_size, page_count, user_version, …, as the manifest has them.
    """

    name: str
    path: str
    kind: str
    status: str
    size_bytes: int | None
    sha256: str | None
    engine: str
    error_code: str
    error_message: str
    verdict: str
    pages: Mapping[str, Any]

    @property
    def is_in_archive(self) -> bool:
        return self.sha256 is not None

    @property
    def is_database(self) -> bool:
        return self.kind == "database"


@dataclass(frozen=True, slots=True)
class Claims:
    """A whole manifest."""

    backup_id: str
    created_at: str
    app_version: str
    generator: str
    complete: bool
    is_one_instant: bool
    sources: tuple[Claimed, ...]

    @property
    def missing(self) -> tuple[Claimed, ...]:
        """What was wanted, and is not here or is damaged."""
        return tuple(source for source in self.sources if source.status == "failed")


def read_claims(text: bytes) -> Claims:
    """Raises ArchiveError: ``manifest`` when it is none, ``newer_format`` when a newer version wrote it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"MANIFEST.json is no JSON: {error}", code="manifest") from error
    if not isinstance(document, dict):
        _refuse("is no object")
    number = document.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise ArchiveError(
            f"its format is {number}, and this version reads up to {FORMAT}: install a newer mothership-backup",
            code="newer_format",
        )
    if number != FORMAT:
        _refuse(f"has the format {number!r}, not {FORMAT}")
    claims = Claims(
        backup_id=_text(document, "backup_id"),
        created_at=_text(document, "created_at"),
        app_version=_text(document, "app_version"),
        generator=_text(_object(document, "generator"), "version"),
        complete=_bool(document, "complete"),
        is_one_instant=_object(document, "instant").get("exact") is True,
        sources=tuple(map(_source, _list(document, "sources"))),
    )
    if claims.complete == bool(claims.missing):
        _refuse(f"says complete: {claims.complete}, and {len(claims.missing)} of its sources failed")
    return claims


def _source(document: object) -> Claimed:
    if not isinstance(document, dict):
        _refuse("has a source that is no object")
    name, status = _text(document, "name"), _text(document, "status")
    if status not in _STATUSES:
        _refuse(f"says {status!r} of {name!a}")
    sha256, size_bytes = document.get("sha256"), document.get("size_bytes")
    if sha256 is None:
        if status == "ok":
            _refuse(f"says ok of {name!a}, and not its SHA-256")
        size_bytes = None
    elif not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        _refuse(f"has a SHA-256 of {name!a} that is none")
    elif not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
        _refuse(f"has a size of {name!a} that is none")
    error = _object(document, "error") if "error" in document else {}
    check = _object(document, "check") if "check" in document else {}
    path = os.fsdecode(unquote_to_bytes(_text(document, "path"))) if "path" in document else name
    return Claimed(
        name=name,
        path=path,
        kind=_text(document, "kind"),
        status=status,
        size_bytes=size_bytes,
        sha256=sha256,
        engine=str(document.get("engine") or ""),
        error_code=str(error.get("code", "")),
        error_message=str(error.get("message", "")),
        verdict=str(check.get("verdict", "")),
        pages=_pages(document, name),
    )


def _pages(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    numbers = ("page_size", "page_count", "user_version", "application_id")
    pages = {key: document[key] for key in numbers if key in document}
    if not all(isinstance(value, int) for value in pages.values()):
        _refuse(f"has pages of {name!a} that are none")
    texts = {key: str(document[key]) for key in ("journal_mode", "taken_at") if key in document}
    return pages | texts


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        _refuse(f"has no text {key!r}")
    return value


def _bool(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    if not isinstance(value, bool):
        _refuse(f"has no true or false {key!r}")
    return value


def _object(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        _refuse(f"has no object {key!r}")
    return value


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        _refuse(f"has no list {key!r}")
    return value


def _refuse(reason: str) -> NoReturn:
    raise ArchiveError(f"MANIFEST.json {reason}", code="manifest")
