"""A backup that has ended -> its record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Final

from mothership_backup.backup import Options, Outcome
from mothership_backup.credentials import redact
from mothership_backup.history import Record
from mothership_backup.manifest import Plan, Source, describe
from mothership_backup.web.delivery import Delivery

MAX_SOURCES: Final = 100
MAX_CHARACTERS: Final = 500


def record(delivery: Delivery, outcome: Outcome) -> Record:
    """What the history keeps of it; after ``answer()``."""
    plan = delivery.backup.plan
    return Record(
        id=delivery.backup.id,
        started_at=delivery.started_at,
        ended_at=time.time(),
        client=delivery.identity.client,
        credential=delivery.identity.name,
        parameters=parameters(delivery.backup.options),
        outcome=outcome.word,
        reason=_bounded(outcome.reason),
        sent_bytes=outcome.sent_bytes,
        total_bytes=plan.total_bytes if plan is not None else None,
        duration_seconds=round(outcome.duration_seconds, 3),
        database_count=plan.databases if plan is not None else None,
        failed_sources=failed_sources(plan, outcome) if plan is not None else None,
        source_count=len(plan.sources) if plan is not None else 0,
        sources=tuple(islice(_results(plan, outcome.failures), MAX_SOURCES)) if plan is not None else (),
    )


def parameters(options: Options) -> dict[str, object]:
    """In the words of the query."""
    return {
        "compression": options.compression,
        "check": options.check,
        "strict": options.strict,
        "database": [redact(pattern) for pattern in options.databases],
        "files": options.files,
    }


def failed_sources(plan: Plan, outcome: Outcome) -> int:
    """Those that are missing or damaged; of a backup that did not get to its archive, those of its plan."""
    return outcome.failed or plan.failed


def _results(plan: Plan, failures: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """Those that failed first: what is cut off at the end is the least of it."""

    def has_failed(source: Source) -> bool:
        return source.status == "failed" or source.name in failures

    for source in chain(
        (source for source in plan.sources if has_failed(source)),
        (source for source in plan.sources if not has_failed(source)),
    ):
        message = failures.get(source.name) or source.error_message or ""
        document = describe(source)
        if has_failed(source):
            document |= {
                "status": "failed",
                "error": {"code": source.error_code or "failed", "message": _bounded(message)},
            }
        yield document


def _bounded(text: str) -> str:
    """Of a length that a row can have, without a token, and text also where it names a path that is none."""
    return redact(text)[:MAX_CHARACTERS].encode("utf-8", "backslashreplace").decode()
