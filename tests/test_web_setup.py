from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mothership_backup import setup
from mothership_backup.config import Data, Settings
from mothership_backup.errors import SetupError

OURS = "Handlers.get_backup"
SETTINGS = Settings()

Register = Callable[[web.Application], object]


async def theirs(_: web.Request) -> web.Response:
    return web.json_response({"host": True})


@contextlib.asynccontextmanager
async def hosted(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def fetch(url: str, method: str = "HEAD") -> aiohttp.ClientResponse:
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        await response.read()
        return response


async def start_fails(app: web.Application) -> str:
    runner = web.AppRunner(app)
    with pytest.raises(SetupError) as raised:
        await runner.setup()
    await runner.cleanup()
    return raised.value.message


def subapp(prefix: str, *paths: str) -> Register:
    def register(app: web.Application) -> None:
        inner = web.Application()
        for path in paths:
            inner.router.add_get(path, theirs)
        app.add_subapp(prefix, inner)

    return register


def get(path: str) -> Register:
    return lambda app: app.router.add_get(path, theirs)


async def test_mounted(data_dir: Path) -> None:
    """One call, and GET and HEAD answer with and without a slash, other methods with 405 and Allow."""
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)))

    async with hosted(app) as url:
        for path in ("/api/backup", "/api/backup/"):
            assert (await fetch(url + path, "GET")).content_type == "application/zip"
            assert (await fetch(url + path)).status == 200
            refused = await fetch(url + path, "DELETE")
            assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


async def test_no_more_than_its_paths(data_dir: Path) -> None:
    """A host gets no probes and no metrics of ours."""
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)))

    async with hosted(app) as url:
        assert [(await fetch(url + path)).status for path in ("/healthz", "/metrics", "/", "/api")] == [
            404
        ] * 4


@pytest.mark.parametrize(
    "register",
    [
        get("/api/backup"),
        get("/api/backup/"),
        lambda app: app.router.add_post("/api/backup", theirs),
        lambda app: app.router.add_route("*", "/api/backup", theirs),
        get("/api/backup/{tail:.*}"),
        subapp("/api/backup", "/x"),
        subapp("/api", "/backup"),
    ],
    ids=["get", "slash", "post", "any", "tail", "application there", "application around"],
)
async def test_taken_before(register: Register) -> None:
    """A path that the host has given away already is told by `setup` itself, with its owner."""
    app = web.Application()
    register(app)

    with pytest.raises(SetupError, match=r"^/api/backup/? .*(theirs|PrefixedSubAppResource|MatchInfo|404)"):
        setup(app, SETTINGS)


@pytest.mark.parametrize(
    "register",
    [
        lambda app: app.router.add_post("/api/backup", theirs),
        get("/api/backup"),
        subapp("/api/backup", "/x"),
        subapp("/api", "/backup"),
        lambda app: app.router.add_static("/api/backup", Path(__file__).parent),
    ],
    ids=["post", "get", "application there", "application around", "static"],
)
async def test_taken_after(register: Register) -> None:
    """A second owner that comes later, and that aiohttp would ignore, stops the start; both are named."""
    app = web.Application()
    setup(app, SETTINGS)
    register(app)

    message = await start_fails(app)

    assert OURS in message
    assert "/api/backup" in message
    assert "theirs" in message or "PrefixedSubAppResource" in message or "StaticResource" in message


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "path", ["/{tail:.*}", "/api/{name}", "/api/{tail:.+}", "/{a}/{b}", "/api/backup/{id}"]
)
async def test_catch_alls_are_no_collision(data_dir: Path, path: str, is_before: bool) -> None:
    """A host's routes for everything else do no harm, wherever they stand: ours are found first."""
    app = web.Application()
    if is_before:
        app.router.add_route("*", path, theirs)
    setup(app, Settings(data=Data(dir=data_dir)))
    if not is_before:
        app.router.add_route("*", path, theirs)

    async with hosted(app) as url:
        assert "X-Backup-Id" in (await fetch(url + "/api/backup")).headers
        assert "X-Backup-Id" in (await fetch(url + "/api/backup/")).headers


