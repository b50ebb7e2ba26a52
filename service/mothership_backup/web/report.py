"""What the log says about a backup that has ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from mothership_backup.backup import Outcome
from mothership_backup.credentials import redact
from mothership_backup.manifest import Source
from mothership_backup.web.delivery import Delivery
from mothership_backup.web.recording import parameters

log: Final = logging.getLogger("mothership_backup")

WHOLE: Final = ("complete", "incomplete")
LEVELS: Final = {"complete": logging.INFO, "failed": logging.ERROR}


def report(delivery: Delivery, outcome: Outcome, slow_backup_seconds: float) -> None:
    """One line for each database in the archive, one for each source that failed, and the backup's audit line."""
    backup = delivery.backup
    line = _Line(delivery.request_id, backup.id)
    for source in backup.plan.sources if backup.plan is not None else ():
        if failure := _failure(source, outcome):
            _report_failure(line, source, failure)
        elif source.kind == "database" and source.status == "ok" and outcome.word in WHOLE:
            _report_database(line, source)
    level, text = LEVELS.get(outcome.word, logging.WARNING), _audit(delivery, outcome)
    if outcome.duration_seconds > slow_backup_seconds:
        level = max(level, logging.WARNING)
        text += f", which is over log.slow_backup_seconds ({slow_backup_seconds:g})"
    line.write(level, f"{text}; for {_who(delivery)}", _audit_fields(delivery, outcome))
    if backup.reader_stderr and outcome.word == "failed":
        line.write(logging.ERROR, f": its reader wrote: {backup.reader_stderr.strip()}", {})


class _Line:
    """Begins each line of one backup in the same way."""

    def __init__(self, request_id: str, backup_id: str) -> None:
        self._ids = {"request_id": request_id, "backup_id": backup_id}

    def write(self, level: int, text: str, fields: Mapping[str, object]) -> None:
        text = one_line("request {request_id}: backup {backup_id}".format(**self._ids) + text)
        log.log(level, "%s", redact(text), extra={**self._ids, **fields})


def _audit(delivery: Delivery, outcome: Outcome) -> str:
    plan = delivery.backup.plan
    text = f": {outcome.word}"
    if outcome.reason:
        text += f" ({outcome.reason})"
    if plan is not None:
        text += f": {plan.databases} databases, {outcome.failed} sources failed"
    return text + f", {outcome.sent_bytes} bytes sent in {outcome.duration_seconds:.2f} s"


def _who(delivery: Delivery) -> str:
    """And what was asked for, in the words of the query."""
    identity = delivery.identity
    credential = f" ({identity.name})" if identity.name else ""
    asked = " ".join(
        f"{name}={value}" for name, value in parameters(delivery.backup.options).items() if value != []
    )
    return f"{identity.client}{credential}, {asked}"


def _audit_fields(delivery: Delivery, outcome: Outcome) -> dict[str, object]:
    return {
        "client": delivery.identity.client,
        "credential": delivery.identity.name,
        "parameters": parameters(delivery.backup.options),
        "outcome": outcome.word,
        "reason": outcome.reason,
        "failed": outcome.failed,
        "sent_bytes": outcome.sent_bytes,
        "duration_seconds": round(outcome.duration_seconds, 3),
    }


def _failure(source: Source, outcome: Outcome) -> str:
    if source.name in outcome.failures:
        return outcome.failures[source.name]
    if source.status == "failed":  # of a backup that was refused because of it
        return source.error_message or source.error_code or "failed"
    return ""


def _report_failure(line: _Line, source: Source, failure: str) -> None:
    line.write(
        logging.WARNING, f": {source.name}: failed: {failure}", {"source": source.name, "status": "failed"}
    )


def _report_database(line: _Line, source: Source) -> None:
    fields = {"source": source.name, "status": "ok", "size_bytes": source.size_bytes, "engine": source.engine}
    line.write(logging.INFO, f": {source.name}: {source.size_bytes} bytes, {source.engine}", fields)


def one_line(text: str) -> str:
    """The name of a file may hold a line break: it is not to look like a line of its own."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
