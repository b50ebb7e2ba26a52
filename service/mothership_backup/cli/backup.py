"""`backup FILE|-`: one backup into a file or a pipe, by the same pipeline as over HTTP."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mothership_backup.backup import Backup, Options, Outcome
from mothership_backup.cli import INCOMPLETE
from mothership_backup.cli.options import ConfigFile, DataDir, load_settings
from mothership_backup.cli.output import FileOutput, Output, StandardOutput
from mothership_backup.cli.progress import byte_progress
from mothership_backup.cli.stopping import stoppable
from mothership_backup.cli.terminal import STANDARD_OUTPUT, complain, count, human_bytes
from mothership_backup.config import Option
from mothership_backup.errors import BackupError, ReaderError


def backup(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Where the archive goes; - is standard output.")
    ],
    config: ConfigFile = None,
    data_dir: DataDir = None,
    compression: Annotated[str | None, typer.Option(metavar="deflate|stored")] = None,
    check: Annotated[str | None, typer.Option(metavar="none|quick|full")] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--no-strict", help="Write nothing rather than an incomplete archive."),
    ] = None,
    database: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only these databases (repeatable).")
    ] = None,
    no_files: Annotated[bool, typer.Option("--no-files", help="Only databases.")] = False,
) -> None:
    """Write one backup to FILE, or to standard output."""
    settings = load_settings(
        config,
        data_dir,
        Option("--compression", "archive", "compression", compression),
        Option("--check", "archive", "check", check),
        Option("--strict", "archive", "strict", strict),
    )
    options = dataclasses.replace(Options.of(settings), databases=tuple(database or ()), files=not no_files)
    output: Output = StandardOutput() if file == "-" else FileOutput(Path(file), settings.data.dir)
    with stoppable(), output:
        run = Backup(settings, options)
        outcome = _write(run, output)
        place = output.keep(complete=not outcome.failed)
    _tell(run, outcome, place, file)
    if outcome.failed:
        raise typer.Exit(INCOMPLETE)


def _write(run: Backup, output: Output) -> Outcome:
    try:
        chunks = run.chunks()
        output.write(next(chunks))  # it is decided: a stored archive has its length now
        with byte_progress("backup", run.content_length) as progress:
            for chunk in chunks:
                output.write(chunk)
                progress(len(chunk))
    except BaseException as error:
        run.cancel(error if isinstance(error, BackupError) else BackupError("interrupted"))
        raise
    if run.outcome is None:
        raise ReaderError("the backup ended without an outcome", code="reader_protocol")
    return run.outcome


def _tell(run: Backup, outcome: Outcome, place: str, asked_for: str) -> None:
    for name, reason in outcome.failures.items():
        complain(f"{name}: {reason}")
    sources = run.plan.sources if run.plan is not None else ()
    taken = [source for source in sources if source.status == "ok" and source.name not in outcome.failures]
    databases = sum(source.kind == "database" for source in taken)
    parts = [
        count(databases, "database"),
        count(len(taken) - databases, "file"),
        human_bytes(outcome.sent_bytes),
        f"{outcome.duration_seconds:.1f} s",
        outcome.word,
    ]
    if outcome.failed:
        parts.append(f"{count(outcome.failed, 'source')} failed")
    complain(f"{place}: {', '.join(parts)}")
    if place not in (asked_for, STANDARD_OUTPUT):
        complain(f"{asked_for} is as it was: an incomplete archive does not replace it")
