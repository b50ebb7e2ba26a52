"""A small mothership in one file, with the backup mounted in its own process: an example to copy.

It keeps nodes in one SQLite database and their readings in another, both in WAL mode, and writes all the
time. What it takes to be backed up is the one call of ``setup`` in ``make_app``.
"""

import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import aiosqlite
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mothership_backup import __version__, setup
from mothership_backup.config import Data, Server, Settings
from mothership_backup.errors import ConfigError

HOST = "127.0.0.1"
INTERVAL_SECONDS = 0.05
MAX_NODES = 1000
MAX_READINGS = 100_000  # about 6 MB; then the oldest are overwritten
SHUTDOWN_GRACE_SECONDS = 2
FLOOR_WIDTH_M, FLOOR_DEPTH_M = 12, 8

PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
NODES_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, x_m REAL NOT NULL, y_m REAL NOT NULL, seen_at TEXT
);
INSERT OR IGNORE INTO node (id, name, x_m, y_m)
VALUES (1, 'hall', 1, 4), (2, 'kitchen', 10, 2), (3, 'desk', 7, 6);
"""
READINGS_SCHEMA = """
CREATE TABLE IF NOT EXISTS reading (
    slot INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, node_id INTEGER NOT NULL,
    rssi_dbm REAL NOT NULL, taken_at TEXT NOT NULL
);
"""
# A ring of rows: the table cannot outgrow it.
STORE_READING = f"""
INSERT OR REPLACE INTO reading VALUES (:sequence % {MAX_READINGS}, :sequence, :node_id, :rssi_dbm, :taken_at)
"""
STORE_SEEN = "UPDATE node SET seen_at = :taken_at WHERE id = :node_id"
# One statement is one transaction: handlers share the connection, and nothing can come in between.
INSERT_NODE = "INSERT INTO node (name, x_m, y_m) SELECT ?, ?, ? WHERE (SELECT count(*) FROM node) < ?"
FLOOR_PLAN = {
    "floor_plan.json": f'{{"image": "demo.svg", "width_m": {FLOOR_WIDTH_M}, "depth_m": {FLOOR_DEPTH_M}}}\n',
    "demo.svg": f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {FLOOR_WIDTH_M} {FLOOR_DEPTH_M}">
  <path fill="none" stroke="black" stroke-width="0.1" d="M 0 0 h 12 v 8 h -12 z M 5 0 v 3 m 0 2 v 3 m 0 -4 h 7"/>
</svg>
""",
}

log = logging.getLogger(__name__)


class NewNode(BaseModel):
    """What ``POST /api/nodes`` takes: a name and a place on the floor plan."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    x_m: Annotated[float, Field(ge=0, le=FLOOR_WIDTH_M)]
    y_m: Annotated[float, Field(ge=0, le=FLOOR_DEPTH_M)]


@dataclass(frozen=True)
class Reading:
    """One measurement of one node."""

    sequence: int
    node_id: int
    rssi_dbm: float
    taken_at: str


class Feed:
    """The latest reading, for everybody who listens: a slow listener skips some, and nothing piles up."""

    def __init__(self) -> None:
        self._latest: Reading | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def publish(self, reading: Reading) -> None:
        self._latest = reading
        self._wake()

    async def close(self, _app: web.Application) -> None:
        self._closed = True
        self._wake()

    async def listen(self) -> AsyncGenerator[Reading, None]:
        """Yield each reading as it comes, until the feed is closed."""
        while not self._closed:
            await self._changed.wait()
            if self._latest is not None and not self._closed:
                yield self._latest

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


DATA_DIR = web.AppKey("DATA_DIR", Path)
NODES = web.AppKey("NODES", aiosqlite.Connection)
READINGS = web.AppKey("READINGS", aiosqlite.Connection)
WRITER = web.AppKey("WRITER", asyncio.Task[None])
FEED = web.AppKey("FEED", Feed)


def make_app(data_dir: Path) -> web.Application:
    """The mothership over ``data_dir``, which must exist; what is missing in it is created."""
    _draw_floor_plan(data_dir / "floor_plan")
    app = web.Application(client_max_size=64 * 1024)
    app[DATA_DIR], app[FEED] = data_dir, Feed()
    app.router.add_get("/api/nodes", get_nodes)
    app.router.add_post("/api/nodes", post_node)
    app.router.add_get("/api/events", get_events, allow_head=False)
    app.router.add_get("/healthz", get_health)
    app.cleanup_ctx.append(_databases)
    app.cleanup_ctx.append(_writer)
    app.on_shutdown.append(app[FEED].close)  # else the streams would hold up the shutdown
    settings = Settings(
        server=Server(shutdown_grace_seconds=SHUTDOWN_GRACE_SECONDS),
        data=Data(dir=data_dir.absolute(), version=f"demo {__version__}"),
    )
    setup(app, settings, prefix="/api")
    return app


async def get_nodes(request: web.Request) -> web.Response:
    rows = await request.app[NODES].execute_fetchall("SELECT * FROM node ORDER BY id")
    return web.json_response([dict(row) for row in rows])


async def post_node(request: web.Request) -> web.Response:
    # A web page of another site can send text/plain here without asking, but not JSON.
    if request.content_type != "application/json":
        return _problem(415, "the body must be application/json")
    try:
        node = NewNode.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return _problem(400, ": ".join([*map(str, first["loc"]), first["msg"]]))

    values = (node.name, node.x_m, node.y_m, MAX_NODES)
    try:
        async with request.app[NODES].execute(INSERT_NODE, values) as cursor:
            inserted, node_id = cursor.rowcount, cursor.lastrowid
    except aiosqlite.IntegrityError:
        return _problem(409, f"name: there is a node named {node.name!r}")
    if not inserted:
        return _problem(409, f"there are {MAX_NODES} nodes, and no more are taken")
    return web.json_response({"id": node_id, **node.model_dump(), "seen_at": None}, status=201)


async def get_events(request: web.Request) -> web.StreamResponse:
    """Readings as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the listener has left
        async with contextlib.aclosing(request.app[FEED].listen()) as readings:
            async for reading in readings:
                await response.write(f"data: {json.dumps(asdict(reading))}\n\n".encode())
    return response


