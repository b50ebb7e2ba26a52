"""What a backup would cover now, and what not."""

from __future__ import annotations

from aiohttp import web

from mothership_backup.backup import Options, app_version_of
from mothership_backup.config import Settings
from mothership_backup.errors import BackupError
from mothership_backup.manifest import Plan, describe_plan
from mothership_backup.web import documents
from mothership_backup.web.auth import Auth
from mothership_backup.web.refusing import refuse
from mothership_backup.web.running import Running


class Databases:
    """The handler of ``/databases`` in one mount."""

    def __init__(self, settings: Settings, running: Running, auth: Auth) -> None:
        self._settings = settings
        self._running = running
        self._auth = auth
        # Neither what has failed nor how many there are makes this one an error.
        self._options = Options(compression="deflate", check=settings.archive.check, strict=False)

    async def get_databases(self, request: web.Request) -> web.StreamResponse:
        plans = self._running.plans
        try:
            self._auth.admit(request, "status")
            self._running.refuse_when_closing()
            plan = await plans.look(self._options)
            body = await plans.on_thread(lambda: self._encode(plan))  # there may be 70,000 files
        except BackupError as error:
            return refuse(request, error)
        return documents.respond(body)

    def _encode(self, plan: Plan) -> bytes:
        return documents.encode(describe_plan(plan, app_version_of(self._settings, plan)))
