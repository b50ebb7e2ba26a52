"""Plans without a backup: made on a thread, and shared by those who ask for the same within a few seconds."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final, NamedTuple

from mothership_backup.backup import Backup, Options
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError

SHARED_SECONDS: Final = 5


class Shared(NamedTuple):
    """A backup that gets no further than its plan."""

    backup: Backup
    made: asyncio.Future[None]


class Plans:
    """The plans of the last few seconds by their options. A plan that failed is not kept."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._shared: dict[Options, Shared] = {}
        self._cancelled: BackupError | None = None

    async def get(self, options: Options) -> Backup:
        """A backup with its plan and its length. Raises what the backup would raise before its first byte."""
        shared = self._shared.get(options) or self._make(options)
        try:
            await asyncio.shield(shared.made)  # one who leaves does not take it from the others
        except BackupError as error:
            if self._cancelled is None:
                raise
            raise self._cancelled from error
        return shared.backup

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
        seconds = 0 if made.cancelled() or made.exception() is not None else SHARED_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._shared.pop, options, None)
