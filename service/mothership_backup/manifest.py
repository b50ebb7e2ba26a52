"""What an archive says of itself: the plan's sources, what became of each, and MANIFEST.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mothership_backup.frames import ProtocolError
from mothership_backup.names import Namer, display_name, quoted_path

FORMAT: Final = 1
VERDICT_RESERVE_BYTES: Final = 200
"""What one database's verdict may add to the manifest of a stored archive, whose length is promised."""
_MAX_TEXT_BYTES: Final = 90
_SOURCES_A_PIECE: Final = 1000
_DAMAGED: Final = {"code": "damaged", "message": "its check found damage; its bytes are here as they are"}


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a plan. ``name`` is its name in the archive, ``path`` its own below the data directory."""

    name: str
    path: str
    kind: str
    status: str
    size_bytes: int
    mtime_ns: int
    mode: int
    is_named: bool = False  # by a pattern for databases, not as part of an included folder
    engine: str | None = None
    is_packed: bool = True
    wave: int = 1
    error_code: str | None = None
    error_message: str | None = None
    pages: Mapping[str, Any] | None = None  # a database's page_size, page_count, … as the manifest shows them


@dataclass(frozen=True, slots=True)
class Engine:
    """What the reader process has to work with."""

    sqlite: str
    library: str
    dbpage: bool
    deflate: str

    def line(self) -> str:
        """For the start: what there is, and what would be better."""
        reading = "live snapshots" if self.dbpage else "copied snapshots (this SQLite has no sqlite_dbpage)"
        line = f"{reading} with SQLite {self.sqlite} ({self.library}), DEFLATE by {self.deflate}"
        if self.dbpage and self.deflate == "isal":
            return line
        return line + "; faster with: pip install 'mothership-backup[fast]'"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backup covers now, and what not."""

    sources: tuple[Source, ...]
    engine: Engine
    app_version: str
    waves: int
    instant: Mapping[str, Any]

    @property
    def total_bytes(self) -> int:
        """Uncompressed bytes of what is known: sizes of later waves are not."""
        return sum(source.size_bytes for source in self.sources if source.status == "ok" and source.wave == 1)

    @property
    def databases(self) -> int:
        """Databases that go into the archive."""
        return sum(source.kind == "database" and source.status == "ok" for source in self.sources)

    @property
    def failed(self) -> int:
        """Sources that are wanted and cannot be had."""
        return sum(source.status == "failed" for source in self.sources)


def describe_plan(plan: Plan, app_version: str) -> dict[str, object]:
    """What a backup would cover now and what not, in the manifest's words."""
    return {
        "app_version": app_version,
        "complete": not plan.failed,
        "databases": plan.databases,
        "failed": plan.failed,
        "total_bytes": plan.total_bytes,
        "sources": [describe(source) for source in plan.sources],
    }


def describe(source: Source) -> dict[str, object]:
    """One source as it is planned."""
    known: dict[str, object] = {"name": source.name, "kind": source.kind, "status": source.status}
    if source.status == "ok":
        return {**known, "size_bytes": source.size_bytes, "engine": source.engine}
    return {**known, "error": {"code": source.error_code, "message": source.error_message}}


def read_sources(documents: Iterable[Mapping[str, Any]]) -> Iterator[Source]:
    """The reader's words -> sources with their names; those for the archive come first and so get theirs first."""
    namer = Namer()
    modes: dict[int, int] = {}
    for document in documents:
        path = document["path"]
        error = document.get("error") or {}
        is_ok = document["status"] == "ok"
        name = namer.name(path) if is_ok else display_name(path)
        yield Source(
            name=name,
            path=path if path != name else name,  # one string, not two: there may be 70,000
            kind=sys.intern(document["kind"]),
            status=sys.intern(document["status"]),
            size_bytes=document["size_bytes"],
            mtime_ns=document["mtime_ns"],
            mode=modes.setdefault(document["mode"], document["mode"]),
            is_named=document["is_named"],
            engine=sys.intern(document["engine"]) if "engine" in document else None,
            is_packed=document.get("is_packed", True),
            wave=document.get("wave", 1),
            error_code=error.get("code"),
            error_message=error.get("message"),
            pages=_pages(document),
        )


def _pages(document: Mapping[str, Any]) -> dict[str, Any] | None:
    keys = ("taken_at", "journal_mode", "page_size", "page_count", "user_version", "application_id")
    return {key: document[key] for key in keys} if "page_size" in document else None


class _Taken(NamedTuple):
    """What an entry is, its bytes apart."""

    size_bytes: int
    engine: str | None
    pages: Mapping[str, Any] | None

    @classmethod
    def as_planned(cls, source: Source) -> _Taken:
        return cls(source.size_bytes, source.engine, None)


