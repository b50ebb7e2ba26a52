"""Error code -> HTTP status, and the JSON that says it (RFC 9457)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import hdrs, web

from mothership_backup.errors import BackupError

RETRY_AFTER_SECONDS: Final = 5
ALLOWED_METHODS: Final = "GET, HEAD"

#: A code that is not here is a 500.
STATUSES: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "bad_parameter": HTTPStatus.BAD_REQUEST,
        "anonymous_refused": HTTPStatus.FORBIDDEN,
        "not_found": HTTPStatus.NOT_FOUND,
        "no_match": HTTPStatus.NOT_FOUND,
        "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
        # Not 416: wget and curl -C - then end well with a short file. Not 200: wget joins two snapshots.
        "range_refused": HTTPStatus.PRECONDITION_FAILED,
        "busy": HTTPStatus.SERVICE_UNAVAILABLE,
        "shutting_down": HTTPStatus.SERVICE_UNAVAILABLE,
        "shutdown": HTTPStatus.SERVICE_UNAVAILABLE,
        "too_many_databases": HTTPStatus.SERVICE_UNAVAILABLE,
        "data_dir_restoring": HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
#: With these the same request may succeed soon.
PASSING: Final = frozenset({"busy", "shutting_down", "shutdown"})


class RequestError(BackupError):
    """A request that is refused as it stands.

    Codes: ``bad_parameter``, ``anonymous_refused``, ``range_refused``, ``method_not_allowed``.
    """

    code = "bad_parameter"


def new_request_id() -> str:
    """The same word in the answer and in the log."""
    return secrets.token_hex(8)


def status_of(code: str) -> HTTPStatus:
    return STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def respond(request: web.BaseRequest, request_id: str, error: BackupError) -> web.Response:
    """The answer to a request that failed before its first byte: returned, never raised."""
    headers: dict[str, str] = {}
    if error.code in PASSING:
        headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
    if error.code == "method_not_allowed":
        headers[hdrs.ALLOW] = ALLOWED_METHODS
    return _respond(request, request_id, error.code, status_of(error.code), error.message, headers)


def respond_http(request: web.BaseRequest, request_id: str, error: web.HTTPException) -> web.Response:
    """What aiohttp raises itself (no such path, a wrong method), in our words."""
    status = HTTPStatus(error.status)
    message = f"{request.method} {request.path}: {status.phrase}"
    allow = {str(hdrs.ALLOW): error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
    return _respond(request, request_id, status.name.lower(), status, message, allow)


def respond_internal(request: web.BaseRequest, request_id: str) -> web.Response:
    """A defect: what it is stands in the log."""
    message = f"something unexpected happened; the service's log has more under {request_id}"
    return _respond(request, request_id, "internal", HTTPStatus.INTERNAL_SERVER_ERROR, message, {})


def _respond(
    request: web.BaseRequest,
    request_id: str,
    code: str,
    status: HTTPStatus,
    message: str,
    headers: Mapping[str, str],
) -> web.Response:
    members = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": message,
        "code": code,
        "error": message,
        "request_id": request_id,
    }
    return web.Response(
        status=status,
        body=json.dumps(members).encode() + b"\n",
        content_type="application/problem+json" if _wants_problem(request) else "application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff", **headers},
    )


def _wants_problem(request: web.BaseRequest) -> bool:
    """Only if the client names it: Home Assistant's rest_command reads nothing but application/json."""
    for item in ",".join(request.headers.getall(hdrs.ACCEPT, ())).split(","):
        media_type, *parameters = (word.strip().lower() for word in item.split(";"))
        if media_type == "application/problem+json":
            return not any(_is_zero_quality(parameter) for parameter in parameters)
    return False


def _is_zero_quality(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().replace(".", "").strip("0") == ""
