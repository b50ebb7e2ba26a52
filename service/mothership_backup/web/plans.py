"""Plans without a backup: made on a thread, and shared by those who ask for the same within a few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from mothership_backup.backup import Backup, Options
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError, NoneReadableError
from mothership_backup.manifest import Plan

SHARED_SECONDS: Final = 5

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a plan found, in numbers; ``planned_at`` in seconds since 1970."""

    planned_at: float
    database_count: int
    failed_sources: int
    app_version: str = ""


class Shared(NamedTuple):
    """A backup that gets no further than its plan."""

    backup: Backup
    made: asyncio.Future[None]


class Plans:
    """The plans of the last few seconds by their options. A plan that failed is not kept."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self.coverage: Coverage | None = None
        self._settings = settings
        self._executor = executor
        self._shared: dict[Options, Shared] = {}
        self._cancelled: BackupError | None = None

    async def get(self, options: Options) -> Backup:
        """A backup with its plan and its length. Raises what the backup would raise before its first byte."""
        shared = self._shared.get(options) or self._make(options)
        await self._wait(shared)
        return shared.backup

    async def look(self, options: Options) -> Plan:
        """The plan alone, also if nothing in it can be read."""
        shared = self._shared.get(options) or self._make(options)
        with contextlib.suppress(NoneReadableError):
            await self._wait(shared)
        if shared.backup.plan is None:
            raise RuntimeError("no plan was made, and no error told")
        return shared.backup.plan

    def note(self, backup: Backup, failed: int, planned_at: float) -> None:
        """The newest coverage, if the backup is one of everything."""
        plan, options = backup.plan, backup.options
        if plan is None or options.databases or not options.files:
            return
        if self.coverage is None or self.coverage.planned_at <= planned_at:
            self.coverage = Coverage(planned_at, plan.databases, failed, plan.app_version)

    async def on_thread(self, function: Callable[[], Value]) -> Value:
        """For what a plan is so large that it would hold up the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def _wait(self, shared: Shared) -> None:
        try:
            await asyncio.shield(shared.made)  # one who leaves does not take it from the others
        except BackupError as error:
            if self._cancelled is None:
                raise
            raise self._cancelled from error

    def cancel(self, reason: BackupError) -> None:
        """End those that are being made; who waits for them gets the reason."""
        self._cancelled = reason
        for shared in self._shared.values():
            if not shared.made.done():
                shared.backup.cancel(reason)

    async def join(self) -> None:
        """Wait until none is being made."""
        if self._shared:
            await asyncio.wait([shared.made for shared in self._shared.values()])

    def _make(self, options: Options) -> Shared:
        loop = asyncio.get_running_loop()
        backup = Backup(self._settings, options)
        made = loop.run_in_executor(self._executor, backup.preview)
        made.add_done_callback(lambda _: self._keep(options, made))
        self._shared[options] = shared = Shared(backup, made)
        return shared

    def _keep(self, options: Options, made: asyncio.Future[None]) -> None:
        if (shared := self._shared[options]).backup.plan is not None:
            self.note(shared.backup, shared.backup.plan.failed, time.time())
        seconds = 0 if made.cancelled() or made.exception() is not None else SHARED_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._shared.pop, options, None)