class Manifest:
    """Collects what becomes of a plan's sources, and writes it down at the end."""

    def __init__(
        self, plan: Plan, *, backup_id: str, created_at: str, check: str, version: str, app_version: str
    ) -> None:
        self._plan = plan
        self._check = check
        self._head = {
            "format": FORMAT,
            "backup_id": backup_id,
            "created_at": created_at,
            "app_version": app_version,
            "generator": {"name": "mothership-backup", "version": version, "sqlite": plan.engine.sqlite},
        }
        # By the source's index. There may be 70,000: their digests are bytes, and a file is mostly as it was planned.
        self._sha256: list[bytes | None] = [None] * len(plan.sources)
        self._taken: dict[int, _Taken] = {}
        self._left_out: dict[int, tuple[str, str]] = {}
        self._verdicts: dict[int, tuple[str, str]] = {}
        self._instant = dict(plan.instant)

    def take(self, index: int, document: Mapping[str, Any]) -> None:
        """The source is in the archive."""
        source = self._plan.sources[index]
        engine = sys.intern(document["engine"]) if "engine" in document else source.engine
        try:
            self._sha256[index] = bytes.fromhex(document["sha256"])
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"a SHA-256 that is none: {error}") from error
        taken = _Taken(document["size_bytes"], engine, _pages(document))
        if taken != _Taken.as_planned(source):
            self._taken[index] = taken

    def leave_out(self, index: int, code: str, message: str) -> None:
        """The source failed before its first byte."""
        self._left_out[index] = (code, message)

    def add_verdict(self, index: int, verdict: str, text: str) -> None:
        """What the check of a database found."""
        self._verdicts[index] = (verdict, text)

    def set_instants(self, instants: list[Mapping[str, Any]]) -> None:
        """One a wave: several are not one instant."""
        if len(instants) > 1:
            self._instant = {
                "exact": False,
                "first_pinned_at": instants[0]["first_pinned_at"],
                "last_pinned_at": instants[-1]["last_pinned_at"],
                "waves": len(instants),
            }

    @property
    def failures(self) -> dict[str, str]:
        """Name -> message of each source that is wanted and missing or damaged."""
        failures: dict[str, str] = {}
        for index, source in enumerate(self._plan.sources):
            if self._status(index) == "failed":
                failures[source.name] = self._error(index)["message"]
        return failures

    @property
    def is_complete(self) -> bool:
        return not any(self._status(index) == "failed" for index in range(len(self._plan.sources)))

    def sums(self) -> Iterator[tuple[str, str]]:
        """SHA-256 and name of every source in the archive, in the archive's order."""
        for source, sha256 in zip(self._plan.sources, self._sha256, strict=True):
            if sha256 is not None:
                yield sha256.hex(), source.name

    def verdict(self, index: int) -> str | None:
        return self._verdicts.get(index, (None, ""))[0]

    def pieces(self) -> Iterator[bytes]:
        """MANIFEST.json without its last newline: one source a line. Never whole in memory: there may be 70,000."""
        return self._pieces(self.is_complete, self._describe)

    def encode(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces()) + b"\n"

    def bound_bytes(self) -> int:
        """At least as long as `encode` will be, if every source of the plan is taken as planned."""
        longest = sum(map(len, self._pieces(False, self._describe_longest))) + 1
        return longest + VERDICT_RESERVE_BYTES * self._plan.databases

    def _pieces(self, is_complete: bool, describe: Callable[[int], dict[str, Any]]) -> Iterator[bytes]:
        head = {**self._head, "complete": is_complete, "instant": self._instant}
        yield _as_bytes(_dump(head)[:-1] + ', "sources": [\n')
        count = len(self._plan.sources)
        for begin in range(0, count, _SOURCES_A_PIECE):
            end = min(begin + _SOURCES_A_PIECE, count)
            lines = ",\n".join(_dump(describe(index)) for index in range(begin, end))
            yield _as_bytes(lines + (",\n" if end < count else ""))
        yield b"]}"

    def _status(self, index: int) -> str:
        if index in self._left_out or self.verdict(index) == "damaged":
            return "failed"
        return self._plan.sources[index].status

    def _error(self, index: int) -> dict[str, str]:
        if index in self._left_out:
            code, message = self._left_out[index]
            return {"code": code, "message": message}
        if self.verdict(index) == "damaged":
            return _DAMAGED
        source = self._plan.sources[index]
        return {"code": source.error_code or "", "message": source.error_message or ""}

    def _describe(self, index: int) -> dict[str, Any]:
        source = self._plan.sources[index]
        status = self._status(index)
        document: dict[str, Any] = {"name": source.name, "kind": source.kind, "status": status}
        if source.path != source.name:
            document["path"] = quoted_path(source.path)
        sha256 = self._sha256[index]
        if sha256 is not None:
            taken = self._taken.get(index) or _Taken.as_planned(source)
            document |= {"size_bytes": taken.size_bytes, "sha256": sha256.hex(), "engine": taken.engine}
            document |= taken.pages or {}
            if source.kind == "database":
                document["check"] = self._describe_check(index)
        if status != "ok":
            document["error"] = self._error(index)
        return document

    def _describe_check(self, index: int) -> dict[str, str]:
        if self._check == "none":
            return {"kind": "none"}
        verdict, text = self._verdicts.get(index, ("unfinished", ""))
        document = {"kind": self._check, "verdict": verdict}
        return {**document, "text": _shorten(text)} if text else document

    def _describe_longest(self, index: int) -> dict[str, Any]:
        source = self._plan.sources[index]
        if source.status != "ok":
            return self._describe(index)
        document: dict[str, Any] = {
            "name": source.name,
            "kind": source.kind,
            "status": "failed",
            "path": quoted_path(source.path),
        }
        document |= {"size_bytes": source.size_bytes, "sha256": "0" * 64, "engine": source.engine}
        document |= source.pages or {}
        return {**document, "check": {"kind": self._check, "verdict": "unfinished"}}


def _dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)


def _as_bytes(text: str) -> bytes:
    """A message may name a path that is no UTF-8; the escape of a lone surrogate is JSON too."""
    return text.encode("utf-8", "backslashreplace")


def _shorten(text: str) -> str:
    """To what `VERDICT_RESERVE_BYTES` has room for, counted as JSON."""
    while len(_as_bytes(_dump({"": text}))) > _MAX_TEXT_BYTES:
        text = text[:-1]
    return text
