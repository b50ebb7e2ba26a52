"""Who may ask without a credential: somebody on this very machine, and no web page on their behalf."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final

from aiohttp import hdrs, web

from mothership_backup.config import Settings
from mothership_backup.web.problems import RequestError

LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
FORWARDING: Final = ("forwarded", "x-real-ip", "via", "x-ingress-path")
FORWARDING_PREFIX: Final = "x-forwarded-"
AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
REMEDY: Final = (
    "without a credential only clients on the same machine are answered; put one into auth.tokens "
    "(`mothership-backup token new NAME` makes it), or let everybody in whom the network lets through "
    "with auth.allow_anonymous = true"
)
# Who comes through one without a forwarding header looks like a client on this machine.
BEHIND_PROXIES: Final = (
    "there are proxies (server.trusted_proxies), so everybody has to show a credential, on this machine too, and "
    "none is configured; put one into auth.tokens (`mothership-backup token new NAME` makes it)"
)


def check(request: web.BaseRequest, settings: Settings) -> None:
    """Raises RequestError (``anonymous_refused``) with the reason and the remedy."""
    if settings.auth.allow_anonymous:
        return
    if settings.server.trusted_proxies:
        raise RequestError(BEHIND_PROXIES, code="anonymous_refused")
    reason = (
        _foreign_peer(request.transport)
        or _forwarded(request)
        or _foreign_host(request, settings.server.allowed_hosts)
        or _foreign_page(request)
    )
    if reason:
        raise RequestError(f"{reason}: {REMEDY}", code="anonymous_refused")


def is_loopback(address: str) -> bool:
    """Whether it is an address of this machine alone; a name is none."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


def _foreign_peer(transport: asyncio.Transport | None) -> str:
    if transport is None:
        return "the connection is gone"
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return ""
    # Both: a connection to this machine's own outer address comes from that address.
    for end in ("sockname", "peername"):
        address = transport.get_extra_info(end)
        if not isinstance(address, tuple) or not is_loopback(str(address[0])):
            return "the connection is not one of this machine with itself"
    return ""


def _forwarded(request: web.BaseRequest) -> str:
    for name in request.headers:
        if name.lower() in FORWARDING or name.lower().startswith(FORWARDING_PREFIX):
            return f"the request was forwarded ({name})"
    return ""


def _foreign_host(request: web.BaseRequest, allowed: Sequence[str]) -> str:
    # A web page can point its own name at 127.0.0.1 (DNS rebinding); then the browser still sends that name.
    named = request.headers.getall(hdrs.HOST, ())
    if len(named) != 1:
        return "the request has no Host header, or several"
    accepted = {*LOCAL_HOSTS, *(host.lower() for host in allowed)}
    # request.host is another one where the request line has a whole URL.
    for authority in (named[0], request.host):
        if authority.lower() not in accepted and _host(authority) not in accepted:
            return f"Host {authority!r} is neither localhost nor in server.allowed_hosts"
    return ""


def _host(authority: str) -> str:
    match = AUTHORITY.fullmatch(authority.lower())
    return match["host"] if match else ""


def _foreign_page(request: web.BaseRequest) -> str:
    # https://www.w3.org/TR/fetch-metadata/: a page cannot set these. What a link opens in a tab of its own, no page
    # can read; so that is let in.
    sites = request.headers.getall("Sec-Fetch-Site", ())
    if all(site in ("none", "same-origin") for site in sites):
        return ""
    if (
        len(sites) == 1
        and request.headers.getall("Sec-Fetch-Mode", ()) == ["navigate"]
        and request.headers.getall("Sec-Fetch-Dest", ()) == ["document"]
    ):
        return ""
    return "a web page of another site asks (Sec-Fetch-Site)"
