"""The description of a mount for programs (OpenAPI 3.1): ``openapi.json`` beside this file, with its own addresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mothership_backup import __version__
from mothership_backup.errors import BackupError
from mothership_backup.web import documents
from mothership_backup.web.auth import Auth
from mothership_backup.web.refusing import refuse

FILE: Final = Path(__file__).with_name("openapi.json")
PATH: Final = "/openapi.json"


class OpenApi:
    """The handler of ``/openapi.json`` in one mount.

    ``base_path`` is where `serve` has its probes and metrics, the paths that have servers of their own in the file;
    a mount in another application has none of these.
    """

    def __init__(self, auth: Auth, base_path: str | None = None) -> None:
        self._auth = auth
        self._document = _load(base_path)

    async def get_openapi(self, request: web.Request) -> web.StreamResponse:
        try:
            self._auth.admit(request, "status")
        except BackupError as error:
            return refuse(request, error)
        return documents.respond(documents.encode({**self._document, "servers": [_server(_prefix(request))]}))


def _prefix(request: web.Request) -> str:
    """Of the path that answers: only a request shows what an outer application has put before ours."""
    resource = request.match_info.route.resource
    if resource is None:
        raise RuntimeError("a handler of a mount answers without a path")
    return resource.canonical.rstrip("/").removesuffix(PATH)


def _server(prefix: str) -> dict[str, str]:
    return {"url": prefix or "/"}


def _load(base_path: str | None) -> dict[str, Any]:  # JSON
    document: dict[str, Any] = json.loads(FILE.read_bytes())
    document["info"]["version"] = __version__
    if base_path is None:
        document["paths"] = {path: item for path, item in document["paths"].items() if "servers" not in item}
    for item in document["paths"].values():
        if "servers" in item:
            item["servers"] = [_server(base_path or "")]
    return document
