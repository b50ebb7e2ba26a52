"""`serve`: the backup as a service of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
from typing import Annotated, Final

import typer
from aiohttp import web

from mothership_backup import __version__
from mothership_backup.backup import probe
from mothership_backup.cli.log_format import configure
from mothership_backup.cli.notify import READY, STOPPING, notify
from mothership_backup.cli.options import ConfigFile, DataDir, load_settings
from mothership_backup.cli.terminal import say
from mothership_backup.cli.tls import server_context
from mothership_backup.config import Option, Settings
from mothership_backup.errors import ConfigError
from mothership_backup.names import RESTORE_JOURNAL
from mothership_backup.web.anonymous import is_loopback
from mothership_backup.web.app import RUNNING, build_app

log: Final = logging.getLogger("mothership_backup")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; choose another port with --port",
    errno.EACCES: "no right to listen there; choose a port above 1023 with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with --host",
}


def serve(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Answer GET /api/backup over HTTP, until SIGTERM or SIGINT."""
    settings = load_settings(
        config,
        data_dir,
        Option("--host", "server", "host", host),
        Option("--port", "server", "port", port),
    )
    _run(settings)


def _run(settings: Settings) -> None:
    """Raises ConfigError for a start that is refused."""
    _refuse_restoring(settings)
    addresses = _resolve(settings)
    _refuse_reachable(settings, addresses)
    tls = server_context(settings.server)
    configure(settings.log)
    engine = probe(settings).line()
    if not settings.data.dir.is_dir():
        log.warning("data.dir: %s is no directory (now); backups fail until it is there", settings.data.dir)
    asyncio.run(_serve(settings, engine, tls))


def _refuse_restoring(settings: Settings) -> None:
    """Only looked for by name: nothing below the data directory is opened here."""
    journal = settings.data.dir / RESTORE_JOURNAL
    if os.path.lexists(journal):
        raise ConfigError(
            f"a restore into {settings.data.dir} was interrupted (or still runs): {journal} is there; end it with"
            f" `restore --continue {settings.data.dir}`, or take it back with `restore --undo {settings.data.dir}`"
        )


def _resolve(settings: Settings) -> list[str]:
    server = settings.server
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(
            f"server.host: {server.host!r}: {reason}; --host takes an address of this machine"
        ) from error
    return [str(address[0]) for *_, address in found]


def _refuse_reachable(settings: Settings, addresses: list[str]) -> None:
    auth = settings.auth
    if auth.allow_anonymous or auth.has_credentials or all(is_loopback(address) for address in addresses):
        return
    raise ConfigError(
        f"server.host: {settings.server.host} can be reached from other machines, and everybody there could fetch"
        " every database: put a credential into auth.tokens (`mothership-backup token new NAME` makes one), or use"
        " 127.0.0.1, or set auth.allow_anonymous = true if the network keeps strangers out"
    )


async def _serve(settings: Settings, engine: str, tls: ssl.SSLContext | None) -> None:
    app = build_app(settings)
    # aiohttp waits this long twice (0 is for ever); the backups cut themselves before the first time is over.
    timeout_seconds = max(settings.server.shutdown_grace_seconds, 0.1)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=timeout_seconds)
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            log.info("asked again: the running backups are cut now")
            app[RUNNING].cut_all()
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        # Not add_signal_handler: the loop's end would bring the default back, and one more signal kill the process.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        await runner.setup()
        await _listen(runner, settings, tls)
        _tell(runner, settings, engine)
        notify(READY, os.environ)
        await stopped.wait()
        notify(STOPPING, os.environ)
    finally:
        await runner.cleanup()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it ends anyway, and with its own exit code


async def _listen(runner: web.AppRunner, settings: Settings, tls: ssl.SSLContext | None) -> None:
    server = settings.server
    try:
        await web.TCPSite(runner, server.host, server.port, ssl_context=tls).start()
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(f"cannot listen on {server.host}, port {server.port}: {remedy}") from error


def _tell(runner: web.AppRunner, settings: Settings, engine: str) -> None:
    scheme = "https" if settings.server.tls_cert else "http"
    urls = [_url(scheme, str(host), port) for host, port, *_ in runner.addresses]
    for url in urls:
        say(f"mothership-backup {__version__} listens on {url}")
    credential = '-H "Authorization: Bearer $TOKEN" ' if settings.auth.has_credentials else ""
    certificate = '--cert "$CERTIFICATE" ' if settings.server.tls_client_ca else ""
    say(
        f"  curl -fOJ {certificate}{credential}'{_local(urls[0])}{settings.server.base_path}/api/backup?strict=true'"
    )
    say(f"  data directory {settings.data.dir}, {engine}")
    say(f"  {_answered(settings)}")


def _answered(settings: Settings) -> str:
    """Who is."""
    if settings.auth.allow_anonymous:
        return "auth.allow_anonymous is on: whoever can connect can fetch every database"
    if settings.auth.has_credentials:
        keys = [key for key in ("tokens", "tokens_file") if getattr(settings.auth, key)]
        return f"only who shows a credential of {' or '.join(f'auth.{key}' for key in keys)} is answered"
    if settings.server.trusted_proxies:
        return "nobody gets a backup: server.trusted_proxies is set, and auth has no credential that could be shown"
    return "only clients on this machine are answered; a reverse proxy on this machine looks like one"


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _local(url: str) -> str:
    """Where a client on this machine finds it."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
