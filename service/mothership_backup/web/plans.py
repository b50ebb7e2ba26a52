"""Plans without a backup: made on a thread, and shared by those who ask for the same within a few seconds."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final, NamedTuple

from mothership_backup.backup import Backup, Options, make_plan
from mothership_backup.config import Settings
from mothership_backup.manifest import Plan

SHARED_SECONDS: Final = 5


class Preview(NamedTuple):
    """What the headers of a backup say."""

    backup_id: str
    plan: Plan
    content_length: int | None


def preview(settings: Settings, options: Options) -> Preview:
    """Blocks; raises what a backup would before its first byte."""
    backup = Backup(settings, options)
    plan = make_plan(settings, options)
    backup._decide(plan)
    return Preview(backup.id, plan, backup._make_archive(plan).content_length)


class Plans:
    """The plans of the last few seconds by their options. A plan that failed is not kept."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._shared: dict[Options, asyncio.Future[Preview]] = {}

    async def get(self, options: Options) -> Preview:
        """Raises what ``preview`` raises."""
        shared = self._shared.get(options)
        if shared is None:
            loop = asyncio.get_running_loop()
            shared = loop.run_in_executor(self._executor, preview, self._settings, options)
            self._shared[options] = shared
            shared.add_done_callback(lambda made: self._keep(options, made))
        return await asyncio.shield(shared)  # one who leaves does not take it from the others

    async def join(self) -> None:
        """Wait for the plans that are being made."""
        if self._shared:
            await asyncio.wait(self._shared.values())

    def _keep(self, options: Options, made: asyncio.Future[Preview]) -> None:
        seconds = 0 if made.cancelled() or made.exception() is not None else SHARED_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._shared.pop, options, None)
