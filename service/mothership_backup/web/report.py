"""What the log says about a backup that has ended."""

from __future__ import annotations

import logging
from typing import Final

from mothership_backup.backup import Backup, Outcome
from mothership_backup.manifest import Source

log: Final = logging.getLogger("mothership_backup")

WHOLE: Final = ("complete", "incomplete")
LEVELS: Final = {"complete": logging.INFO, "failed": logging.ERROR}


def report(backup: Backup, outcome: Outcome, slow_backup_seconds: float) -> None:
    """One line for each database in the archive, one for each source that failed, and one for the backup."""
    backup_id, plan = backup.id, backup.plan
    for source in plan.sources if plan is not None else ():
        if failure := _failure(source, outcome):
            _report_failure(backup_id, source, failure)
        elif source.kind == "database" and source.status == "ok" and outcome.word in WHOLE:
            _report_database(backup_id, source)
    level = LEVELS.get(outcome.word, logging.WARNING)
    text = f"backup {backup_id}: {outcome.word}"
    if outcome.reason:
        text += f" ({outcome.reason})"
    if plan is not None:
        text += f": {plan.databases} databases, {outcome.failed} sources failed"
    text += f", {outcome.sent_bytes} bytes sent in {outcome.duration_seconds:.2f} s"
    if outcome.duration_seconds > slow_backup_seconds:
        level = max(level, logging.WARNING)
        text += f", which is over log.slow_backup_seconds ({slow_backup_seconds:g})"
    fields = {
        "backup_id": backup_id,
        "outcome": outcome.word,
        "reason": outcome.reason,
        "failed": outcome.failed,
        "sent_bytes": outcome.sent_bytes,
        "duration_seconds": round(outcome.duration_seconds, 3),
    }
    log.log(level, "%s", one_line(text), extra=fields)
    if backup.reader_stderr and outcome.word == "failed":
        log.error("backup %s: its reader wrote: %s", backup_id, one_line(backup.reader_stderr.strip()))


def _failure(source: Source, outcome: Outcome) -> str:
    if source.name in outcome.failures:
        return outcome.failures[source.name]
    if source.status == "failed":  # of a backup that was refused because of it
        return source.error_message or source.error_code or "failed"
    return ""


def _report_failure(backup_id: str, source: Source, failure: str) -> None:
    fields = {"backup_id": backup_id, "source": source.name, "status": "failed"}
    log.warning("%s", one_line(f"backup {backup_id}: {source.name}: failed: {failure}"), extra=fields)


def _report_database(backup_id: str, source: Source) -> None:
    fields = {"backup_id": backup_id, "source": source.name, "status": "ok", "size_bytes": source.size_bytes}
    text = f"backup {backup_id}: {source.name}: {source.size_bytes} bytes, {source.engine}"
    log.info("%s", one_line(text), extra={**fields, "engine": source.engine})


def one_line(text: str) -> str:
    """The name of a file may hold a line break: it is not to look like a line of its own."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
