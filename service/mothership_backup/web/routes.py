"""The paths of a mount: each with and without a trailing slash, each with an answer to every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from mothership_backup.credentials import Scope
from mothership_backup.errors import BackupError
from mothership_backup.web import collisions
from mothership_backup.web.auth import Auth
from mothership_backup.web.problems import MethodError
from mothership_backup.web.refusing import refuse


class Route(NamedTuple):
    """A path below the prefix. ``scope`` is asked for by methods that there are not."""

    path: str
    scope: Scope
    methods: Mapping[str, Handler]


class OtherMethods:
    """405, to those who would get an answer by the right method."""

    def __init__(self, auth: Auth, route: Route) -> None:
        self._auth = auth
        self._scope = route.scope
        self._allowed = ", ".join(route.methods)

    async def refuse_method(self, request: web.Request) -> web.StreamResponse:
        try:
            self._auth.admit(request, self._scope)
        except BackupError as error:
            return refuse(request, error)
        return refuse(request, MethodError(request.method, self._allowed))


def add(app: web.Application, prefix: str, auth: Auth, table: Sequence[Route]) -> list[web.AbstractRoute]:
    """Raises SetupError if a path belongs to somebody already."""
    for route in table:
        for twin in _twins(prefix, route):
            collisions.refuse_taken(app, twin)
    added: list[web.AbstractRoute] = []
    for route in table:
        others = OtherMethods(auth, route)
        for twin in _twins(prefix, route):
            resource = app.router.add_resource(twin)
            for method, handler in {**route.methods, hdrs.METH_ANY: others.refuse_method}.items():
                added.append(resource.add_route(method, handler, expect_handler=expect_nothing))
    return added


def add_alone(app: web.Application, base_path: str, table: Mapping[str, Handler]) -> None:
    """The paths of `serve` beside its mount, and all the others: where aiohttp answers itself, it looks at Expect."""
    for path, handler in table.items():
        resource = app.router.add_resource(base_path + path)
        for method in (hdrs.METH_GET, hdrs.METH_HEAD):
            resource.add_route(method, handler, expect_handler=expect_nothing)
        resource.add_route(hdrs.METH_ANY, _no_such_method, expect_handler=expect_nothing)
    app.router.add_route(hdrs.METH_ANY, "/{path:.*}", _no_such_path, expect_handler=expect_nothing)


async def _no_such_method(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMethodNotAllowed(request.method, (hdrs.METH_GET, hdrs.METH_HEAD))


async def _no_such_path(_: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


async def expect_nothing(_: web.Request) -> None:
    """No body is read here, so none is asked for (RFC 9110, 10.1.1). aiohttp's own fails where Expect is not ASCII."""


def _twins(prefix: str, route: Route) -> tuple[str, str]:
    return prefix + route.path, prefix + route.path + "/"
