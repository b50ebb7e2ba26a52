"""Past and running backups: list, look at one, cancel one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import web
from multidict import MultiMapping

from mothership_backup.errors import BackupError
from mothership_backup.history import History, Record, timestamp
from mothership_backup.web import documents
from mothership_backup.web.auth import Auth
from mothership_backup.web.delivery import Delivery
from mothership_backup.web.problems import RequestError
from mothership_backup.web.recording import parameters
from mothership_backup.web.refusing import refuse
from mothership_backup.web.running import Running

BACKUP_ID: Final = re.compile(r"[0-9a-f]{32}")
DEFAULT_LIMIT: Final = 20
#: Parameter -> the highest number it may be.
PARAMETERS: Final[Mapping[str, int]] = {"limit": 100, "cursor": 2**63 - 1}


class Backups:
    """The handlers of ``/backups`` in one mount."""

    def __init__(self, running: Running, history: History, auth: Auth) -> None:
        self._running = running
        self._history = history
        self._auth = auth

    async def list_backups(self, request: web.Request) -> web.StreamResponse:
        """Those that run now, and a page of those that have ended, newest first."""
        try:
            self._auth.admit(request, "status")
            numbers = _numbers(request.query)
            page = await self._history.page(numbers.get("limit", DEFAULT_LIMIT), numbers.get("cursor"))
        except BackupError as error:
            return refuse(request, error)
        document = {
            "running": [_describe_running(delivery) for delivery in self._running.deliveries],
            "backups": [_describe_ended(record) for record in page.records],
            "next": None if page.next is None else str(page.next),
        }
        return documents.respond(documents.encode(document))

    async def get_one(self, request: web.Request) -> web.StreamResponse:
        """One with its sources; while it runs, how far it has come."""
        try:
            self._auth.admit(request, "status")
            found = await self._find(request)
        except BackupError as error:
            return refuse(request, error)
        if isinstance(found, Record):
            document = {**_describe_ended(found), "sources": list(found.sources)}
        else:
            document = _describe_running(found)
        return documents.respond(documents.encode(document))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End it now; its client sees a reset. 202: that it has ended shows in its record."""
        try:
            who = self._auth.admit(request, "backup")
            found = await self._find(request)
            if isinstance(found, Record):
                raise RequestError(f"backup {found.id} has ended: {found.outcome}", code="backup_ended")
        except BackupError as error:
            return refuse(request, error)
        by = f"{who.name} at {who.client}" if who.name else who.client
        found.cut(BackupError(f"cancelled by {by}", code="cancelled"))
        return documents.respond(documents.encode(_describe_running(found)), 202)

    async def _find(self, request: web.Request) -> Delivery | Record:
        backup_id = request.match_info["id"]
        if BACKUP_ID.fullmatch(backup_id):
            # The history second: what ends meanwhile is there then.
            if delivery := self._running.find(backup_id):
                return delivery
            if record := await self._history.find(backup_id):
                return record
        raise RequestError("no such backup runs, and none is remembered", code="not_found")


def _numbers(query: MultiMapping[str]) -> dict[str, int]:
    """Raises RequestError (``bad_parameter``), which names the parameter."""
    numbers: dict[str, int] = {}
    for name, text in query.items():
        if name not in PARAMETERS:
            raise RequestError(f"{name!r}: unknown parameter; there are {', '.join(PARAMETERS)}")
        if name in numbers:
            raise RequestError(f"{name}: given twice")
        # Not only digits: int() takes 4,300 of them, and those of every script.
        if not re.fullmatch(r"[0-9]{1,19}", text) or not 1 <= int(text) <= PARAMETERS[name]:
            raise RequestError(f"{name}: {text[:40]!r} is not a number from 1 to {PARAMETERS[name]}")
        numbers[name] = int(text)
    return numbers


def _describe_running(delivery: Delivery) -> dict[str, object]:
    plan = delivery.backup.plan
    return {
        "id": delivery.backup.id,
        "running": True,
        "started_at": timestamp(delivery.started_at),
        "ended_at": None,
        "client": delivery.identity.client,
        "credential": delivery.identity.name,
        "parameters": parameters(delivery.backup.options),
        "outcome": None,
        "reason": "",
        "sent_bytes": delivery.sent_bytes,
        "content_length": delivery.backup.content_length,
        "total_bytes": plan.total_bytes if plan is not None else None,
        "duration_seconds": round(delivery.duration_seconds, 3),
        "database_count": plan.databases if plan is not None else None,
        "failed_sources": plan.failed if plan is not None else None,
        "source_count": len(plan.sources) if plan is not None else 0,
    }


def _describe_ended(record: Record) -> dict[str, object]:
    return {
        "id": record.id,
        "running": False,
        "started_at": timestamp(record.started_at),
        "ended_at": timestamp(record.ended_at),
        "client": record.client,
        "credential": record.credential,
        "parameters": record.parameters,
        "outcome": record.outcome,
        "reason": record.reason,
        "sent_bytes": record.sent_bytes,
        "total_bytes": record.total_bytes,
        "duration_seconds": record.duration_seconds,
        "database_count": record.database_count,
        "failed_sources": record.failed_sources,
        "source_count": record.source_count,
    }
