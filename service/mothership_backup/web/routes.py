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
            added += [resource.add_route(method, handler) for method, handler in route.methods.items()]
            added.append(resource.add_route(hdrs.METH_ANY, others.refuse_method))
    return added


def _twins(prefix: str, route: Route) -> tuple[str, str]:
    return prefix + route.path, prefix + route.path + "/"
