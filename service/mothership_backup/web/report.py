"""What the log says about a backup that has ended."""

from __future__ import annotations

import logging
from typing import Final

from mothership_backup.backup import Outcome, Plan, Source

log: Final = logging.getLogger("mothership_backup")

LEVELS: Final = {"complete": logging.INFO, "failed": logging.ERROR}


def report(backup_id: str, plan: Plan | None, outcome: Outcome, slow_backup_seconds: float) -> None:
    """One line for each database, one for each other source that failed, and one for the backup."""
    for source in plan.sources if plan is not None else ():
        _report_source(backup_id, source, outcome.failures.get(source.name))
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


def _report_source(backup_id: str, source: Source, failure: str | None) -> None:
    if failure is None and source.status == "failed":  # of a backup that was refused, or did not get that far
        failure = source.error_message or source.error_code or "failed"
    fields = {
        "backup_id": backup_id,
        "source": source.name,
        "size_bytes": source.size_bytes,
        "engine": source.engine,
    }
    start = f"backup {backup_id}: {source.name}"
    if failure is not None:
        log.warning("%s", one_line(f"{start}: failed: {failure}"), extra={**fields, "status": "failed"})
    elif source.kind == "database" and source.status == "ok":
        text = f"{start}: {source.size_bytes} bytes, {source.engine}"
        log.info("%s", one_line(text), extra={**fields, "status": "ok"})


def one_line(text: str) -> str:
    """The name of a file may hold a line break: it is not to look like a line of its own."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
