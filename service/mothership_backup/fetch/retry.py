"""Which failures may pass, and how long to wait for that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from mothership_backup.errors import BackupError

MAX_WAIT_SECONDS: Final = 60.0
MAX_RETRY_AFTER_SECONDS: Final = 300.0
_PASSING_STATUSES: Final = (408, 429)

Result = TypeVar("Result")


class PassingError(Exception):
    """This try failed because of ``error``; the next one may not."""

    def __init__(self, error: BackupError, retry_after_seconds: float = 0) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_seconds = retry_after_seconds


def may_pass(status: int) -> bool:
    """As curl --retry sees it: the same request may succeed soon."""
    return status in _PASSING_STATUSES or status >= 500


def retry_after_seconds(header: str, now: datetime) -> float:
    """Seconds or an HTTP date (RFC 9110, 10.2.3), at most five minutes; 0 for anything else."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return 0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    return min(max(seconds, 0), MAX_RETRY_AFTER_SECONDS)


def until_it_works(
    attempt: Callable[[], Result], *, tries: int, first_wait_seconds: float, tell: Callable[[str], None]
) -> Result:
    """What ``attempt`` returns at last. Raises what it raises, and the last PassingError's error."""
    for number in range(1, tries):
        try:
            return attempt()
        except PassingError as failure:
            wait_seconds = _wait_seconds(number, first_wait_seconds, failure.retry_after_seconds)
            tell(f"{failure.error.message}; try {number + 1} of {tries} follows in {wait_seconds:.1f} s")
        time.sleep(wait_seconds)
    try:
        return attempt()
    except PassingError as failure:
        error = failure.error
        which = f" (the last of {tries} tries)" if tries > 1 else ""
        raise type(error)(error.message + which, code=error.code) from failure


def _wait_seconds(failures: int, first_seconds: float, retry_after_seconds: float) -> float:
    """Twice as long each time, and not the same for all clients of a service that has come back."""
    backoff_seconds = min(first_seconds * 2.0 ** min(failures - 1, 20), MAX_WAIT_SECONDS)
    return max(backoff_seconds, retry_after_seconds) * random.uniform(1, 1.25)
