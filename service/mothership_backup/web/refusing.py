"""A request that gets no answer but an error: told in the log, and to the client."""

from __future__ import annotations

import logging
from typing import Final

from aiohttp import web

from mothership_backup.credentials import redact
from mothership_backup.errors import BackupError
from mothership_backup.web import forwarded, problems, request_id
from mothership_backup.web.report import one_line

log: Final = logging.getLogger("mothership_backup")


def refuse(request: web.Request, error: BackupError) -> web.Response:
    """The answer: returned, never raised, since a host's middleware would make another one of it."""
    name = request_id.of(request)
    level = logging.WARNING if problems.status_of(error.code) >= 500 else logging.INFO
    client = forwarded.remembered(request)
    text = redact(one_line(f"{request.method} {request.path} from {client}: {error.code}: {error.message}"))
    log.log(level, "request %s: %s", name, text, extra={"request_id": name, "code": error.code})
    return problems.respond(request, name, error)
