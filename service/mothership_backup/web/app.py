"""Composition: the backup mounted into an application, and the application of `serve`."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from mothership_backup import __version__
from mothership_backup.config import Settings
from mothership_backup.errors import SetupError
from mothership_backup.history import History
from mothership_backup.web import collisions, openapi, problems, request_id, routes
from mothership_backup.web.auth import Auth
from mothership_backup.web.backups import Backups
from mothership_backup.web.databases import Databases
from mothership_backup.web.handlers import Handlers
from mothership_backup.web.metrics import METRICS, Metrics, MetricsPage, metrics_of
from mothership_backup.web.openapi import OpenApi
from mothership_backup.web.probes import Probes
from mothership_backup.web.routes import Route
from mothership_backup.web.running import Running
from mothership_backup.web.status import Status

__all__ = ["METRICS", "RUNNING", "build_app", "setup"]

log: Final = logging.getLogger("mothership_backup")

RUNNING: Final = web.AppKey("RUNNING", Running)


class Mounted(NamedTuple):
    """What belongs to one mount."""

    running: Running
    auth: Auth
    metrics: Metrics


def setup(app: web.Application, settings: Settings, prefix: str = "/api") -> None:
    """Mount ``GET {prefix}/backup`` into an aiohttp application, before that application starts.

    It brings its own threads and takes part in the application's start, shutdown and clean-up; it installs no
    signal handler, no middleware and no log handler. May be called again for another prefix.
    Raises SetupError, here or at the application's start, if a path is answered by somebody else.
    """
    mount(app, settings, prefix)


def mount(app: web.Application, settings: Settings, prefix: str, base_path: str | None = None) -> Mounted:
    """As ``setup``, and hands out what it made; ``base_path`` is where `serve` has more paths, to be described too."""
    _refuse_late(app)
    prefix = _checked_prefix(prefix)
    running, history, auth = Running(settings), History(settings), Auth(settings)
    metrics = metrics_of(app)
    metrics.add_mount(running, history, auth)
    described = OpenApi(auth, base_path)
    added = routes.add(app, prefix, auth, _table(settings, running, history, auth, metrics, described))
    collisions.verify_now(app, added)
    request_id.send_back(app, set(added).__contains__)

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await collisions.verify(app, added)  # once more: the host has added its last routes
        async with history.opened(), running.opened():
            yield

    async def begin_shutdown(_: web.Application) -> None:
        running.begin_shutdown()

    app.cleanup_ctx.append(lifetime)
    app.on_shutdown.append(begin_shutdown)
    return Mounted(running, auth, metrics)


def build_app(settings: Settings) -> web.Application:
    """The application of `serve`: the backup, probes, ``/metrics``, and errors as JSON everywhere."""
    app = web.Application(middlewares=[_json_errors])
    base_path = settings.server.base_path
    mounted = mount(app, settings, base_path + "/api", base_path)
    app[RUNNING] = mounted.running
    request_id.send_back(app, lambda _: True)
    probes = Probes(settings.data.dir, mounted.running)
    page = MetricsPage(mounted.metrics, mounted.auth)
    started = time.monotonic()

    async def healthz(_: web.Request) -> web.Response:
        uptime_s = round(time.monotonic() - started, 3)
        return web.json_response({"status": "ok", "uptime_s": uptime_s, "version": __version__})

    own = {
        "/healthz": healthz,
        "/livez": probes.livez,
        "/readyz": probes.readyz,
        "/metrics": page.get_metrics,
    }
    routes.add_alone(app, base_path, own)
    return app


def _refuse_late(app: web.Application) -> None:
    # on_startup is the first to be frozen. In one of its handlers a route can still be added, but no clean-up.
    if app.on_startup.frozen or app.pre_frozen or app.frozen:
        raise SetupError(
            "mothership_backup.setup() was called too late: the application has begun to start, or is mounted into"
            " another one already; call it where the application is built"
        )


def _checked_prefix(prefix: str) -> str:
    stripped = prefix.rstrip("/")
    if (stripped and not stripped.startswith("/")) or any(character in stripped for character in "{}?#%"):
        raise SetupError(f"prefix {prefix!r}: must be a plain path such as /api, or empty")
    return stripped


def _table(
    settings: Settings,
    running: Running,
    history: History,
    auth: Auth,
    metrics: Metrics,
    described: OpenApi,
) -> list[Route]:
    backup = Handlers(settings, running, auth, history, metrics)
    backups = Backups(running, history, auth)
    databases = Databases(settings, running, auth)
    status = Status(settings, running, history, auth)
    return [
        Route("/backup", "backup", {"GET": backup.get_backup, "HEAD": backup.head_backup}),
        Route("/backups", "status", {"GET": backups.list_backups, "HEAD": backups.list_backups}),
        Route(
            "/backups/{id}",
            "status",
            {"GET": backups.get_one, "HEAD": backups.get_one, "DELETE": backups.cancel},
        ),
        Route("/status", "status", {"GET": status.get_status, "HEAD": status.get_status}),
        Route("/databases", "status", {"GET": databases.get_databases, "HEAD": databases.get_databases}),
        Route(openapi.PATH, "status", {"GET": described.get_openapi, "HEAD": described.get_openapi}),
    ]


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return problems.respond_http(request, request_id.of(request), error)
    except Exception as error:
        name = request_id.of(request)
        log.error("request %s: a defect: %s", name, error, exc_info=error, extra={"request_id": name})
        return problems.respond_internal(request, name)
