"""`healthcheck`: is the service ready; for containers without curl. Starts fast: only the standard library."""

from __future__ import annotations

import http.client
import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from mothership_backup.cli.terminal import complain

SECONDS: Final = 4
USAGE: Final = "usage: mothership-backup healthcheck [URL]: ends with 0 if the service is ready, else with 1"


def healthcheck(url: str = "") -> None:
    """End with 0 if the service is ready, else with 1.

    A URL may be https: on this machine (localhost, 127.0.0.1, ::1) whatever certificate it has, elsewhere only a
    trusted one.
    """
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
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)
    if parts.scheme == "https":
        context = _tls(parts.hostname)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=SECONDS, context=context)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        return connection.getresponse().status
    finally:
        connection.close()


def _tls(host: str) -> ssl.SSLContext:
    """A certificate is made for the name that others use, or signed by nobody; who is on this machine needs none.

    Nothing is told to the service, and nothing but a status is believed.
    """
    context = ssl.create_default_context()
    if _is_loopback(host):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
