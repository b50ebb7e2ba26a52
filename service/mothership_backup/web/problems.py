"""Error code -> HTTP status, and the JSON that says it (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from mothership_backup.credentials import redact
from mothership_backup.errors import BackupError

RETRY_AFTER_SECONDS: Final = 5
ALLOWED_METHODS: Final = "GET, HEAD"
REALM: Final = "mothership-backup"
#: Browsers and wget know Basic only.
CHALLENGES: Final = (f'Bearer realm="{REALM}"', f'Basic realm="{REALM}", charset="UTF-8"')

#: A code that is not here is a 500.
STATUSES: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "bad_parameter": HTTPStatus.BAD_REQUEST,
        "bad_forwarded": HTTPStatus.BAD_REQUEST,
        "unauthorized": HTTPStatus.UNAUTHORIZED,
        "expired": HTTPStatus.UNAUTHORIZED,
        "anonymous_refused": HTTPStatus.FORBIDDEN,
        "forbidden_scope": HTTPStatus.FORBIDDEN,
        "forbidden_network": HTTPStatus.FORBIDDEN,
        "not_found": HTTPStatus.NOT_FOUND,
        "no_match": HTTPStatus.NOT_FOUND,
        "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
        "backup_ended": HTTPStatus.CONFLICT,
        "cancelled": HTTPStatus.CONFLICT,  # not 503: curl --retry would begin it again
        # Not 416: wget and curl -C - then end well with a short file. Not 200: wget joins two snapshots.
        "range_refused": HTTPStatus.PRECONDITION_FAILED,
        "throttled": HTTPStatus.TOO_MANY_REQUESTS,
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

    Codes: ``bad_parameter``, ``bad_forwarded``, ``unauthorized``, ``expired``, ``anonymous_refused``,
    ``forbidden_scope``, ``forbidden_network``, ``range_refused``, ``method_not_allowed``, ``not_found``,
    ``backup_ended``.
    """

    code = "bad_parameter"


class MethodError(RequestError):
    """Another method than those that there are."""

    code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here, only {allowed}", code=self.code)
        self.allowed = allowed


class ThrottledError(RequestError):
    """Too many wrong credentials from one network; a right one is let in all the same."""

    code = "throttled"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message, code=self.code)
        self.retry_after_seconds = retry_after_seconds


def status_of(code: str) -> HTTPStatus:
    return STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def respond(request: web.BaseRequest, request_id: str, error: BackupError) -> web.Response:
    """The answer to a request that failed before its first byte: returned, never raised."""
    headers = CIMultiDict[str]()
    if error.code in PASSING:
        headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, ThrottledError):
        headers[hdrs.RETRY_AFTER] = str(error.retry_after_seconds)
    if status_of(error.code) is HTTPStatus.UNAUTHORIZED:
        headers.extend((hdrs.WWW_AUTHENTICATE, challenge) for challenge in CHALLENGES)
    if error.code == "method_not_allowed":
        headers[hdrs.ALLOW] = error.allowed if isinstance(error, MethodError) else ALLOWED_METHODS
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
    response = web.Response(
        status=status,
        body=redact(json.dumps(members)).encode() + b"\n",  # they may repeat what the client has sent
        content_type="application/problem+json" if _wants_problem(request) else "application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"},
    )
    response.headers.extend(headers)  # not update: there are two challenges
    return response


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
