"""`/api/status` and `/api/databases`: how things stand, for automations."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from harness import Service, StartService, run
from mothership_backup import __version__, setup
from mothership_backup.config import Archive, Data, History, Settings
from processes import Samples, wait_until

Client = TestClient[web.Request, web.Application]
KEYS = [
    "version",
    "app_version",
    "uptime_seconds",
    "last_success",
    "last_success_age_seconds",
    "last_outcome",
    "last_size_bytes",
    "last_duration_seconds",
    "last_error",
    "running",
    "database_count",
    "failed_sources",
    "planned_at",
]


Mount = Callable[[Settings], Awaitable[Client]]


@pytest.fixture
def mounted(aiohttp_client: Callable[[web.Application], Awaitable[Client]]) -> Mount:
    """A host with the backup below /x, and a client on a real socket."""

    async def mount(settings: Settings) -> Client:
        app = web.Application()
        setup(app, settings, prefix="/x")
        return await aiohttp_client(app)

    return mount


async def status_of(client: Client) -> dict[str, Any]:
    answer = await client.get("/x/status")
    document = await answer.json()
    assert isinstance(document, dict)
    return document


async def ended_in(client: Client, outcome: str) -> dict[str, Any]:
    """The status once the last backup is over: its client has the last byte a moment before."""
    async with asyncio.timeout(10):
        while (found := await status_of(client))["last_outcome"] != outcome:
            pass
    return found


def status(service: Service) -> dict[str, Any]:
    return service.request("/api/status").json()


def ended(service: Service, outcome: str) -> dict[str, Any]:
    """The status once the last backup is over: its client has the last byte a moment before."""
    wait_until(outcome, lambda: status(service)["last_outcome"] == outcome)
    return status(service)


def test_before_the_first_backup(service: StartService, data_dir: Path) -> None:
    """Flat, exactly application/json, null where nothing is known, and no reader is started for it."""
    running = service(data_dir)

    with Samples(lambda: running.readers()) as samples:
        answer = running.request("/api/status")
        for _ in range(20):
            running.request("/api/status/", "HEAD")

    assert samples.seen == []
    document = answer.json()
    assert list(document) == KEYS
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert not [value for value in document.values() if isinstance(value, dict | list)]
    assert (document["version"], document["running"]) == (__version__, 0)
    assert {key for key in KEYS if document[key] is None} == {
        *(key for key in KEYS if key.startswith("last_")),
        *("app_version", "database_count", "failed_sources", "planned_at"),
    }


async def test_after_backups(mounted: Mount, data_dir: Path) -> None:
    """The last one counts; last_success only moves with a complete one."""
    client = await mounted(Settings(data=Data(dir=data_dir, version="3.1")))
    size = len(await (await client.get("/x/backup")).read())
    good = await ended_in(client, "complete")
    assert (good["last_size_bytes"], good["last_error"], good["app_version"]) == (size, None, "3.1")
    assert (good["database_count"], good["failed_sources"]) == (2, 0)
    at = datetime.fromisoformat(good["last_success"])
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert 0 <= good["last_success_age_seconds"] < 60

    (data_dir / "link.db").symlink_to("events.db")
    await (await client.get("/x/backup")).read()
    bad = await ended_in(client, "incomplete")
    assert bad["last_success"] == good["last_success"]
    assert bad["last_error"]
    assert bad["failed_sources"] == 1

    assert (await client.get("/x/backup?database=nothing")).status == 404
    refused = await ended_in(client, "refused")
    assert (refused["last_success"], refused["failed_sources"]) == (good["last_success"], 1)


async def test_a_plan_counts_too(mounted: Mount, data_dir: Path) -> None:
    """HEAD and /databases see the sources; a request for a part of them says nothing of all."""
    client = await mounted(Settings(data=Data(dir=data_dir)))
    await client.head("/x/backup?database=ev*")
    assert (await status_of(client))["database_count"] is None

    await client.get("/x/databases")
    seen = await status_of(client)

    assert (seen["database_count"], seen["failed_sources"], seen["last_outcome"]) == (2, 0, None)
    assert abs(datetime.fromisoformat(seen["planned_at"]).timestamp() - time.time()) < 60


def test_a_running_one_is_counted(service: StartService, big_dir: Path) -> None:
    """As long as it runs."""
    running = service(big_dir, {"limits": {"read_bytes_per_second": 300_000}})

    with running.stream():
        assert status(running)["running"] == 1

    wait_until("its end", lambda: status(running)["running"] == 0)


async def test_a_restart_remembers(mounted: Mount, data_dir: Path, tmp_path: Path) -> None:
    """With a file."""
    settings = Settings(data=Data(dir=data_dir), history=History(path=str(tmp_path / "history.db")))
    first = await mounted(settings)
    await (await first.get("/x/backup")).read()
    before = await ended_in(first, "complete")
    await first.close()

    after = await status_of(await mounted(settings))

    same = ("last_success", "last_outcome", "last_size_bytes", "database_count", "failed_sources")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["planned_at"] is not None


async def test_databases_in_the_words_of_the_command(mounted: Mount, data_dir: Path) -> None:
    """What a backup would cover now, and what not and why: the same document as `databases --json`."""
    (data_dir / "link.db").symlink_to("events.db")
    client = await mounted(Settings(data=Data(dir=data_dir), archive=Archive(strict=True)))

    answer = await client.get("/x/databases")
    command = (sys.executable, "-m", "mothership_backup", "databases", "--json", "--data-dir", data_dir)
    done = run(*command)

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    document = await answer.json()
    assert document == json.loads(done.stdout)
    assert (document["complete"], document["databases"], document["failed"]) == (False, 2, 1)
    sources = {source["name"]: source for source in document["sources"]}
    assert sources["events.db"]["status"] == "ok"
    assert sources["link.db"]["error"]["code"] == "symlink"


async def test_databases_where_none_can_be_read(mounted: Mount, tmp_path: Path) -> None:
    """That is an answer, not an error."""
    (tmp_path / "a.db").symlink_to("b")
    client = await mounted(Settings(data=Data(dir=tmp_path)))

    document = await (await client.get("/x/databases")).json()

    assert (document["databases"], document["failed"]) == (0, 1)
    assert (await status_of(client))["failed_sources"] == 1


async def test_databases_without_a_directory(mounted: Mount, tmp_path: Path) -> None:
    """That is an error, as for a backup; the status does not care."""
    client = await mounted(Settings(data=Data(dir=tmp_path / "missing")))

    answer = await client.get("/x/databases")

    assert (answer.status, (await answer.json())["code"]) == (500, "data_dir_missing")
    assert (await status_of(client))["database_count"] is None


@pytest.mark.parametrize("path", ["status", "databases", "backups", "backups/"])
async def test_mounted(mounted: Mount, data_dir: Path, path: str) -> None:
    """A host gets them too, below its prefix; other methods are 405 with Allow, strangers are 403."""
    client = await mounted(Settings(data=Data(dir=data_dir)))

    answer = await client.get(f"/x/{path}")
    head = await client.head(f"/x/{path}")
    other = await client.put(f"/x/{path}")
    stranger = await client.get(f"/x/{path}", headers={"X-Forwarded-For": "203.0.113.7"})

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(await answer.read())
    assert (head.status, await head.read()) == (200, b"")
    assert (other.status, other.headers["Allow"]) == (405, "GET, HEAD")
    assert (await other.json())["code"] == "method_not_allowed"
    assert (stranger.status, (await stranger.json())["code"]) == (403, "anonymous_refused")
