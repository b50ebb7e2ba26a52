"""Entries and claims held against each other, before anything but the manifest is unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mothership_backup.errors import ArchiveError
from mothership_backup.names import RESERVED
from mothership_backup.verify import unpack
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.claims import MAX_MANIFEST_BYTES, Claimed, Claims, read_claims
from mothership_backup.verify.directory import Entry, read_directory

VERSION, MANIFEST, SUMS = RESERVED
_MAX_VERSION_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an archive, as its directory and its manifest agree.

    ``claims`` is None for a plain ZIP without a manifest: then nothing says what should be in it.
    """

    entries: tuple[Entry, ...]
    claims: Claims | None
    manifest_sha256: str

    @property
    def sources(self) -> Iterator[tuple[Entry, Claimed | None]]:
        """What was backed up, in the order of the archive, with what the manifest claims of it."""
        if self.claims is None:
            yield from ((entry, None) for entry in self.entries)
            return
        taken = (source for source in self.claims.sources if source.is_in_archive)
        yield from zip(self.entries, taken, strict=False)  # ours stand behind them

    @property
    def own(self) -> tuple[Entry, ...]:
        """VERSION, MANIFEST.json and SHA256SUMS; nothing without a manifest."""
        return self.entries[-len(RESERVED) :] if self.claims is not None else ()

    @property
    def total_bytes(self) -> int:
        """Uncompressed."""
        return sum(entry.size_bytes for entry in self.entries)

    def sums(self) -> Iterator[bytes]:
        """What SHA256SUMS must hold, a line at a time."""
        for entry, source in self.sources:
            if source is not None:
                yield f"{source.sha256}  {entry.name}\n".encode()
        version = hashlib.sha256(self.version).hexdigest()
        yield f"{version}  {VERSION}\n{self.manifest_sha256}  {MANIFEST}\n".encode()

    @property
    def version(self) -> bytes:
        """What VERSION must hold."""
        return b"" if self.claims is None else f"{self.claims.app_version}\n".encode()


def read_contents(archive: ArchiveFile, *, max_bytes: int | None = None) -> Contents:
    """Prove the archive's structure, and what its manifest says of names and sizes; nothing is unpacked to a disk.

    Raises ArchiveError with the reason: see `read_directory`; ``contents`` when manifest and entries contradict each
    other, ``too_large`` when all entries together have more than ``max_bytes``.
    """
    entries = read_directory(archive)
    total_bytes = sum(entry.size_bytes for entry in entries)
    if max_bytes is not None and total_bytes > max_bytes:
        raise ArchiveError(
            f"it unpacks to {total_bytes} bytes, more than --max-bytes ({max_bytes})", code="too_large"
        )
    names = [entry.name for entry in entries]
    if not {MANIFEST, SUMS} & set(names):
        return Contents(entries, None, "")
    if tuple(names[-len(RESERVED) :]) != RESERVED:
        raise ArchiveError(
            f"it does not end with {', '.join(RESERVED)}, as every archive of ours does", code="contents"
        )
    text = _read_small(archive, entries[-2], MAX_MANIFEST_BYTES)
    claims = read_claims(text)
    _compare(entries[: -len(RESERVED)], claims)
    contents = Contents(entries, claims, hashlib.sha256(text).hexdigest())
    if _read_small(archive, entries[-3], _MAX_VERSION_BYTES) != contents.version:
        raise ArchiveError(f"{VERSION} is not the app_version that {MANIFEST} claims", code="contents")
    _compare_sums(archive, contents)
    return contents


def _compare(entries: tuple[Entry, ...], claims: Claims) -> None:
    """Exactly what the manifest claims, in its order."""
    taken = [source for source in claims.sources if source.is_in_archive]
    for entry, source in zip(entries, taken, strict=False):
        if entry.name != source.name:
            raise ArchiveError(f"{entry.name} stands where {MANIFEST} claims {source.name}", code="contents")
        if entry.is_folder:
            raise ArchiveError(f"{entry.name} is a folder, and {MANIFEST} claims a file", code="contents")
        if entry.size_bytes != source.size_bytes:
            raise ArchiveError(
                f"{entry.name} has {entry.size_bytes} bytes, and {MANIFEST} claims {source.size_bytes}",
                code="contents",
                source=entry.name,
            )
    if len(entries) != len(taken):
        raise ArchiveError(
            f"it has {len(entries)} databases and files, and {MANIFEST} claims {len(taken)}", code="contents"
        )


def _compare_sums(archive: ArchiveFile, contents: Contents) -> None:
    expected = memoryview(b"".join(contents.sums()))
    at = 0
    for block in unpack.blocks(archive, contents.entries[-1]):
        if expected[at : at + len(block)] != block:
            raise ArchiveError(f"{SUMS} is not what {MANIFEST} claims", code="contents")
        at += len(block)
    if at != len(expected):
        raise ArchiveError(f"{SUMS} has fewer lines than {MANIFEST} has files", code="contents")


def _read_small(archive: ArchiveFile, entry: Entry, max_bytes: int) -> bytes:
    if entry.size_bytes > max_bytes:
        raise ArchiveError(f"{entry.name} has {entry.size_bytes} bytes, more than is read", code="too_large")
    return b"".join(unpack.blocks(archive, entry))