async def test_inside_a_mounted_application(data_dir: Path) -> None:
    """An application that has the backup can itself be mounted into another one."""
    inner, outer = web.Application(), web.Application()
    setup(inner, Settings(data=Data(dir=data_dir)))
    outer.add_subapp("/rover", inner)

    async with hosted(outer) as url:
        assert "X-Backup-Id" in (await fetch(url + "/rover/api/backup")).headers
        assert (await fetch(url + "/api/backup")).status == 404


async def test_collision_inside_a_mounted_application() -> None:
    """A collision there is found too, and told with the path as clients see it."""
    inner, outer = web.Application(), web.Application()
    setup(inner, SETTINGS)
    inner.router.add_get("/api/backup", theirs)
    outer.add_subapp("/rover", inner)

    message = await start_fails(outer)

    assert "/rover/api/backup" in message
    assert "theirs" in message


async def test_two_mounts(tmp_path: Path, data_dir: Path) -> None:
    """Two backups of two directories live in one application, each with its own settings."""
    app = web.Application()
    empty = tmp_path / "empty"
    empty.mkdir()
    setup(app, Settings(data=Data(dir=data_dir)), prefix="/one")
    setup(app, Settings(data=Data(dir=empty)), prefix="/two/")

    async with hosted(app) as url:
        one, two = await fetch(url + "/one/backup"), await fetch(url + "/two/backup")

    assert (one.headers["X-Backup-Databases"], two.headers["X-Backup-Databases"]) == ("2", "0")


async def test_same_mount_twice() -> None:
    """The same prefix twice is a collision with ourselves."""
    app = web.Application()
    setup(app, SETTINGS)

    with pytest.raises(SetupError, match=OURS):
        setup(app, SETTINGS, prefix="/api/")


@pytest.mark.parametrize("prefix", ["api", "/{name}", "/a?b", "/a#b", "/%61"])
async def test_bad_prefix(prefix: str) -> None:
    """A prefix that is no plain path is refused by name."""
    with pytest.raises(SetupError, match="prefix"):
        setup(web.Application(), SETTINGS, prefix=prefix)


async def test_at_the_root(data_dir: Path) -> None:
    """An empty prefix means /backup."""
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)), prefix="")

    async with hosted(app) as url:
        assert (await fetch(url + "/backup")).status == 200


async def test_too_late_in_a_startup_handler() -> None:
    """In `on_startup` aiohttp still takes routes, but would never run their clean-up: refused."""
    app = web.Application()

    async def start(app: web.Application) -> None:
        setup(app, SETTINGS)

    app.on_startup.append(start)

    assert "too late" in await start_fails(app)


async def test_too_late_when_running() -> None:
    """After the start it says so, in our words."""
    app = web.Application()
    async with hosted(app):
        with pytest.raises(SetupError, match="too late"):
            setup(app, SETTINGS)


async def test_too_late_when_mounted() -> None:
    """An application that another one has taken in is closed for new routes."""
    inner = web.Application()
    web.Application().add_subapp("/rover", inner)

    with pytest.raises(SetupError, match="too late"):
        setup(inner, SETTINGS)


async def test_leaves_the_host_alone(data_dir: Path) -> None:
    """No middleware, no signal handler, no log handler, and no thread after the clean-up."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    loggers = [logging.getLogger(name) for name in (None, "mothership_backup", "aiohttp")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)))
    assert not app.middlewares

    async with hosted(app) as url:
        await fetch(url + "/api/backup", "GET")
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == handlers

    assert [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers] == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mothership-backup")]


async def test_shutdown_hook_does_not_wait(data_dir: Path) -> None:
    """`on_shutdown` returns at once, so that the host's other hooks are not held up; new backups get 503."""
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)))

    async with hosted(app) as url, aiohttp.ClientSession() as session:
        async with asyncio.timeout(0.1):
            await app.shutdown()
        async with session.get(url + "/api/backup") as response:
            problem = await response.json()

    assert (response.status, problem["code"]) == (503, "shutting_down")
    assert "Retry-After" in response.headers
