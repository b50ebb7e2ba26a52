"""Where the archive is, and who asks for it: URL, token, certificates. Nothing is asked here."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mothership_backup.config import TOKEN_VARIABLE
from mothership_backup.errors import ConfigError

_TOKEN: Final = re.compile("[!-~]+")
_MAX_TOKEN_CHARS: Final = 8192
_MAX_SHOWN_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Target:
    """A service's backup. Its ``repr`` has no token."""

    url: str
    token: str
    tls: ssl.SSLContext
    timeout_seconds: float

    def __repr__(self) -> str:
        return f"Target({self.name})"

    @property
    def name(self) -> str:
        """The URL without its query."""
        return urlsplit(self.url)._replace(query="", fragment="").geturl()

    def shown(self, text: str) -> str:
        """What the service said, for one line of a message: short, and without the token if it was echoed."""
        if self.token:
            text = text.replace(self.token, "(the token)")
        return " ".join(text[:_MAX_SHOWN_CHARS].split())


def split_url(text: str, what: str) -> SplitResult:
    """Raises ConfigError, naming ``what``, for anything but a URL of http or https with a host."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # it is looked at by being read
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise ConfigError(f"{what}: no URL such as http://127.0.0.1:8080/api/backup")
    return parts


def host_of(url: str) -> str:
    """Raises ConfigError, also for a URL with credentials: the process table would show them to everybody."""
    parts = split_url(url, "URL")
    if "@" in parts.netloc:
        raise ConfigError(
            "URL: credentials do not belong there, where everybody can read them:"
            f" use --token-file or ${TOKEN_VARIABLE}"
        )
    return parts.hostname or ""


def read_token(file: Path | None, environ: Mapping[str, str]) -> str:
    """The first line of the file, or the variable; empty when there is neither. Raises ConfigError."""
    if file is None:
        if TOKEN_VARIABLE not in environ:
            return ""
        return _checked(environ[TOKEN_VARIABLE], f"${TOKEN_VARIABLE}")
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            line = stream.readline(_MAX_TOKEN_CHARS)
    except OSError as error:
        raise ConfigError(f"--token-file: {file}: {error.strerror or error}") from error
    return _checked(line, f"--token-file: {file}")


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The system's certificate authorities, and those of the file. Raises ConfigError."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            reason = "no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"--ca-file: {ca_file}: {reason}") from error
    return context


def _checked(text: str, origin: str) -> str:
    token = text.strip()
    if not token:
        raise ConfigError(f"{origin}: it is empty, and should hold a token")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{origin}: a token is one word of printable ASCII characters, and this is none")
    return token
