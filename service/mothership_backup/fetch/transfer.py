"""One try: GET -> FILE.part. What came is not judged here, only that nothing was cut as far as HTTP can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, NoReturn

import aiohttp
from aiohttp import hdrs

from mothership_backup import __version__
from mothership_backup.errors import ConfigError, FetchError
from mothership_backup.fetch.part import Part
from mothership_backup.fetch.retry import PassingError, may_pass, retry_after_seconds
from mothership_backup.fetch.target import Target

Advance = Callable[[int], None]
Progress = Callable[[str, int | None], AbstractContextManager[Advance]]
"""For what is done, and all its bytes if that is known: what to call with each number of bytes."""

_ARCHIVE_TYPES: Final = ("application/zip",)
_MAX_ERROR_BYTES: Final = 64 * 1024


async def transfer(target: Target, part: Part, progress: Progress) -> None:
    """Raises PassingError for what the next try may get, and for the rest FetchError, ConfigError, OutputError."""
    part.size_bytes = 0
    headers = {
        hdrs.ACCEPT: "application/zip, application/problem+json, application/json",
        hdrs.ACCEPT_ENCODING: "identity",
        hdrs.USER_AGENT: f"mothership-backup/{__version__}",
    }
    if target.token:
        headers[hdrs.AUTHORIZATION] = f"Bearer {target.token}"
    timeout = aiohttp.ClientTimeout(
        total=None, connect=target.timeout_seconds, sock_read=target.timeout_seconds
    )
    connector = aiohttp.TCPConnector(ssl=target.tls, force_close=True)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, trust_env=False
            ) as session,
            session.get(target.url, headers=headers, allow_redirects=False) as response,
        ):
            await _refuse(target, response)
            await _take(response, part, progress)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        _explain(target, part, error)


async def _take(response: aiohttp.ClientResponse, part: Part, progress: Progress) -> None:
    part.begin(response.headers.get(hdrs.CONTENT_DISPOSITION, ""))
    what = "fetch"
    if response.content_length is None:
        # The compressed size is not known: the sources' size as a bar's end would promise a false remaining time.
        unpacked = response.headers.get("X-Backup-Size", "")
        if unpacked.isascii() and unpacked.isdigit() and len(unpacked) < 20:
            what = f"fetch ({int(unpacked) / 2**20:.1f} MiB unpacked)"
    with progress(what, response.content_length) as advance:
        async for chunk in response.content.iter_any():
            part.write(chunk)
            advance(len(chunk))


async def _refuse(target: Target, response: aiohttp.ClientResponse) -> None:
    """Anything but an archive."""
    status = response.status
    location = response.headers.get(hdrs.LOCATION)
    if 300 <= status < 400 and location is not None:
        raise FetchError(
            f"{target.name} answers {_status(status)}, a redirect to {target.shown(location)}: it is not followed,"
            " since that would take the token elsewhere; fetch from there if that is right"
        )
    if status != 200:
        error = FetchError(f"{target.name} answers {_status(status)}{await _detail(target, response)}")
        if not may_pass(status):
            raise error
        header = response.headers.get(hdrs.RETRY_AFTER, "")
        raise PassingError(error, retry_after_seconds(header, datetime.now(UTC)))
    if response.content_type not in _ARCHIVE_TYPES:
        shown = target.shown(response.content_type)
        raise FetchError(f"{target.name} answers with {shown}, not with an archive (application/zip)")
    encoding = response.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise FetchError(
            f"{target.name} answers with Content-Encoding {target.shown(encoding)}, which was not asked for:"
            " a proxy before the service packs what is packed already"
        )


def _status(status: int) -> str:
    """The service's own reason phrase is not shown: it may be anything."""
    known = {each.value for each in HTTPStatus}
    return f"{status} {HTTPStatus(status).phrase}" if status in known else str(status)


async def _detail(target: Target, response: aiohttp.ClientResponse) -> str:
    """The service's own words, if the answer is one of its errors (RFC 9457)."""
    body = b""
    try:
        async with asyncio.timeout(target.timeout_seconds):
            while len(body) < _MAX_ERROR_BYTES and (piece := await response.content.readany()):
                body += piece
    except (aiohttp.ClientError, TimeoutError, ConnectionError):
        pass  # the status counts; what is there of its reason will do
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    detail = document.get("detail") if isinstance(document, dict) else None
    return f": {target.shown(detail)}" if isinstance(detail, str) and detail else ""


def _explain(target: Target, part: Part, error: Exception) -> NoReturn:
    """aiohttp's errors in our words."""
    name, seconds = target.name, target.timeout_seconds
    came = f"after {part.size_bytes} bytes"
    match error:
        case aiohttp.InvalidURL():
            raise ConfigError(f"URL: {name} is none that can be asked") from error
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", str(error.certificate_error))
            raise FetchError(
                f"{name}: its certificate is not trusted: {reason}; --ca-file names your own authority"
            ) from error
        case aiohttp.ClientConnectorError():
            reason = f"cannot connect: {error.os_error.strerror or error.os_error}"
        case aiohttp.ConnectionTimeoutError():
            reason = f"no connection within {seconds:g} s"
        case TimeoutError():
            reason = f"nothing came for {seconds:g} s, {came}"
        case aiohttp.ClientResponseError():
            reason = "its answer is no HTTP"
        case _:
            reason = f"the transfer was cut {came}"
    raise PassingError(FetchError(f"{name}: {reason}")) from error
