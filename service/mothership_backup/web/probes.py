"""Whether the service lives, and whether a backup would find its data directory: open to everybody, and so brief."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from mothership_backup.errors import ClosingError
from mothership_backup.names import RESTORE_JOURNAL
from mothership_backup.web import documents
from mothership_backup.web.running import Running

FRESH_SECONDS: Final = 5.0
"""So long a look counts; so long it may take before it counts as failed."""
WAIT_SECONDS: Final = 0.5  # a kubelet waits for one second


def look_at(data_dir: Path) -> str:
    """Why no backup can be made of it, in a word; empty: one can. Only the folder is opened, nothing in it."""
    try:
        with os.scandir(data_dir) as entries:
            next(entries, None)
        os.lstat(data_dir / RESTORE_JOURNAL)
    except FileNotFoundError:
        return "" if data_dir.is_dir() else "data_dir_missing"
    except OSError:
        return "data_dir_unreadable"
    return "data_dir_restoring"


class Readiness:
    """The last look, and the one that may be under way, on a thread of its own.

    A daemon thread and no executor: one that waits for a dead disk must not keep the process from its end.
    """

    def __init__(self, look: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._reason: str | None = None  # none yet
        self._looked_at = 0.0
        self._pending: asyncio.Future[str] | None = None
        self._pending_since = 0.0

    async def reason(self) -> str:
        """Why it is not ready, in a word; empty when it is."""
        if self._pending is None and (
            self._reason is None or self._clock() - self._looked_at >= FRESH_SECONDS
        ):
            self._begin()
        if self._pending is not None:
            await asyncio.wait({self._pending}, timeout=WAIT_SECONDS)
        if self._pending is not None and self._clock() - self._pending_since > FRESH_SECONDS:
            return "data_dir_silent"
        return "data_dir_silent" if self._reason is None else self._reason

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._pending = loop.create_future()
        self._pending.add_done_callback(self._note)
        self._pending_since = self._clock()
        threading.Thread(
            target=_run,
            args=(self._look, loop, self._pending),
            name="mothership-backup-readiness",
            daemon=True,
        ).start()

    def _note(self, done: asyncio.Future[str]) -> None:
        self._pending = None
        self._looked_at = self._clock()
        self._reason = done.result()


def _run(look: Callable[[], str], loop: asyncio.AbstractEventLoop, done: asyncio.Future[str]) -> None:
    reason = look()
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody asks any more
        loop.call_soon_threadsafe(done.set_result, reason)


class Probes:
    """The handlers of ``/livez`` and ``/readyz``."""

    def __init__(self, data_dir: Path, running: Running) -> None:
        self._running = running
        self._readiness = Readiness(lambda: look_at(data_dir))

    async def livez(self, _: web.Request) -> web.StreamResponse:
        """The loop turns: that is all."""
        return documents.respond(documents.encode({"status": "ok"}))

    async def readyz(self, _: web.Request) -> web.StreamResponse:
        """Whether a backup could begin now, as far as that can be told from outside."""
        reason = self._closing() or await self._readiness.reason()
        if reason:
            return documents.respond(documents.encode({"status": "not_ready", "reason": reason}), 503)
        return documents.respond(documents.encode({"status": "ready"}))

    def _closing(self) -> str:
        try:
            self._running.refuse_when_closing()
        except ClosingError as error:
            return error.code
        return ""
