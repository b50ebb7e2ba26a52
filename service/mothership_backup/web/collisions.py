"""Whether a path answers with the handler it was given: where it does not, aiohttp is silent."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Iterator, Sequence
from typing import Final, NamedTuple, cast

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from mothership_backup.errors import SetupError

VARIABLE: Final = re.compile(r"\{[^{}]*\}")
NO_HEADERS = CIMultiDictProxy(CIMultiDict[str]())


class Probe(NamedTuple):
    """As much of a request as a router looks at; without a Host, so that no domain's own application answers."""

    method: str
    rel_url: URL
    headers: CIMultiDictProxy[str] = NO_HEADERS


def refuse_taken(app: web.Application, path: str) -> None:
    """Raises SetupError if the path belongs to somebody; before a route is added, since aiohttp would join the two."""
    for resource in _resources(app.router):
        if _same_path(resource, path):
            raise _collision(path, "the backup", _name_resource(resource))


async def verify(app: web.Application, routes: Sequence[web.AbstractRoute]) -> None:
    """Raises SetupError unless each route, and nobody else, answers its path."""
    own = {route.resource for route in routes}
    for route in routes:
        if route.resource is None:
            continue
        path = route.resource.canonical  # with the prefixes of the applications that this one is mounted into
        for resource in _resources(app.router):
            if resource not in own and _same_path(resource, path):
                raise _collision(path, _name(route), _name_resource(resource))
        url = URL.build(path=VARIABLE.sub("0", path), encoded=True)
        probe = Probe("POST" if route.method == "*" else route.method, url)
        found = await app.router.resolve(cast(web.Request, probe))
        if found.route is not route:
            raise _collision(path, _name(route), _name(found.route))


def verify_now(app: web.Application, routes: Sequence[web.AbstractRoute]) -> None:
    """``verify`` outside of a loop; a router of the host's that has to wait is asked at the start only."""
    _run_now(verify(app, routes))


def _run_now(coroutine: Coroutine[object, None, None]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()


def _resources(router: web.UrlDispatcher) -> Iterator[web.AbstractResource]:
    for resource in router.resources():
        yield resource
        app = resource.get_info().get("app")
        if app is not None and "domain" not in resource.get_info() and "rule" not in resource.get_info():
            yield from _resources(app.router)


def _same_path(resource: web.AbstractResource, path: str) -> bool:
    return resource.canonical.rstrip("/") == path.rstrip("/")


def _collision(path: str, ours: str, theirs: str) -> SetupError:
    return SetupError(
        f"{path} is to be answered by {ours}, and belongs to {theirs} too: "
        "mount the backup below another prefix, or move that route"
    )


def _name_resource(resource: web.AbstractResource) -> str:
    names = [_name(route) for route in resource if route.resource is resource]
    return ", ".join(dict.fromkeys(names)) or repr(resource)


def _name(route: web.AbstractRoute) -> str:
    handler = route.handler
    name = getattr(handler, "__qualname__", "")
    if route.resource is None or not name:  # an application mounted there answers, with an error
        return repr(route)
    return f"{handler.__module__}.{name}"
