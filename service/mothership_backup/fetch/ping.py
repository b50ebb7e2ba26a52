"""A monitor hears of the run: by healthchecks.io's convention, or Uptime Kuma's push. It never decides the outcome.

healthchecks.io   POST URL/start, then URL or URL/fail  (https://healthchecks.io/docs/http_api/)
Uptime Kuma       GET URL?status=up|down&msg=…&ping=…   once, at the end; its URLs have /api/push/ in their path
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import aiohttp

from mothership_backup.errors import BackupError

TIMEOUT_SECONDS: Final = 10.0
LEAVING_SECONDS: Final = 3.0  # who is told to end has not much more
_KUMA: Final = "/api/push/"
_MAX_TEXT_CHARS: Final = 1000

Ended = Callable[[bool, str], None]
"""Called once, with whether all is good, and the outcome in a line."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A monitor's address, which is a secret of its own: only its host is ever shown."""

    url: str
    tls: ssl.SSLContext

    @property
    def is_kuma(self) -> bool:
        return _KUMA in urlsplit(self.url).path

    def with_path(self, more: str) -> str:
        parts = urlsplit(self.url)
        return parts._replace(path=parts.path.rstrip("/") + more).geturl()

    def with_status(self, good: bool, text: str, duration_seconds: float) -> str:
        """Its page shows the query with values of its own, which must not count twice."""
        parts = urlsplit(self.url)
        ours = {
            "status": "up" if good else "down",
            "msg": text,
            "ping": str(round(duration_seconds * 1000)),
        }
        others = [
            (name, value)
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
            if name not in ours
        ]
        return parts._replace(query=urlencode([*others, *ours.items()], quote_via=quote)).geturl()


@contextmanager
def watched(
    ping: Ping | None, tell: Callable[[str], None], *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Iterator[Ended]:
    """Says the start, and the end: what `Ended` is called with, or the exception that ends the block."""
    if ping is None:
        yield lambda good, text: None
        return
    began = time.monotonic()
    has_ended = False

    def ended(good: bool, text: str, at_most_seconds: float = timeout_seconds) -> None:
        nonlocal has_ended
        has_ended = True
        _tell_end(ping, good, text[:_MAX_TEXT_CHARS], time.monotonic() - began, at_most_seconds, tell)

    if not ping.is_kuma:
        _send(ping, "POST", ping.with_path("/start"), "", timeout_seconds, tell)
    try:
        yield ended
    except BaseException as error:
        if not has_ended:
            is_leaving = isinstance(error, KeyboardInterrupt)
            patience_seconds = min(timeout_seconds, LEAVING_SECONDS) if is_leaving else timeout_seconds
            ended(False, _describe(error), patience_seconds)
        raise


def _describe(error: BaseException) -> str:
    if isinstance(error, BackupError):
        return error.message
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"a defect: {type(error).__name__}"


def _tell_end(
    ping: Ping,
    good: bool,
    text: str,
    duration_seconds: float,
    timeout_seconds: float,
    tell: Callable[[str], None],
) -> None:
    if ping.is_kuma:
        _send(ping, "GET", ping.with_status(good, text, duration_seconds), "", timeout_seconds, tell)
    else:
        _send(ping, "POST", ping.url if good else ping.with_path("/fail"), text, timeout_seconds, tell)


def _send(
    ping: Ping, method: str, url: str, text: str, timeout_seconds: float, tell: Callable[[str], None]
) -> None:
    try:
        status = asyncio.run(_request(ping, method, url, text, timeout_seconds))
    except TimeoutError:
        reason = f"no answer within {timeout_seconds:g} s"
    except (aiohttp.ClientError, OSError) as error:
        reason = f"it cannot be reached ({type(error).__name__})"  # its text may hold the whole address
    else:
        if status < 400:
            return
        reason = f"it answers {status}"
    tell(f"--ping: {urlsplit(ping.url).hostname}: {reason}")


async def _request(ping: Ping, method: str, url: str, text: str, timeout_seconds: float) -> int:
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ping.tls),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            trust_env=False,
        ) as session,
        session.request(method, url, data=text.encode() if text else None) as response,
    ):
        return response.status
