"""A service's backup -> a file. THE PAGE TO READ.

    1. FILE.part is opened and locked: two runs do not mix          part.py
    2. GET -> FILE.part, from its first byte on each time           transfer.py
    3. it is proved: structure, manifest, sums, each database       verify/
       what failed on the way is tried again from 2                 retry.py
    4. synced and renamed: to FILE only if it is complete and good  place.py
    5. older files of the same pattern that may go are removed      keep.py

Whatever fails, FILE is what it was. Every try is a snapshot of its own, so nothing is ever resumed or joined.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from mothership_backup.errors import ArchiveError, ConfigError
from mothership_backup.fetch.keep import Keep, prune
from mothership_backup.fetch.names import Template
from mothership_backup.fetch.part import Part
from mothership_backup.fetch.retry import PassingError, until_it_works
from mothership_backup.fetch.target import Target
from mothership_backup.fetch.transfer import Progress, transfer
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.contents import Contents, read_contents
from mothership_backup.verify.scratch import Scratch
from mothership_backup.verify.verdict import Check, Report, verify

_LASTING: Final = ("manifest", "newer_format")  # its bytes are proved then: it was sent so


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched, and what becomes of it. ``now`` is when the run began."""

    target: Target
    file: Template
    check: Check
    tries: int
    keep: Keep
    now: datetime

    def __post_init__(self) -> None:
        if self.keep and not self.file.has_clock:
            raise ConfigError(
                f"--keep and --keep-days: {self.file.text} is the same file each time:"
                " put {date} or {time} into its name"
            )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole archive at its place; ``report.word`` is ``whole``, ``incomplete`` or ``damaged``."""

    place: Path
    size_bytes: int
    duration_seconds: float
    contents: Contents
    report: Report
    removed: tuple[Path, ...]


def fetch(
    job: Job, *, progress: Progress, tell: Callable[[str], None], first_wait_seconds: float = 1
) -> Fetched:
    """Fetch, prove, put in place. ``tell`` gets a line for what a person should know meanwhile.

    Raises FetchError when no archive came, ArchiveError when none that is whole, OutputError and InputError when
    this machine's disks failed; then nothing was kept.
    """
    began = time.monotonic()
    with Part(job.file) as part:

        def attempt() -> tuple[Contents, Report]:
            asyncio.run(transfer(job.target, part, progress))
            return _prove(job, part, progress)

        contents, report = until_it_works(
            attempt, tries=job.tries, first_wait_seconds=first_wait_seconds, tell=tell
        )
        is_good = report.word == "whole"
        place = part.keep(complete=is_good)
    removed = _prune(job, part.template, contents, tell) if is_good else ()
    return Fetched(place, part.size_bytes, time.monotonic() - began, contents, report, removed)


def _prove(job: Job, part: Part, progress: Progress) -> tuple[Contents, Report]:
    """Every byte is what the manifest says. What SQLite thinks of a database is no reason to try again."""
    try:
        return _judge(job.check, ArchiveFile(part.fd, str(part.template.path)), progress)
    except ArchiveError as error:
        told = ArchiveError(f"what {job.target.name} sent is not whole: {error.message}", code=error.code)
        if error.code in _LASTING:
            raise told from error
        raise PassingError(told) from error


def _judge(check: Check, archive: ArchiveFile, progress: Progress) -> tuple[Contents, Report]:
    contents = read_contents(archive)
    if contents.claims is None:
        raise ArchiveError("it has no manifest, so nothing says what should be in it", code="manifest")
    scratch = Scratch()
    with progress("verify", contents.total_bytes) as advance:
        report = verify(
            archive,
            contents,
            check=check,
            make_place=(lambda entry, is_database: None) if check == "none" else scratch,
            progress=advance,
        )
    for finding in report.findings:
        if finding.problem:
            raise ArchiveError(finding.problem, code="damaged")
    return contents, report


def _prune(job: Job, file: Template, contents: Contents, tell: Callable[[str], None]) -> tuple[Path, ...]:
    if not job.keep or contents.claims is None:
        return ()
    return prune(job.keep, file, contents.claims, now=job.now, tell=tell)
