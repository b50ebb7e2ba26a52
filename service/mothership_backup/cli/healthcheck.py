"""`healthcheck`: is the service ready; for containers without curl. Starts fast: only the standard library."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from mothership_backup.cli.terminal import complain

SECONDS: Final = 4
USAGE: Final = "usage: mothership-backup healthcheck [URL]: ends with 0 if the service is ready, else with 1"


def healthcheck(url: str = "") -> None:
    """End with 0 if the service is ready, else with 1."""
    raise SystemExit(main([url] if url else []))


def main(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """0 or 1: other codes mean something else to a container engine."""
    if len(words) > 1 or words[:1] in (["-h"], ["--help"]):
        complain(USAGE)
        return int(len(words) > 1)
    url = words[0] if words else default_url(environ)
    try:
        status = _ask(url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        complain(f"{url}: {str(error) or type(error).__name__}")
        return 1
    if status != 200:
        complain(f"{url}: {status}")
    return int(status != 200)


def default_url(environ: Mapping[str, str]) -> str:
    """Of the service in this container, which was configured by the same variables."""
    port = environ.get("MOTHERSHIP_BACKUP__SERVER__PORT") or "8080"
    base_path = environ.get("MOTHERSHIP_BACKUP__SERVER__BASE_PATH", "").rstrip("/")
    return f"http://127.0.0.1:{port}{base_path}/readyz"


def _ask(url: str) -> int:
    """Its status. Raises OSError, HTTPException, ValueError."""
    parts = urlsplit(url)
    kinds: dict[str, type[http.client.HTTPConnection]]
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ValueError("not an http or https URL")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=SECONDS)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        return connection.getresponse().status
    finally:
        connection.close()
