"""Composition: the backup mounted into an application, and the application of `serve`."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from mothership_backup import __version__
from mothership_backup.config import Settings
from mothership_backup.errors import SetupError
from mothership_backup.web import collisions, problems
from mothership_backup.web.auth import Auth
from mothership_backup.web.handlers import Handlers
from mothership_backup.web.running import Running

log: Final = logging.getLogger("mothership_backup")

RUNNING: Final = web.AppKey("RUNNING", Running)


def setup(app: web.Application, settings: Settings, prefix: str = "/api") -> None:
    """Mount ``GET {prefix}/backup`` into an aiohttp application, before that application starts.

    It brings its own threads and takes part in the application's start, shutdown and clean-up; it installs no
    signal handler, no middleware and no log handler. May be called again for another prefix.
    Raises SetupError, here or at the application's start, if a path is answered by somebody else.
    """
    mount(app, settings, prefix)


def mount(app: web.Application, settings: Settings, prefix: str) -> Running:
    """As ``setup``, and hands out what runs."""
    _refuse_late(app)
    path = _checked_prefix(prefix) + "/backup"
    running = Running(settings)
    routes = _add_routes(app, path, Handlers(settings, running, Auth(settings)))
    collisions.verify_now(app, routes)

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await collisions.verify(app, routes)  # once more: the host has added its last routes
        async with running.opened():
            yield

    async def begin_shutdown(_: web.Application) -> None:
        running.begin_shutdown()

    app.cleanup_ctx.append(lifetime)
    app.on_shutdown.append(begin_shutdown)
    return running


def build_app(settings: Settings) -> web.Application:
    """The application of `serve`: the backup, ``/healthz``, and errors as JSON everywhere."""
    app = web.Application(middlewares=[_json_errors])
    app[RUNNING] = mount(app, settings, "/api")
    started = time.monotonic()

    async def healthz(_: web.Request) -> web.Response:
        uptime_s = round(time.monotonic() - started, 3)
        return web.json_response({"status": "ok", "uptime_s": uptime_s, "version": __version__})

    app.router.add_get("/healthz", healthz)
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


def _add_routes(app: web.Application, path: str, handlers: Handlers) -> list[web.AbstractRoute]:
    routes: list[web.AbstractRoute] = []
    for twin in (path, path + "/"):
        collisions.refuse_taken(app, twin)
    for twin in (path, path + "/"):
        resource = app.router.add_resource(twin)
        routes.append(resource.add_route("GET", handlers.get_backup))
        routes.append(resource.add_route("HEAD", handlers.head_backup))
        routes.append(resource.add_route("*", handlers.refuse_method))
    return routes


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return problems.respond_http(request, problems.new_request_id(), error)
    except Exception as error:
        request_id = problems.new_request_id()
        log.error("request %s: a defect: %s", request_id, error, exc_info=error)
        return problems.respond_internal(request, request_id)
