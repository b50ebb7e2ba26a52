"""One backup on its way to one client: whole, or so that it looks broken."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from aiohttp import hdrs, web

from mothership_backup.backup import Backup, Outcome
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError, ClientLeftError, CutError
from mothership_backup.stream import ThreadStream, drop_frames
from mothership_backup.web import problems, request_id
from mothership_backup.web.auth import Identity
from mothership_backup.web.transport import Connection

log: Final = logging.getLogger("mothership_backup")

LOOK_SECONDS: Final = 0.1  # before the first byte a client's leaving shows nowhere else


class Delivery:
    """From the first look at the reader to the last byte in the kernel. Made and answered in one handler."""

    def __init__(
        self,
        request: web.Request,
        backup: Backup,
        settings: Settings,
        executor: Executor,
        identity: Identity,
    ) -> None:
        self.backup = backup
        self.identity = identity
        self.request_id = request_id.of(request)
        self.started_at = time.time()
        self._request = request
        self._settings = settings
        self._connection = Connection(request)
        self._stream = ThreadStream(
            executor,
            backup.chunks,
            limit_bytes=settings.limits.buffer_bytes,
            cancel=lambda: self.cut(ClientLeftError("the client left")),
        )
        self._began = time.monotonic()
        self._reason: BackupError | None = None
        self._response: web.StreamResponse | None = None
        self._delivered = False
        self._sent_bytes = 0

    @property
    def thread(self) -> asyncio.Future[None]:
        """Done when its thread has ended."""
        return self._stream.thread

    @property
    def sent_bytes(self) -> int:
        """What has been given to the connection so far."""
        return self._sent_bytes

    @property
    def duration_seconds(self) -> float:
        return time.monotonic() - self._began

    def cut(self, reason: BackupError) -> None:
        """End it now, wherever it is; the first reason counts."""
        if self._reason is None:
            self._reason = reason
        self.backup.cancel(self._reason)
        if self._response is not None and not self._delivered:
            self._connection.reset()

    async def answer(self) -> web.StreamResponse:
        """The response, sent or cut or an error's. Raises CancelledError only, and after the cut."""
        try:
            await self._wait_for_decision()
            self._response = new_response(self._settings, self.backup)
            await self._send(self._response)
            self._delivered = True
        except asyncio.CancelledError:
            self._reason = self._reason or self._why_cancelled()
            raise
        except Exception as error:  # a host's middleware would answer it, into the ZIP
            self._reason = self._reason or self._explain(error)
            drop_frames(error)
        finally:
            try:
                if self._response is not None and not self._delivered:
                    self._connection.reset()
            finally:
                await self._stream.aclose()
            if self._reason is not None:
                drop_frames(self._reason)
        if self._response is None:
            return problems.respond(self._request, self.request_id, self._reason or BackupError("cut"))
        return self._response

    def outcome(self) -> Outcome:
        """What became of it, as far as the client goes; after ``answer()``."""
        judged = self.backup.outcome or Outcome("cancelled", "", {}, 0, 0)  # ended before it began
        outcome = replace(judged, sent_bytes=self._sent_bytes, duration_seconds=self.duration_seconds)
        if self._delivered or self._reason is None:
            return outcome
        if outcome.word not in ("complete", "incomplete", "cancelled") and self._reason.code != "cancelled":
            return outcome
        # The archive may have been whole, but its last bytes did not get through.
        return replace(outcome, word=_word(self._reason), reason=_why(self._reason))

    # Before the first byte.

    async def _wait_for_decision(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    return await self._stream.begun()
            except TimeoutError:
                if self._connection.is_lost:
                    raise ClientLeftError("the client left before the first byte") from None

    # From the first byte on.

    async def _send(self, response: web.StreamResponse) -> None:
        self._connection.arm()
        await response.prepare(self._request)
        stall_seconds = self._settings.limits.stall_timeout_seconds
        stall = CutError(f"the client took nothing for {stall_seconds:g} s", code="stall")
        with self._connection.watched(
            stall_seconds,
            stalled=lambda: self.cut(stall),
            left=lambda: self.cut(ClientLeftError("the client left")),
            looked=self._look_at_reader,
        ):
            await self._send_body(response)
            await response.write_eof()
            await self._connection.finish()

    async def _send_body(self, response: web.StreamResponse) -> None:
        length = self.backup.content_length
        last: memoryview | bytes | None = None
        async for piece in self._stream:
            self._sent_bytes += len(piece)
            if length is not None and self._sent_bytes >= length:
                # aiohttp would drop what is too much, and the client would take the rest for whole.
                if last is not None or self._sent_bytes > length:
                    raise RuntimeError(f"the archive is longer than the {length} bytes that were announced")
                last = piece
            else:
                await response.write(piece)
        if length is not None and self._sent_bytes != length:
            raise RuntimeError(f"the archive has {self._sent_bytes} bytes, and {length} were announced")
        if last is not None:
            await response.write(last)

    def _look_at_reader(self) -> None:
        """What waits for a slow client is worth nothing once the reader is dead, and would keep the slot for long."""
        if reason := self.backup.sudden_end():
            self.cut(reason)

    # The end.

    def _why_cancelled(self) -> BackupError:
        if self._connection.is_lost:
            return ClientLeftError("the client left")
        return BackupError("the request was cancelled", code="cancelled")

    def _explain(self, error: Exception) -> BackupError:
        if isinstance(error, BackupError):
            return error
        if isinstance(error, ConnectionError):
            return ClientLeftError("the client left")
        ids = {"request_id": self.request_id, "backup_id": self.backup.id}
        log.error("request %s: backup %s: a defect: %s", *ids.values(), error, exc_info=error, extra=ids)
        return BackupError("something unexpected happened; the service's log has more", code="internal")


def new_response(settings: Settings, backup: Backup) -> web.StreamResponse:
    """The headers of a backup that has its plan, not sent yet; for HEAD they are all there is."""
    if backup.plan is None:
        raise RuntimeError("a backup began without a plan")
    # No filename*=, no spaces: Home Assistant's downloader mangles anything beyond the plain form.
    file_name = f"{settings.archive.name_prefix}-backup-{datetime.now(UTC):%Y-%m-%d}.zip"
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: "application/zip",
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{file_name}"',
        hdrs.CACHE_CONTROL: "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "X-Backup-Id": backup.id,
        "X-Backup-Size": str(backup.plan.total_bytes),
        "X-Backup-Databases": str(backup.plan.databases),
        "X-Backup-Failed": str(backup.plan.failed),
    }
    if backup.content_length is not None:
        headers[hdrs.CONTENT_LENGTH] = str(backup.content_length)
    return web.StreamResponse(headers=headers)


def _why(reason: BackupError) -> str:
    return reason.code if isinstance(reason, CutError) else reason.message


def _word(reason: BackupError) -> str:
    if isinstance(reason, ClientLeftError):
        return "client_left"
    if isinstance(reason, CutError):
        return "cut"
    return "cancelled" if reason.code == "cancelled" else "failed"