async def get_health(request: web.Request) -> web.Response:
    if request.app[WRITER].done():
        return web.json_response({"status": "the writer has stopped"}, status=503)
    return web.json_response({"status": "ok"})


def _problem(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


async def _databases(app: web.Application) -> AsyncIterator[None]:
    async with (
        aiosqlite.connect(app[DATA_DIR] / "spaxel.db", isolation_level=None) as nodes,
        aiosqlite.connect(app[DATA_DIR] / "telemetry.db", isolation_level=None) as readings,
    ):
        nodes.row_factory = aiosqlite.Row
        await nodes.executescript(PRAGMAS + NODES_SCHEMA)
        await readings.executescript(PRAGMAS + READINGS_SCHEMA)
        app[NODES], app[READINGS] = nodes, readings
        yield


async def _writer(app: web.Application) -> AsyncIterator[None]:
    app[WRITER] = asyncio.create_task(_write_readings(app[NODES], app[READINGS], app[FEED]))
    yield
    app[WRITER].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await app[WRITER]


async def _write_readings(nodes: aiosqlite.Connection, readings: aiosqlite.Connection, feed: Feed) -> None:
    """Write until cancelled; after an error of the databases (a full disk) ``/healthz`` says 503."""
    try:
        [(sequence,)] = await readings.execute_fetchall("SELECT coalesce(max(sequence), 0) FROM reading")
        while True:
            for (node_id,) in await nodes.execute_fetchall("SELECT id FROM node ORDER BY id"):
                sequence += 1
                rssi_dbm = round(-60 + 12 * math.sin(sequence / 40 + node_id), 1)
                reading = Reading(sequence, node_id, rssi_dbm, datetime.now(UTC).isoformat())
                await readings.execute(STORE_READING, asdict(reading))
                await nodes.execute(STORE_SEEN, asdict(reading))
                feed.publish(reading)
                await asyncio.sleep(INTERVAL_SECONDS)
    except aiosqlite.Error as error:
        log.error("the writer has stopped: %s", error)


def _draw_floor_plan(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for name, text in FLOOR_PLAN.items():
        if not (directory / name).exists():
            (directory / name).write_text(text, encoding="utf-8")


def main(port: int, data_dir: Path | None) -> int:
    """Run the demo on loopback until SIGINT or SIGTERM; without ``data_dir`` in a directory of its own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with _listen(port) as listener, _home(data_dir) as home:
            asyncio.run(_serve(make_app(home), listener))
    except (ConfigError, OSError, aiosqlite.Error) as error:
        print(f"mothership-backup: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _home(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is None:
        with tempfile.TemporaryDirectory(prefix="mothership-backup-demo-") as directory:
            yield Path(directory)
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    if any(data_dir.glob("*.db")) and not (data_dir / "floor_plan" / "demo.svg").exists():
        raise ConfigError(f"{data_dir} holds databases that are not the demo's; choose an empty directory")
    yield data_dir


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(f"port {port} on {HOST}: {error.strerror}; choose another with --port") from error


async def _serve(app: web.Application, listener: socket.socket) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # Longer than the backup's own grace, so that a running backup ends by itself and says why.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_GRACE_SECONDS + 2)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"mothership-backup {__version__} demo listens on {url}", file=sys.stderr)
        print(f"  curl -fOJ '{url}/api/backup?strict=true'", file=sys.stderr, flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
