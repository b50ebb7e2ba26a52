"""A credential as it is stored: a name, the hash of a token, and what it may do from where until when.

``NAME:sha256:HEX[:scope=backup|status][:expires=YYYY-MM-DD][:from=NET[,NET]]``, one line of text.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, Literal, get_args

Scope = Literal["status", "backup"]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SCOPES: Final[Mapping[str, Scope]] = {scope: scope for scope in get_args(Scope)}
TOKEN: Final = re.compile(r"mb_[A-Za-z0-9_-]{43}")
NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
STORED: Final = re.compile(r"(?P<name>[^:]*):sha256:(?P<digest>[0-9A-Fa-f]{64})(?P<limits>(?::.*)?)")
LIMIT: Final = re.compile(
    r":(?=[a-z]+=)"
)  # an IPv6 network has colons too, but nothing in it looks like a key
FORM: Final = "NAME:sha256:HEX[:key=value…], as `mothership-backup token new NAME` prints it"


@dataclass(frozen=True, slots=True)
class Credential:
    """What one token may do. The token itself is nowhere: its SHA-256 is enough, since it is random."""

    name: str
    digest: bytes = field(repr=False)
    scope: Scope = "backup"
    expires: date | None = None  # the last day (UTC) on which it is good
    networks: tuple[Network, ...] = ()  # none: from everywhere

    def allows(self, scope: Scope) -> bool:
        """Who may fetch a backup may ask for the status too."""
        return self.scope in (scope, "backup")

    def is_good_from(self, address: Address | None) -> bool:
        return not self.networks or is_in(address, self.networks)

    def is_expired(self, today: date) -> bool:
        return self.expires is not None and today > self.expires

    def stored(self) -> str:
        """The line that ``parse`` reads."""
        words = [self.name, "sha256", self.digest.hex()]
        if self.scope != "backup":
            words.append(f"scope={self.scope}")
        if self.expires is not None:
            words.append(f"expires={self.expires}")
        if self.networks:
            words.append("from=" + ",".join(map(str, self.networks)))
        return ":".join(words)


def parse(text: str) -> Credential:
    """Raises ValueError, whose text repeats nothing of what was read: it may be a token by mistake."""
    match = STORED.fullmatch(text)
    if match is None:
        raise ValueError(f"is not {FORM}")
    first, *limits = LIMIT.split(match["limits"])
    if first:
        raise ValueError(f"has something behind its hash that is no key=value; it must be {FORM}")
    keys = dict(limit.split("=", 1) for limit in limits)
    if len(keys) < len(limits):
        raise ValueError("has the same key twice")
    if unknown := sorted(keys.keys() - {"scope", "expires", "from"}):
        raise ValueError(f"has {len(unknown)} unknown keys; there are scope, expires, from")
    return Credential(
        name=parse_name(match["name"]),
        digest=bytes.fromhex(match["digest"]),
        scope=parse_scope(keys.get("scope", "backup")),
        expires=parse_day(keys["expires"]) if "expires" in keys else None,
        networks=parse_networks(keys["from"]) if "from" in keys else (),
    )


def parse_name(text: str) -> str:
    if not NAME.fullmatch(text) or TOKEN.search(text):
        raise ValueError("its name must be 1 to 64 letters, digits, or any of . _ @ -")
    return text


def parse_scope(text: str) -> Scope:
    if text not in SCOPES:
        raise ValueError(f"its scope must be {' or '.join(SCOPES)}")
    return SCOPES[text]


def parse_day(text: str) -> date:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        raise ValueError("its last day must be written YYYY-MM-DD")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("its last day is not in the calendar") from None


def parse_networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(word.strip()) for word in text.split(","))
    except ValueError:
        raise ValueError("its networks must be written 10.0.0.0/8,fd00::/8 (no host bits)") from None


def is_in(address: Address | None, networks: tuple[Network, ...]) -> bool:
    """Of another family it is in none."""
    return address is not None and any(address in network for network in networks)


def new_token() -> str:
    """256 random bits."""
    return "mb_" + secrets.token_urlsafe(32)


def digest_of(token: bytes) -> bytes:
    """A password's slow hash would hold the event loop for 50 ms, and a random token does not need one."""
    return hashlib.sha256(token).digest()


def redact(text: str) -> str:
    """Without any token of ours, whole, that a client put where none belongs."""
    return TOKEN.sub("mb_***", text)
