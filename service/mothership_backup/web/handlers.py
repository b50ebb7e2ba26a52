"""What a request for a backup is answered with."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import hdrs, web

from mothership_backup.backup import Options
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError
from mothership_backup.history import History
from mothership_backup.web import query
from mothership_backup.web.auth import Auth
from mothership_backup.web.delivery import Delivery, new_response
from mothership_backup.web.metrics import Metrics
from mothership_backup.web.problems import RequestError
from mothership_backup.web.recording import failed_sources, record
from mothership_backup.web.refusing import refuse
from mothership_backup.web.report import report
from mothership_backup.web.running import Running


class Handlers:
    """The handlers of one mount. None of them raises for a request's sake: errors are responses too."""

    def __init__(
        self, settings: Settings, running: Running, auth: Auth, history: History, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._auth = auth
        self._running = running
        self._history = history
        self._metrics = metrics
        self._defaults = Options.of(settings)

    async def get_backup(self, request: web.Request) -> web.StreamResponse:
        """The archive."""
        try:
            identity = self._auth.admit(request, "backup")
            options = self._options(request)
            _refuse_range(request)
            delivery = self._running.start(request, options, identity)
        except BackupError as error:
            self._metrics.note_refusal(error)
            return refuse(request, error)
        try:
            return await delivery.answer()
        finally:
            self._running.end(delivery)
            self._end(delivery)

    async def head_backup(self, request: web.Request) -> web.StreamResponse:
        """The headers that GET would have now: a plan, nothing copied, no slot taken."""
        try:
            self._auth.admit(request, "backup")
            options = self._options(request)
            self._running.refuse_when_closing()
            backup = await self._running.plans.get(options)
            self._metrics.note_plan(self._running, backup)
        except BackupError as error:
            return refuse(request, error)
        return new_response(self._settings, backup)

    def _end(self, delivery: Delivery) -> None:
        outcome = delivery.outcome()
        report(delivery, outcome, self._settings.log.slow_backup_seconds)
        self._metrics.note_end(self._running, delivery.backup, outcome)
        self._history.add(record(delivery, outcome))
        plan = delivery.backup.plan
        if plan is not None:
            failed = failed_sources(plan, outcome)
            self._running.plans.note(delivery.backup, failed, delivery.started_at)

    def _options(self, request: web.Request) -> Options:
        options = query.parse(request.query, self._defaults)
        if request.version < (1, 1):
            # It knows no chunks, and without a length it takes a cut connection for the end.
            options = replace(options, compression="stored")
        return options


def _refuse_range(request: web.Request) -> None:
    """No part of a backup can be had: the next one is another snapshot. A range is ignored where HTTP says so."""
    if hdrs.IF_RANGE in request.headers:
        return
    ranges = ",".join(request.headers.getall(hdrs.RANGE, ()))
    unit, _, positions = ranges.partition("=")
    if unit.strip().lower() == "bytes" and positions.strip() != "0-":
        message = "a backup cannot be resumed: each one is a new snapshot; fetch it from its first byte"
        raise RequestError(message, code="range_refused")
