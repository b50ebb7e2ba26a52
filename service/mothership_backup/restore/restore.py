"""An archive into a data directory. THE PAGE TO READ.

    1. prove the archive's structure and its manifest       verify/contents.py
    2. plan: places, conflicts, way, room                   plan.py
    3. nobody may have the old databases open               holders.py
    4. unpack into a work folder, proving every byte,
       and let SQLite check each database there             staging.py, verify/verdict.py
    5. once more 3., then the new files take their places   journal.py, swap.py

Until 5. nothing in DIR is touched. From there on a kill at any moment leaves the journal in DIR, and `resume` goes
on or back; a reader refuses a directory that has one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mothership_backup.errors import ArchiveError, RestoreError
from mothership_backup.place import sync_folder
from mothership_backup.restore import journal as journals
from mothership_backup.restore import swap
from mothership_backup.restore.holders import Holder, blind_spots, find_holders
from mothership_backup.restore.journal import Journal, Swap
from mothership_backup.restore.plan import Plan, make_plan
from mothership_backup.restore.staging import Staging, began, work_folder, work_path
from mothership_backup.verify.archive_file import ArchiveFile
from mothership_backup.verify.contents import Contents
from mothership_backup.verify.verdict import Check, Report, verify


@dataclass(frozen=True)
class Options:
    """``into_existing``: DIR may hold files. ``is_stopped``: a person says that the application does not run."""

    into_existing: bool = False
    is_stopped: bool = False
    only: tuple[str, ...] = ()
    check: Check = "quick"


@dataclass(frozen=True)
class Restored:
    """What was done. ``before`` is where the old files are now, if there were any."""

    plan: Plan
    report: Report
    before: Path | None


def plan_restore(archive: ArchiveFile, contents: Contents, folder: Path, options: Options) -> Plan:
    """What `restore` would do, with all that it would refuse for. Raises RestoreError, ArchiveError."""
    plan = make_plan(archive, contents, _real(folder), options.only)
    if plan.is_occupied and not options.into_existing:
        raise RestoreError(
            f"{folder} is not empty: name a new directory, or say --into-existing; what is replaced is kept",
            code="not_empty",
        )
    _look_for_holders(plan, options)
    _look_for_room(plan)
    return plan


def restore(
    archive: ArchiveFile,
    contents: Contents,
    folder: Path,
    options: Options,
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> Restored:
    """All of it, or nothing: raises RestoreError, ArchiveError and InputError, and DIR is as it was.

    Only code ``interrupted`` means that DIR has a journal now, and that `resume` is to follow.
    """
    plan = plan_restore(archive, contents, folder, options)
    stamp = _stamp(plan)
    with work_folder(plan, stamp) as work:
        staging = Staging(plan, work / "new")
        report = verify(archive, contents, check=options.check, make_place=staging, progress=progress)
        _refuse_damaged(report, plan)
        journal = _journal(archive, plan, report, work, stamp)
        swap.sync_file_system(work)
        _look_for_holders(plan, options)
        before = _put_in_place(plan, journal)
    return Restored(plan, report, before)


def resume(folder: Path, *, backwards: bool) -> tuple[Journal, list[str]]:
    """End an interrupted restore: go on with it, or take it back.

    The journal as it was, and what somebody has written to meanwhile: going on, the names of such files; going
    back, the folder where they are kept. Raises RestoreError.
    """
    folder = _real(folder)
    journal = journals.read(folder)
    if journal.is_undone and not backwards:
        raise RestoreError(
            f"the restore into {folder} was taken back already: end that with `restore --undo {folder}`",
            code="undone",
        )
    databases = [folder / each.path for each in journal.swaps]
    if holders := find_holders(databases):
        raise _in_use(holders)
    try:
        if backwards:
            kept = swap.undo(journal, folder)
            told = [kept] if kept else []
        else:
            told = swap.changed_since(journal, folder)
            swap.finish(journal, folder)
        journals.remove(folder)
    except OSError as error:
        raise _interrupted(folder, error) from error
    return journal, told


def _stamp(plan: Plan) -> str:
    """The time, to the second; a later one where a restore has taken that already."""
    moment = datetime.now(UTC)
    while True:
        stamp = moment.strftime("%Y%m%dT%H%M%SZ")
        before, undone = _names(stamp)
        taken = (plan.folder / before, plan.folder / undone, work_path(plan, stamp))
        if not any(map(os.path.lexists, taken)):
            return stamp
        moment += timedelta(seconds=1)


def _names(stamp: str) -> tuple[str, str]:
    return f".before-restore-{stamp}", f".undone-restore-{stamp}"


def _real(folder: Path) -> Path:
    """A link to a directory stays one: what it leads to is restored into."""
    return Path(os.path.realpath(folder))


def _look_for_holders(plan: Plan, options: Options) -> None:
    if not plan.replaces_databases:
        return
    if holders := find_holders(plan.databases):
        raise _in_use(holders)
    if (spots := blind_spots()) and not options.is_stopped:
        raise RestoreError(
            f"nobody is seen to have the databases of {plan.folder} open, but not everything can be seen from here:"
            f" {'; '.join(spots)}; stop the application, then say --application-is-stopped",
            code="maybe_in_use",
        )


def _in_use(holders: list[Holder]) -> RestoreError:
    told = "; ".join(map(str, holders[:5]))
    return RestoreError(f"{told}: stop the application first", code="in_use")


def _look_for_room(plan: Plan) -> None:
    try:
        there = os.statvfs(plan.room_in)
    except OSError as error:
        raise RestoreError(f"{plan.room_in}: {error.strerror}", code="no_folder") from error
    free_bytes = there.f_bavail * there.f_frsize
    if plan.needed_bytes > free_bytes:
        raise RestoreError(
            f"{plan.room_in} has room for {free_bytes} bytes, and {plan.needed_bytes} are needed"
            " (the old files are kept): make room, or restore to another disk",
            code="no_room",
        )


def _refuse_damaged(report: Report, plan: Plan) -> None:
    """What is asked for must be proved; that something else of the archive is damaged is only told."""
    wanted = {item.entry.name for item in plan.items}
    damaged = [finding for finding in report.damaged if finding.name in wanted]
    if not damaged:
        return
    told = "; ".join(finding.problem or f"{finding.name}: SQLite finds it damaged" for finding in damaged[:5])
    if not any(finding.problem for finding in damaged):
        told += "; its bytes are what was backed up: --check none restores them, --only leaves them out"
    raise ArchiveError(f"nothing was restored: {told}", code="damaged")


def _journal(archive: ArchiveFile, plan: Plan, report: Report, work: Path, stamp: str) -> Journal:
    before, undone = _names(stamp)
    sums = {finding.name: finding.sha256 for finding in report.findings}
    return Journal(
        way="folder" if plan.way == "folder" and swap.can_exchange(work) else "names",
        archive=archive.name,
        work=work,
        before=before,
        undone=undone,
        swaps=tuple(
            Swap(item.path, sums[item.entry.name], item.replaces, item.sidecars) for item in plan.items
        ),
        folders=plan.folders,
    )


def _put_in_place(plan: Plan, journal: Journal) -> Path | None:
    """From here on a kill leaves either nothing, or the journal."""
    folder = plan.folder
    if plan.way == "new":
        os.rename(journal.new, folder)
        sync_folder(folder.parent)
        return None
    began(journal.work)
    try:
        if journal.way == "folder":
            journals.write(journal, journal.new, folder)
            swap.exchange(journal.new, folder)
        else:
            journals.write(journal, folder, folder)
        swap.finish(journal, folder)
        journals.remove(folder)
    except OSError as error:
        raise _interrupted(folder, error) from error
    before = folder / journal.before
    return before if before.is_dir() else None


def _interrupted(folder: Path, error: OSError) -> RestoreError:
    if not journals.path_in(folder).exists():
        return RestoreError(f"{folder}: {error.strerror or error}; it is as it was", code="failed")
    return RestoreError(
        f"{folder}: {error.strerror or error}: the restore stopped half-way, and nothing is lost: end it with"
        f" `restore --continue {folder}`, or take it back with `restore --undo {folder}`",
        code="interrupted",
    )
