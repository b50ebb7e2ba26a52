"""Alive, ready, and not ready for each reason that there is; open to everybody, and silent about the place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from harness import MakeDatabase, Service, StartService, serving
from mothership_backup.config import Data, Settings
from mothership_backup.names import RESTORE_JOURNAL
from mothership_backup.web.app import build_app
from mothership_backup.web.probes import FRESH_SECONDS, Readiness, look_at

PROBES = ("/livez", "/readyz", "/healthz")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("probes")
    make_database(folder / "data" / "events.db")
    with serving(folder, folder / "data") as service:
        yield service


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def statuses(service: Service, **headers: str) -> list[int]:
    return [service.request(path, headers=headers, seconds=5).status for path in PROBES]


def test_a_service_with_its_directory_is_ready(ready: Service) -> None:
    """No credential, no local address, no certain Host is asked for; nothing of the place is told."""
    assert statuses(ready, Host="probe.example", Via="1.1 somebody") == [200, 200, 200]
    for path in PROBES:
        answer = ready.request(path)
        assert b"/data" not in answer.body
        assert b"events" not in answer.body
    assert ready.request("/readyz").json() == {"status": "ready"}


def test_without_its_directory_it_lives_but_is_not_ready(tmp_path: Path, service: StartService) -> None:
    """To restart it would not help: /livez stays good."""
    running = service(tmp_path / "missing")

    answer = running.request("/readyz")

    assert statuses(running) == [200, 503, 200]
    assert answer.json() == {"status": "not_ready", "reason": "data_dir_missing"}


def test_each_reason(tmp_path: Path, data_dir: Path) -> None:
    """In a word, without a path."""
    assert look_at(data_dir) == ""
    assert look_at(tmp_path / "missing") == "data_dir_missing"
    assert look_at(data_dir / "events.db") == "data_dir_unreadable"

    (data_dir / RESTORE_JOURNAL).touch()

    assert look_at(data_dir) == "data_dir_restoring"


async def test_a_look_counts_for_five_seconds(data_dir: Path) -> None:
    """Probes cost a disk nothing; what became unreadable shows at the next look."""
    clock, looks = Clock(), 0

    def look() -> str:
        nonlocal looks
        looks += 1
        return look_at(data_dir)

    readiness = Readiness(look, clock)
    assert await readiness.reason() == ""
    data_dir.rename(data_dir.with_name("elsewhere"))
    clock.now += FRESH_SECONDS - 0.1
    assert (await readiness.reason(), looks) == ("", 1)

    clock.now += 0.1

    assert (await readiness.reason(), looks) == ("data_dir_missing", 2)


async def test_a_look_that_hangs_makes_it_not_ready() -> None:
    """A dead disk: the last good answer holds for five seconds, one look is under way, the loop goes on."""
    clock, hang, begun = Clock(), threading.Event(), []

    def look() -> str:
        begun.append(1)
        if len(begun) == 2:
            hang.wait(30)
        return ""

    readiness = Readiness(look, clock)
    assert await readiness.reason() == ""
    clock.now += FRESH_SECONDS
    assert await readiness.reason() == ""

    clock.now += FRESH_SECONDS + 0.1

    assert await readiness.reason() == "data_dir_silent"
    assert len(begun) == 2
    hang.set()
    assert await readiness.reason() == ""


async def test_before_the_first_look_has_ended_it_is_not_ready() -> None:
    """Nothing is known yet."""
    hang = threading.Event()

    def look() -> str:
        hang.wait(30)
        return ""

    readiness = Readiness(look)
    assert await readiness.reason() == "data_dir_silent"

    hang.set()

    assert await readiness.reason() == ""


@pytest.mark.parametrize("path", PROBES)
def test_only_get_and_head(ready: Service, path: str) -> None:
    """A probe changes nothing."""
    assert ready.request(path, "HEAD").status == 200
    assert ready.request(path, "POST").status == 405


async def test_while_it_shuts_down_it_is_not_ready(data_dir: Path) -> None:
    """And lives: running backups may end."""
    app = build_app(Settings(data=Data(dir=data_dir)))

    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/readyz")).status == 200
        await app.shutdown()
        answer = await client.get("/readyz")

        assert (answer.status, (await answer.json())["reason"]) == (503, "shutting_down")
        assert (await client.get("/livez")).status == 200
