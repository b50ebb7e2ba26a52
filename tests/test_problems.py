from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mothership_backup import errors
from mothership_backup.credentials import new_token
from mothership_backup.errors import (
    BackupError,
    BusyError,
    ClosingError,
    CutError,
    DataDirError,
    IncompleteError,
    NoMatchError,
    NoneReadableError,
    ReaderError,
    TooManyDatabasesError,
)
from mothership_backup.web.problems import (
    STATUSES,
    RequestError,
    ThrottledError,
    respond,
    respond_http,
    status_of,
)


def answer(error: BackupError, **headers: str) -> web.Response:
    return respond(make_mocked_request("GET", "/api/backup", headers=headers), "cafe", error)


def members(response: web.Response) -> dict[str, object]:
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert isinstance(document, dict)
    return document


def codes() -> Iterator[str]:
    """Every code that the error tree names, in a class or in a docstring."""
    waiting = [BackupError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind.code
        if kind.__module__ == errors.__name__ and "Codes:" in (kind.__doc__ or ""):
            yield from re.findall(r"``(\w+)``", (kind.__doc__ or "").partition("Codes:")[2])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataDirError("", code="data_dir_missing"), 500),
        (DataDirError("", code="data_dir_not_a_directory"), 500),
        (DataDirError("", code="data_dir_unreadable"), 500),
        (DataDirError("", code="data_dir_restoring"), 503),
        (NoneReadableError(""), 500),
        (IncompleteError(""), 500),
        (ReaderError("", code="reader_silent"), 500),
        (ReaderError("", code="source_failed"), 500),
        (NoMatchError(""), 404),
        (TooManyDatabasesError(""), 503),
        (BusyError(""), 503),
        (ClosingError(""), 503),
        (CutError("", code="shutdown"), 503),
        (CutError("", code="wal_growth"), 500),
        (RequestError("", code="bad_parameter"), 400),
        (RequestError("", code="bad_forwarded"), 400),
        (RequestError("", code="unauthorized"), 401),
        (RequestError("", code="expired"), 401),
        (RequestError("", code="anonymous_refused"), 403),
        (RequestError("", code="forbidden_scope"), 403),
        (RequestError("", code="forbidden_network"), 403),
        (ThrottledError("", 60), 429),
        (RequestError("", code="method_not_allowed"), 405),
        (RequestError("", code="range_refused"), 412),
    ],
)
def test_statuses(error: BackupError, status: int) -> None:
    """Each error has the status that clients act on rightly."""
    assert answer(error).status == status


def test_table_holds_no_strangers() -> None:
    """A code in the table is one that is raised somewhere, or aiohttp's own `not_found`."""
    assert set(STATUSES) <= {
        *codes(),
        "anonymous_refused",
        "bad_forwarded",
        "unauthorized",
        "expired",
        "forbidden_scope",
        "forbidden_network",
        "throttled",
        "method_not_allowed",
        "backup_ended",
        "cancelled",
        "range_refused",
        "not_found",
        "data_dir_restoring",
    }


def test_every_code_has_an_error_status() -> None:
    """No code of the tree is answered as a success."""
    assert all(status_of(code) >= 400 for code in codes())


def test_members() -> None:
    """RFC 9457's members, and `code`, `error`, `request_id`."""
    response = answer(NoMatchError("no database matches x.db"))

    assert members(response) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no database matches x.db",
        "code": "no_match",
        "error": "no database matches x.db",
        "request_id": "cafe",
    }
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/json;q=0.9", "application/json"),
        ("application/*", "application/json"),
        ("application/problem+json", "application/problem+json"),
        ("text/html, Application/Problem+JSON; q=0.5", "application/problem+json"),
        ("application/problem+json;q=0", "application/json"),
        ("application/problem+json ; q=0.00, */*", "application/json"),
    ],
)
def test_content_type(accept: str | None, content_type: str) -> None:
    """`application/problem+json` only for who names it; Home Assistant reads exactly `application/json`."""
    headers = {"Accept": accept} if accept is not None else {}

    assert answer(NoMatchError("x"), **headers).headers["Content-Type"] == content_type


@pytest.mark.parametrize("error", [BusyError(""), ClosingError(""), CutError("", code="shutdown")])
def test_retry_after(error: BackupError) -> None:
    """What passes by itself says when to come again."""
    assert int(answer(error).headers["Retry-After"]) > 0


def test_retry_after_too_many_failures() -> None:
    """When the minute is over."""
    assert answer(ThrottledError("", 42)).headers["Retry-After"] == "42"


@pytest.mark.parametrize("code", ["unauthorized", "expired"])
def test_challenges(code: str) -> None:
    """Both of them, each in a line of its own: old clients stop reading at a comma."""
    assert answer(RequestError("", code=code)).headers.getall("WWW-Authenticate") == [
        'Bearer realm="mothership-backup"',
        'Basic realm="mothership-backup", charset="UTF-8"',
    ]


def test_no_token_is_repeated() -> None:
    """Wherever in a request it stood."""
    token = new_token()

    assert token not in str(members(answer(RequestError(f"{token!r}: unknown parameter"))))


@pytest.mark.parametrize("error", [TooManyDatabasesError(""), DataDirError(""), NoMatchError("")])
def test_no_retry_after(error: BackupError) -> None:
    """What needs a person does not ask to be repeated."""
    assert "Retry-After" not in answer(error).headers


def test_names_from_outside_are_escaped() -> None:
    """A file's name cannot break the JSON, whatever its bytes are."""
    message = 'x"\n\udcff\x00.db'

    assert members(answer(NoMatchError(message)))["error"] == message


def test_aiohttp_s_own_errors() -> None:
    """A 405 that aiohttp raises keeps its Allow, and looks like ours."""
    error = web.HTTPMethodNotAllowed("PUT", ["GET", "HEAD"])
    response = respond_http(make_mocked_request("PUT", "/healthz"), "cafe", error)

    assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    assert members(response)["code"] == "method_not_allowed"
