"""How things stand, in a few flat values for automations: from memory, nothing is read or started for it."""

from __future__ import annotations

import time

from aiohttp import web

from mothership_backup import __version__
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError
from mothership_backup.history import History, timestamp
from mothership_backup.web import documents
from mothership_backup.web.auth import Auth
from mothership_backup.web.plans import Coverage
from mothership_backup.web.refusing import refuse
from mothership_backup.web.running import Running


class Status:
    """The handler of ``/status`` in one mount."""

    def __init__(self, settings: Settings, running: Running, history: History, auth: Auth) -> None:
        self._app_version = settings.data.version
        self._running = running
        self._history = history
        self._auth = auth
        self._began = time.monotonic()

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        try:
            self._auth.admit(request, "status")
        except BackupError as error:
            return refuse(request, error)
        return documents.respond(documents.encode(self._document()))

    def _document(self) -> dict[str, object]:
        last, coverage = self._history.last, self._coverage()
        success_at = self._history.last_success_at
        return {
            "version": __version__,
            "app_version": self._app_version or (coverage and coverage.app_version) or None,
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "last_success": timestamp(success_at) if success_at is not None else None,
            "last_success_age_seconds": _age_seconds(success_at),
            "last_outcome": last.outcome if last else None,
            "last_size_bytes": last.sent_bytes if last else None,
            "last_duration_seconds": last.duration_seconds if last else None,
            "last_error": (last.reason or None) if last else None,
            "running": len(self._running.deliveries),
            "database_count": coverage.database_count if coverage else None,
            "failed_sources": coverage.failed_sources if coverage else None,
            "planned_at": timestamp(coverage.planned_at) if coverage else None,
        }

    def _coverage(self) -> Coverage | None:
        """After a restart the last backup of before is the last that is known."""
        if self._running.plans.coverage is not None:
            return self._running.plans.coverage
        last = self._history.last
        if last is None or last.database_count is None or last.failed_sources is None:
            return None
        if last.parameters["database"] or not last.parameters["files"]:
            return None  # only a part was asked for
        return Coverage(last.started_at, last.database_count, last.failed_sources)


def _age_seconds(seconds: float | None) -> float | None:
    return round(max(time.time() - seconds, 0), 3) if seconds is not None else None
