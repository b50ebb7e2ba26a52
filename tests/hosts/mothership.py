"""A host application with the backup mounted, as hard on it as hosts are: the tests' command line picks how.

mothership.py SETTINGS_JSON [--json-errors] [--one-second] [--own DATABASE] [--reader-python EXECUTABLE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

opened: list[str] = []


def note(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: everything that this process opens or lists by name, from now on."""
    if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir") and arguments:
        name = arguments[0]
        if isinstance(name, (str, bytes, os.PathLike)):
            opened.append(f"{event} {os.path.abspath(os.fsdecode(name))}")


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every exception with JSON, as many applications do."""
    try:
        return await handler(request)
    except Exception as error:
        return web.json_response({"host-error": repr(error)}, status=500)


@web.middleware
async def one_second(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives each handler a second."""
    try:
        async with asyncio.timeout(1):
            return await handler(request)
    except TimeoutError:
        return web.json_response({"host-error": "too slow"}, status=504)


async def fork(_: web.Request) -> web.Response:
    """A worker as multiprocessing forks it: it inherits every descriptor of this process and stays."""
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            signal.pause()
    return web.json_response({"pid": pid})


def own(app: web.Application, path: Path) -> None:
    """The host's own database, open in this process, with a write transaction on demand."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    async def hold(_: web.Request) -> web.Response:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE reading SET value = -1 WHERE id = 1")
        opened.clear()
        return web.json_response({})

    async def release(_: web.Request) -> web.Response:
        db.execute("COMMIT")
        return web.json_response({})

    app.router.add_post("/hold", hold)
    app.router.add_post("/release", release)


async def list_opened(_: web.Request) -> web.Response:
    return web.json_response({"opened": opened})


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("settings")
    arguments.add_argument("--json-errors", action="store_true")
    arguments.add_argument("--one-second", action="store_true")
    arguments.add_argument("--own", type=Path)
    arguments.add_argument("--reader-python")
    given = arguments.parse_args()
    if given.reader_python:
        sys.executable = given.reader_python

    import mothership_backup
    from mothership_backup.config import Settings

    middlewares = [json_errors] * given.json_errors + [one_second] * given.one_second
    app = web.Application(middlewares=middlewares)
    app.router.add_post("/fork", fork)
    app.router.add_get("/opened", list_opened)
    if given.own:
        own(app, given.own)
    mothership_backup.setup(app, Settings.model_validate(json.loads(given.settings)))
    sys.addaudithook(note)
    listener = socket.create_server(("127.0.0.1", 0))
    line = f"the host listens on http://127.0.0.1:{listener.getsockname()[1]}"
    web.run_app(app, sock=listener, access_log=None, print=lambda _: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
