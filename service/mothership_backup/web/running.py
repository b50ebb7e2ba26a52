"""The backups of one mount: how many at once, on which threads, and how they all end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from mothership_backup.backup import Backup, Options
from mothership_backup.config import Settings
from mothership_backup.errors import BusyError, ClosingError, CutError
from mothership_backup.web.auth import Identity
from mothership_backup.web.delivery import Delivery
from mothership_backup.web.plans import Plans

log: Final = logging.getLogger("mothership_backup")

PLAN_THREADS: Final = 2
LOOK_SECONDS: Final = 1  # a killed process that lives on has no event for its end
# The cut, the clean-up and readers that survive their kill (child.py) have to fit into the time that there is.
CLEANUP_SECONDS: Final = 1.0


class Running:
    """Admission, deadline, threads. A slot is free when thread and reader have ended, not when the handler has."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limit = settings.limits.concurrent_backups
        # Two pools, and neither the host's: plans cannot take the threads of admitted backups.
        self._backup_threads = ThreadPoolExecutor(self._limit, "mothership-backup")
        self._plan_threads = ThreadPoolExecutor(PLAN_THREADS, "mothership-backup-plan")
        self.plans = Plans(settings, self._plan_threads)
        self._deliveries: set[Delivery] = set()
        self._threads: set[asyncio.Future[None]] = set()
        self._slots: set[Backup] = set()
        self._closing = False
        self._deadline: asyncio.TimerHandle | None = None

    def refuse_when_closing(self) -> None:
        """Raises ClosingError."""
        if self._closing:
            raise ClosingError("the service is shutting down")

    @property
    def count(self) -> int:
        """How many run now; from any thread."""
        return len(self._deliveries)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Those that run now, newest first."""
        return tuple(sorted(self._deliveries, key=lambda delivery: delivery.started_at, reverse=True))

    def find(self, backup_id: str) -> Delivery | None:
        """The one that runs under this id."""
        return next((one for one in self._deliveries if one.backup.id == backup_id), None)

    def start(self, request: web.Request, options: Options, identity: Identity) -> Delivery:
        """Admit one and start it; ``end()`` is to follow. Raises ClosingError, BusyError."""
        self.refuse_when_closing()
        if len(self._slots) >= self._limit:
            raise BusyError(f"{self._limit} backups run already (limits.concurrent_backups); try again later")
        backup = Backup(self._settings, options)
        delivery = Delivery(request, backup, self._settings, self._backup_threads, identity)
        self._deliveries.add(delivery)
        self._threads.add(delivery.thread)
        self._slots.add(backup)
        delivery.thread.add_done_callback(lambda thread: self._free(thread, backup))
        return delivery

    def end(self, delivery: Delivery) -> None:
        self._deliveries.discard(delivery)

    def _free(self, thread: asyncio.Future[None], backup: Backup) -> None:
        self._threads.discard(thread)
        if backup.is_reader_gone():
            self._slots.discard(backup)
            return
        log.error(
            "backup %s: its reader was killed and lives on, as one does that waits for a disk", backup.id
        )
        self._free_later(backup)

    def _free_later(self, backup: Backup) -> None:
        if backup.is_reader_gone():
            self._slots.discard(backup)
        elif not self._closing:
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._free_later, backup)

    def begin_shutdown(self) -> None:
        """No new backups; the running ones have until the deadline. Returns at once."""
        if self._closing:
            return
        self._closing = True
        if self._deliveries:
            running = len(self._deliveries)
            log.info("shutting down: %d running backups have %g s more", running, self._grace_seconds)
        self._deadline = asyncio.get_running_loop().call_later(self._grace_seconds, self.cut_all)

    def cut_all(self) -> None:
        """The deadline is now."""
        reason = CutError("the service is shutting down", code="shutdown")
        for delivery in tuple(self._deliveries):
            delivery.cut(reason)
        self.plans.cancel(reason)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """At its end nothing of ours runs any more."""
        # Leaving the pools blocks the loop until their threads end: so it is left only when all are idle.
        with self._backup_threads, self._plan_threads:
            try:
                yield
            finally:
                self.begin_shutdown()
                self.cut_all()
                if self._threads:
                    await asyncio.wait(self._threads)
                await self.plans.join()
                if self._deadline is not None:
                    self._deadline.cancel()

    @property
    def _grace_seconds(self) -> float:
        seconds = self._settings.server.shutdown_grace_seconds
        return max(seconds / 2, seconds - CLEANUP_SECONDS)
