"""The service's log on stderr: text for people, or one JSON object a line. Only for `serve`: a host has its own."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, TypeGuard

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, TransferEncodingError

from mothership_backup.cli.terminal import printable
from mothership_backup.config import Log
from mothership_backup.credentials import redact

STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """A record on one line, except for a defect's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower()} {printable(record.getMessage())}"
        return redact(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object, with what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in STANDARD_ATTRIBUTES}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(fields, default=str))


def configure(settings: Log) -> None:
    """Everything that is logged in this process goes to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    handler.addFilter(_without_strangers_traceback)
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def _without_strangers_traceback(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered by aiohttp with 400, and is no defect of ours."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, web.RequestPayloadError):  # found while the rest of a body was thrown away
        error = error.__cause__ or error
    if isinstance(error, HttpProcessingError | web.RequestPayloadError) or _is_text_of_a_stranger(error):
        record.msg, record.args = "not understood: %s", (_reason(error),)
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def _is_text_of_a_stranger(error: BaseException | None) -> TypeGuard[UnicodeError]:
    """What aiohttp could not take for a host, or not repeat in its answer: our handlers' errors never get to it."""
    if not isinstance(error, UnicodeError) or error.__traceback__ is None:
        return False
    return error.__traceback__.tb_frame.f_globals.get("__name__") == "aiohttp.web_protocol"


def _reason(error: BaseException) -> str:
    """The parser's words. Behind them, or in their place, stands what the client has sent: it may be a credential."""
    if isinstance(error, TransferEncodingError | web.RequestPayloadError):
        return "the body of a request"
    if isinstance(error, InvalidURLError) or not isinstance(error, HttpProcessingError):
        return "the target or a header of a request"
    return re.split(r"[:'\"\n]", error.message, maxsplit=1)[0].strip()


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
