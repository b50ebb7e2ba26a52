"""`verify ZIP|-`: is this archive whole, and every database in it good?"""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import typer

from mothership_backup.cli import INCOMPLETE, NOT_WHOLE
from mothership_backup.cli.progress import byte_progress
from mothership_backup.cli.stopping import stoppable
from mothership_backup.cli.terminal import complain, count, human_bytes, show
from mothership_backup.errors import ArchiveError, ConfigError
from mothership_backup.verify.archive_file import ArchiveFile, open_archive, shown_name
from mothership_backup.verify.contents import Contents, read_contents
from mothership_backup.verify.scratch import Scratch
from mothership_backup.verify.verdict import Check, Finding, Report
from mothership_backup.verify.verdict import verify as judge

ArchiveArgument = Annotated[str, typer.Argument(metavar="ZIP|-", help="The archive; - is standard input.")]
CheckOption = Annotated[str, typer.Option(metavar="none|quick|full", help="How SQLite checks each database.")]
MaxBytes = Annotated[
    int | None, typer.Option("--max-bytes", min=0, help="Refuse what is longer, or unpacks to more bytes.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]


def verify(
    archive: ArchiveArgument,
    check: CheckOption = "quick",
    max_bytes: MaxBytes = None,
    as_json: AsJson = False,
) -> None:
    """Prove that an archive is whole, and check every database in it."""
    kind = check_kind(check)
    try:
        with stoppable(), open_archive(archive, max_bytes=max_bytes) as opened:
            contents = read_contents(opened, max_bytes=max_bytes)
            report = _judge(opened, contents, kind)
    except ArchiveError as error:
        raise refused(archive, error, as_json=as_json) from error
    if as_json:
        show(json.dumps(_document(opened, contents, report, kind), indent=2))
    _tell(opened, contents, report)
    if report.word != "whole":
        raise typer.Exit(NOT_WHOLE if report.damaged else INCOMPLETE)


def refused(archive: str, error: ArchiveError, *, as_json: bool) -> ArchiveError:
    """The error with the archive's name; told to machines already."""
    name = shown_name(archive)
    if as_json:
        refusal = {"code": error.code, "message": error.message}
        show(json.dumps({"archive": name, "verdict": "not_whole", "error": refusal}, indent=2))
    return ArchiveError(f"{name}: {error.message}", code=error.code)


def check_kind(text: str) -> Check:
    """Raises ConfigError."""
    for kind in get_args(Check):
        if text == kind:
            return kind  # type: ignore[no-any-return]  # get_args knows no types
    raise ConfigError(f"--check: {text!r} is not none, quick or full")


def _judge(opened: ArchiveFile, contents: Contents, check: Check) -> Report:
    scratch = Scratch()
    with byte_progress("verify", contents.total_bytes) as progress:
        return judge(
            opened,
            contents,
            check=check,
            make_place=(lambda entry, is_database: None) if check == "none" else scratch,
            progress=progress,
        )


def _tell(opened: ArchiveFile, contents: Contents, report: Report) -> None:
    for finding in report.damaged:
        complain(f"{finding.name}: {why_damaged(finding, contents)}")
    for finding in report.findings:
        if finding.check is not None and finding.check.word in ("unable", "unfinished"):
            complain(f"{finding.name}: could not be checked: {finding.check.text}")
    claims = contents.claims
    if claims is None:
        complain(
            f"{opened.name} has no manifest: nothing says what should be in it, so only what is there was proved"
        )
    else:
        for source in claims.missing:
            complain(f"{source.name}: failed when it was backed up: {source.error_message}")
    complain(f"{opened.name}: {summary(contents, report)}")


def why_damaged(finding: Finding, contents: Contents) -> str:
    """The reason, and whether the backup knew of it."""
    if finding.problem:
        return finding.problem.removeprefix(f"{finding.name}: ")
    text = finding.check.text if finding.check is not None else ""
    known = any(
        source.name == finding.name for source in (contents.claims.missing if contents.claims else ())
    )
    when = " (it was so when it was backed up)" if known else ""
    return f"SQLite finds it damaged: {text}{when}"


def summary(contents: Contents, report: Report) -> str:
    """One line of the whole."""
    databases = sum(finding.is_database for finding in report.findings)
    parts = [
        count(databases, "database"),
        count(len(report.findings) - databases, "file"),
        human_bytes(contents.total_bytes),
    ]
    if contents.claims is not None:
        parts.append(f"of {contents.claims.created_at}")
    return f"{report.word}: {', '.join(parts)}"


def _document(opened: ArchiveFile, contents: Contents, report: Report, check: str) -> dict[str, Any]:
    claims = contents.claims
    document: dict[str, Any] = {
        "archive": opened.name,
        "verdict": report.word,
        "has_manifest": claims is not None,
        "check": check,
        "archive_bytes": opened.size_bytes,
        "total_bytes": contents.total_bytes,
    }
    if claims is not None:
        document |= {
            "backup_id": claims.backup_id,
            "created_at": claims.created_at,
            "app_version": claims.app_version,
            "complete": claims.complete,
            "failed": [
                {"name": source.name, "error": {"code": source.error_code, "message": source.error_message}}
                for source in claims.missing
            ],
        }
    return document | {"sources": [_describe(finding, contents) for finding in report.findings]}


def _describe(finding: Finding, contents: Contents) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": finding.name,
        "kind": "database" if finding.is_database else "file",
        "size_bytes": finding.size_bytes,
        "status": "damaged" if finding.is_damaged else "ok",
    }
    if finding.check is not None:
        document["check"] = {"verdict": finding.check.word, "text": finding.check.text}
    if finding.is_damaged:
        document["error"] = why_damaged(finding, contents)
    return document
