"""One name for a request: in its answer, in its log lines, and at whoever sent it along."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Final

from aiohttp import web

from mothership_backup.credentials import TOKEN

HEADER: Final = "X-Request-Id"
GIVEN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# aiohttp warns of plain text from 3.14 on, and has nothing else before.
KEY: Final = (
    "mothership_backup.request_id"
    if not hasattr(web, "RequestKey")
    else web.RequestKey("mothership_backup.request_id", str)
)


def of(request: web.BaseRequest) -> str:
    """The client's own, if it can stand in a log line and a header as it is; else a new one, kept."""
    if KEY not in request:
        given = request.headers.getall(HEADER, [])
        match = GIVEN.fullmatch(given[0]) if len(given) == 1 else None
        is_token = match is not None and TOKEN.search(match[0]) is not None  # which belongs in no log
        request[KEY] = match[0] if match and not is_token else secrets.token_hex(8)
    return str(request[KEY])


def send_back(app: web.Application, is_ours: Callable[[web.AbstractRoute], bool]) -> None:
    """Put it on each response to our routes; those of the host stay as they are."""

    async def add_header(request: web.Request, response: web.StreamResponse) -> None:
        if is_ours(request.match_info.route):
            response.headers[HEADER] = of(request)

    app.on_response_prepare.append(add_header)
