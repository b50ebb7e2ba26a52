"""What a request for a backup is answered with."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from aiohttp import hdrs, web

from mothership_backup.backup import Options
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError
from mothership_backup.web import problems, query
from mothership_backup.web.auth import Auth
from mothership_backup.web.delivery import new_response
from mothership_backup.web.problems import RequestError
from mothership_backup.web.report import one_line, report
from mothership_backup.web.running import Running

log: Final = logging.getLogger("mothership_backup")


class Handlers:
    """The handlers of one mount. None of them raises for a request's sake: errors are responses too."""

    def __init__(self, settings: Settings, running: Running, auth: Auth) -> None:
        self._settings = settings
        self._auth = auth
        self._running = running
        self._defaults = Options.of(settings)

    async def get_backup(self, request: web.Request) -> web.StreamResponse:
        """The archive."""
        try:
            self._auth.admit(request, "backup")
            options = self._options(request)
            _refuse_range(request)
            delivery = self._running.start(request, options)
        except BackupError as error:
            return _refused(request, error)
        try:
            return await delivery.answer()
        finally:
            self._running.end(delivery)
            slow_backup_seconds = self._settings.log.slow_backup_seconds
            report(delivery.backup, delivery.outcome(), slow_backup_seconds)

    async def head_backup(self, request: web.Request) -> web.StreamResponse:
        """The headers that GET would have now: a plan, nothing copied, no slot taken."""
        try:
            self._auth.admit(request, "backup")
            options = self._options(request)
            self._running.refuse_when_closing()
            backup = await self._running.plans.get(options)
        except BackupError as error:
            return _refused(request, error)
        return new_response(self._settings, backup)

    async def refuse_method(self, request: web.Request) -> web.StreamResponse:
        """405, to those who would get a backup."""
        try:
            self._auth.admit(request, "backup")
        except BackupError as error:
            return _refused(request, error)
        message = f"{request.method} is not allowed here, only {problems.ALLOWED_METHODS}"
        return _refused(request, RequestError(message, code="method_not_allowed"))

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


def _refused(request: web.Request, error: BackupError) -> web.StreamResponse:
    request_id = problems.new_request_id()
    level = logging.WARNING if problems.status_of(error.code) >= 500 else logging.INFO
    text = one_line(f"{request.method} {request.path} from {request.remote}: {error.code}: {error.message}")
    log.log(level, "request %s: %s", request_id, text, extra={"request_id": request_id, "code": error.code})
    return problems.respond(request, request_id, error)
