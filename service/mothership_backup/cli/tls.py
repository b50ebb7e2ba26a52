"""TLS for `serve`: certificates from files that may change while it runs."""

from __future__ import annotations

import logging
import os
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mothership_backup.config import Server
from mothership_backup.errors import ConfigError

log: Final = logging.getLogger("mothership_backup")

LOOK_SECONDS: Final = 1.0

Stamp = tuple[int, int, int, int, int]


def server_context(server: Server, clock: Callable[[], float] = time.monotonic) -> ssl.SSLContext | None:
    """For the listener; None without ``server.tls_cert``. Raises ConfigError."""
    return Certificates(server, clock).context if server.tls_cert else None


class Certificates:
    """The last good certificates of their files, looked at with a handshake, at most once a second.

    A change makes a whole new context, which takes the place of the listener's in each handshake: a live one
    keeps every client CA that it ever had. Connections that run go on with what they began with.
    """

    def __init__(self, server: Server, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError, naming key and file: without a first certificate there is none to keep."""
        self._files = {
            key: Path(getattr(server, key))
            for key in ("tls_cert", "tls_key", "tls_client_ca")
            if getattr(server, key)
        }
        self._clock = clock
        self._looked = clock()
        self._complaint = ""
        self._stamps: list[Stamp | None] | None = self._stamps_now()
        self._current = self.context = self._load()
        self.context.sni_callback = self._swap  # called for a client without SNI too

    def _swap(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        connection.context = self._current

    def _look(self) -> None:
        stamps = self._stamps_now()  # before they are read: what changes meanwhile is seen by the next look
        if stamps == self._stamps:
            return
        self._stamps = None  # what cannot be loaded is tried again
        try:
            self._current = self._load()
        except ConfigError as error:
            if str(error) != self._complaint:  # told once, not each second
                self._complaint = str(error)
                log.error("%s; the certificates that were read last stay", error)
        else:
            self._stamps = stamps
            self._complaint = ""
            log.info("server.tls_cert: %s: read again", self._files["tls_cert"])

    def _stamps_now(self) -> list[Stamp | None]:
        return [_stamp(path) for path in self._files.values()]

    def _load(self) -> ssl.SSLContext:
        for key, path in self._files.items():
            _refuse_irregular(key, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load_pair(context)
        if "tls_client_ca" in self._files:
            _load_certificates(context, "tls_client_ca", self._files["tls_client_ca"])
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed shows no certificate, and its ticket outlives the CA in the file. Only in
            # TLS 1.3 can that be turned off here.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        cert = self._files["tls_cert"]
        # Into a context of its own: load_cert_chain's error does not say which of the two files it is about.
        _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "tls_cert", cert)
        key = "tls_key" if "tls_key" in self._files else "tls_cert"

        def refuse_passphrase() -> str:
            raise _refusal(key, self._files[key], "its private key has a passphrase, which nobody could type")

        try:
            context.load_cert_chain(cert, self._files[key], password=refuse_passphrase)
        except ssl.SSLError as error:
            is_other = error.reason == "KEY_VALUES_MISMATCH"
            reason = f"is not the key of {cert}" if is_other else "has no private key in PEM"
            raise _refusal(key, self._files[key], reason) from error
        except OSError as error:
            raise _refusal(key, self._files[key], error.strerror or str(error)) from error


def _refuse_irregular(key: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _refusal(key, path, error.strerror or str(error)) from error
    if not stat.S_ISREG(mode):
        raise _refusal(key, path, "is no regular file")  # opening a pipe would wait for its writer


def _load_certificates(context: ssl.SSLContext, key: str, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = "has no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise _refusal(key, path, reason or str(error)) from error


def _refusal(key: str, path: Path, reason: str) -> ConfigError:
    return ConfigError(f"server.{key}: {path}: {reason}")


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
