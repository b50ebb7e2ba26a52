"""Who may ask for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from mothership_backup.config import Settings
from mothership_backup.web import anonymous

Scope = Literal["status", "backup"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the credential's name, empty for an anonymous request."""

    name: str = ""


class Auth:
    """The credentials of one mount."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def admit(self, request: web.BaseRequest, scope: Scope) -> Identity:
        """Raises RequestError (``anonymous_refused``, …) for who may not."""
        anonymous.check(request, self._settings)
        return Identity()
