"""Whom a request comes from: the peer, or whom a trusted proxy names.

As Home Assistant does it: the peer itself must be trusted, ``X-Forwarded-For`` is walked from the right, and what is
malformed is an error. ``Forwarded`` (RFC 7239) is not read.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from aiohttp import web

from mothership_backup.credentials import Address, Network, is_in
from mothership_backup.web.problems import RequestError

FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED_PROTO: Final = "X-Forwarded-Proto"
SCHEMES: Final = ("http", "https")
LOOPBACK: Final = IPv4Address("127.0.0.1")
# aiohttp before 3.14 has no such keys, and from then on warns of a plain text.
CLIENT: Final = (
    "mothership_backup.client" if not hasattr(web, "RequestKey") else web.RequestKey("CLIENT", object)
)


@dataclass(frozen=True, slots=True)
class Client:
    """The address, none for a connection that is gone, and the scheme that the client itself used."""

    address: Address | None
    scheme: str

    def __str__(self) -> str:
        return "nobody" if self.address is None else str(self.address)


def client_of(request: web.BaseRequest, trusted: tuple[Network, ...]) -> Client:
    """Raises RequestError (``bad_forwarded``). What an untrusted peer forwards is not looked at."""
    peer = peer_of(request)
    if not is_in(peer, trusted):
        return Client(peer, request.scheme)
    hops = [_parse_hop(word) for word in _words(request, FORWARDED_FOR)]
    schemes = _schemes(request, len(hops))
    # The left part of the list is what a client has sent: only what trusted hops have added counts.
    place = next((i for i in reversed(range(len(hops))) if not is_in(hops[i], trusted)), 0)
    scheme = request.scheme
    if schemes:
        scheme = schemes[place] if len(schemes) == len(hops) else schemes[0]
    return Client(hops[place] if hops else peer, scheme)


def remember(request: web.BaseRequest, client: Client) -> None:
    """For the log lines of this request."""
    request[CLIENT] = client


def remembered(request: web.BaseRequest) -> str:
    """The client's address, or before that is known the peer's."""
    return str(request.get(CLIENT) or Client(peer_of(request), request.scheme))


def peer_of(request: web.BaseRequest) -> Address | None:
    """The other end of the connection; of a Unix socket it is this machine."""
    if request.transport is None:
        return None
    sock = request.transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return LOOPBACK
    peer = request.transport.get_extra_info("peername")
    try:
        return _parse_address(str(peer[0])) if isinstance(peer, tuple) else None
    except ValueError:
        return None


def _words(request: web.BaseRequest, name: str) -> list[str]:
    lines = request.headers.getall(name, ())
    return [word.strip() for word in ",".join(lines).split(",")] if lines else []


def _parse_hop(text: str) -> Address:
    try:
        return _parse_address(text)
    except ValueError:
        raise _bad(FORWARDED_FOR, "a list of addresses") from None


def _parse_address(text: str) -> Address:
    """Raises ValueError. One address has one form: of IPv4 in IPv6 it is IPv4's."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _schemes(request: web.BaseRequest, hops: int) -> Sequence[str]:
    """One for all, or one for each hop."""
    schemes = [word.lower() for word in _words(request, FORWARDED_PROTO)]
    if any(scheme not in SCHEMES for scheme in schemes) or len(schemes) not in (0, 1, hops):
        raise _bad(FORWARDED_PROTO, "http or https, once or for each address")
    return schemes


def _bad(header: str, wanted: str) -> RequestError:
    return RequestError(f"{header} is not {wanted}, and a trusted proxy has sent it", code="bad_forwarded")
