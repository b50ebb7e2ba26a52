"""Who may ask for what."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from mothership_backup.config import Settings
from mothership_backup.credentials import Credential, Scope, digest_of, parse
from mothership_backup.web import anonymous
from mothership_backup.web.failures import Failures
from mothership_backup.web.forwarded import Client, client_of, remember
from mothership_backup.web.problems import RequestError, ThrottledError
from mothership_backup.web.tokens_file import TokensFile

API_KEY: Final = "X-API-Key"
MAX_PRESENTED: Final = 8  # each is compared with every stored one
WAYS: Final = "send a token as Authorization: Bearer, as the password of Basic, or as X-API-Key"

#: Code -> what it says; of several credentials in a request the first of these counts.
REFUSALS: Final = {
    "forbidden_scope": "the credential is good, but not for this (its scope is status)",
    "forbidden_network": "the credential is good, but not from this address",
    "expired": "the credential has expired",
    "unauthorized": f"the credential is not known; {WAYS}",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the credential's name, empty for an anonymous request, and the client's address."""

    name: str = ""
    client: str = ""


class Auth:
    """The credentials of one mount."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError for a ``tokens_file`` that cannot be read, or not be understood."""
        self._settings = settings
        self._tokens = tuple(map(parse, settings.auth.tokens))
        file = settings.auth.tokens_file
        self._file = TokensFile(Path(file), clock) if file else None
        self._trusted = tuple(map(ip_network, settings.server.trusted_proxies))
        self._failures = Failures(clock)

    def is_tokens_file_good(self) -> bool | None:
        """None without one."""
        return None if self._file is None else self._file.is_good()

    def admit(self, request: web.BaseRequest, scope: Scope) -> Identity:
        """Raises RequestError (``anonymous_refused``, ``unauthorized``, …) for who may not."""
        client = client_of(request, self._trusted)
        remember(request, client)
        if not self._settings.auth.has_credentials:
            anonymous.check(request, self._settings)
            return Identity("", str(client))
        presented = list(islice(_presented(request), MAX_PRESENTED + 1))
        if not presented:
            # Not counted: wget and browsers ask like this first, and wait for the challenge.
            raise RequestError(f"a credential is needed; {WAYS}", code="unauthorized")
        return Identity(self._authenticate(presented, client, scope).name, str(client))

    def _authenticate(self, presented: list[bytes], client: Client, scope: Scope) -> Credential:
        codes = {"unauthorized"}
        for token in presented if len(presented) <= MAX_PRESENTED else ():
            for credential in self._find(token):
                code = _refusal(credential, client, scope)
                if not code:
                    return credential
                codes.add(code)
        code = next(code for code in REFUSALS if code in codes)
        if code == "unauthorized":
            self._count_failure(client)
        raise RequestError(REFUSALS[code], code=code)

    def _find(self, token: bytes) -> list[Credential]:
        digest = digest_of(token)
        stored = self._tokens + (self._file.credentials() if self._file is not None else ())
        # To the end, also when one has matched: the time says nothing about where it stands.
        return [credential for credential in stored if hmac.compare_digest(credential.digest, digest)]

    def _count_failure(self, client: Client) -> None:
        wait_seconds = self._failures.add(client.address)
        if wait_seconds:
            raise ThrottledError("too many wrong credentials from this network", math.ceil(wait_seconds))


def _refusal(credential: Credential, client: Client, scope: Scope) -> str:
    if credential.is_expired(datetime.now(UTC).date()):
        return "expired"
    if not credential.is_good_from(client.address):
        return "forbidden_network"
    return "" if credential.allows(scope) else "forbidden_scope"


def _presented(request: web.BaseRequest) -> Iterator[bytes]:
    """Every token that the request shows. A proxy's own Basic may come along, in a line of its own or in the same."""
    for line in request.headers.getall(hdrs.AUTHORIZATION, ()):
        for part in line.split(","):
            scheme, _, value = part.strip().partition(" ")
            if scheme.lower() == "bearer":
                yield _bytes(value)
            elif scheme.lower() == "basic":
                yield _password(value)
    for line in request.headers.getall(API_KEY, ()):
        if line.strip():
            yield _bytes(line)


def _password(value: str) -> bytes:
    """What stands behind the colon (RFC 7617); nothing, which is no token either, where it is not understood."""
    try:
        return base64.b64decode(_bytes(value), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _bytes(text: str) -> bytes:
    return text.strip().encode("utf-8", "surrogateescape")
