"""Small JSON for programs: exactly ``application/json``, which is all that Home Assistant reads, and never cached."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import hdrs, web


def encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def respond(body: bytes, status: int = 200) -> web.Response:
    headers = {hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
