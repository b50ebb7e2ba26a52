"""`restore ZIP DIR`: an archive into a data directory; and the end of a restore that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mothership_backup.cli import INCOMPLETE
from mothership_backup.cli.progress import byte_progress
from mothership_backup.cli.stopping import stoppable
from mothership_backup.cli.terminal import complain, count, human_bytes, printable, show
from mothership_backup.cli.verify import CheckOption, MaxBytes, check_kind, refused
from mothership_backup.errors import ArchiveError, ConfigError
from mothership_backup.restore.holders import blind_spots
from mothership_backup.restore.plan import Plan
from mothership_backup.restore.restore import Options, Restored, plan_restore, resume
from mothership_backup.restore.restore import restore as put_back
from mothership_backup.verify.archive_file import ArchiveFile, open_archive
from mothership_backup.verify.contents import Contents, read_contents

_WAYS = {
    "new": "a new directory, named when it is complete",
    "folder": "complete beside it, then one exchange of the directories",
    "names": "name by name, under a journal",
}


def restore(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="ZIP|- DIR", help="The archive and the directory; only DIR to end an interrupted one."
        ),
    ],
    into_existing: Annotated[
        bool, typer.Option("--into-existing", help="DIR may hold files; what is replaced is kept.")
    ] = False,
    is_stopped: Annotated[
        bool,
        typer.Option("--application-is-stopped", help="Say so where it cannot be seen from here."),
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only these names of the archive (repeatable).")
    ] = None,
    check: CheckOption = "quick",
    max_bytes: MaxBytes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on with a restore into DIR that was interrupted.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back a restore into DIR that was interrupted.")
    ] = False,
) -> None:
    """Put an archive back into a data directory, all of it or nothing."""
    if go_on or undo:
        if len(places) != 1 or (go_on and undo):
            raise ConfigError(
                "restore --continue DIR, or restore --undo DIR: one of them, and only the directory"
            )
        _resume(Path(places[0]), backwards=undo)
        return
    if len(places) != 2:
        raise ConfigError("restore ZIP DIR: name the archive and the directory")
    archive, folder = places[0], Path(places[1])
    options = Options(into_existing, is_stopped, tuple(only or ()), check_kind(check))
    try:
        with stoppable(), open_archive(archive, max_bytes=max_bytes) as opened:
            contents = read_contents(opened, max_bytes=max_bytes)
            if dry_run:
                _show_plan(plan_restore(opened, contents, folder, options), contents)
                return
            restored = _restore(opened, contents, folder, options)
            _tell(opened, contents, restored, folder)
    except ArchiveError as error:
        raise refused(archive, error, as_json=False) from error


def _restore(opened: ArchiveFile, contents: Contents, folder: Path, options: Options) -> Restored:
    with byte_progress("restore", contents.total_bytes) as progress:
        return put_back(opened, contents, folder, options, progress)


def _tell(opened: ArchiveFile, contents: Contents, restored: Restored, folder: Path) -> None:
    plan, report = restored.plan, restored.report
    databases = sum(item.is_database for item in plan.items)
    done = f"{count(databases, 'database')}, {count(len(plan.items) - databases, 'file')}"
    size = human_bytes(sum(item.entry.size_bytes for item in plan.items))
    complain(f"{folder}: restored {done}, {size}, from {opened.name}")
    if restored.before is not None:
        complain(f"the old files are in {restored.before}; remove it when they are not needed any more")
    for finding in report.damaged:
        complain(f"not asked for, and damaged in the archive: {finding.name}")
    for finding in report.findings:
        if finding.check is not None and finding.check.word in ("unable", "unfinished"):
            complain(f"{finding.name}: could not be checked: {finding.check.text}")
    _tell_missing(contents)
    if contents.claims is not None and contents.claims.missing:
        raise typer.Exit(INCOMPLETE)


def _tell_missing(contents: Contents) -> None:
    """What a person must know before relying on what was restored."""
    if contents.claims is None:
        complain("the archive has no manifest: nothing says what should have been in it")
        return
    for source in contents.claims.missing:
        if not source.is_in_archive:
            complain(f"not in the archive, since its backup failed: {source.name}: {source.error_message}")


def _show_plan(plan: Plan, contents: Contents) -> None:
    lines = []
    for item in plan.items:
        verb = "replace" if item.replaces else "add"
        lines.append(f"{verb}  {item.path}  {human_bytes(item.entry.size_bytes)}")
        lines += [f"put aside  {sidecar}" for sidecar in item.sidecars]
    lines += [f"keep  {path}" for path in plan.keeps]
    for line in lines:
        show(printable(line))
    complain(f"{plan.folder}: {_WAYS[plan.way]}; {human_bytes(plan.needed_bytes)} needed")
    for spot in blind_spots() if plan.replaces_databases else ():
        complain(f"not to be seen from here: {spot}")
    _tell_missing(contents)
    complain(
        "nothing was written; the archive's structure is good, and its bytes are proved by the restore itself"
    )


def _resume(folder: Path, *, backwards: bool) -> None:
    with stoppable():
        journal, told = resume(folder, backwards=backwards)
    if backwards:
        complain(f"{folder}: as it was before {journal.archive} was restored")
        for kept in told:
            complain(f"files that were written to meanwhile are in {kept}")
        return
    complain(f"{folder}: {count(len(journal.swaps), 'file')} restored from {journal.archive}")
    if (folder / journal.before).is_dir():
        complain(
            f"the old files are in {folder / journal.before}; remove it when they are not needed any more"
        )
    for path in told:
        complain(f"{path} was written to since it was restored: did the application run meanwhile?")
