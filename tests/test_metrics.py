"""What a Prometheus server sees, judged by its own tool, and the alerts on it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

import mothership_backup
from harness import MakeDatabase, Service, StartService, drain, run, serving, tool
from mothership_backup.config import Auth, Data, Settings
from processes import wait_until

PREFIX = "mothership_backup_"
RULES = Path(__file__).resolve().parents[1] / "deploy" / "prometheus"
NAMES = {
    "backups_total",
    "backup_duration_seconds",
    "sent_bytes_total",
    "running",
    "last_success_timestamp_seconds",
    "last_size_bytes",
    "pin_seconds",
    "wal_growth_bytes",
    "reader_start_seconds",
    "loop_lag_seconds",
    "source_size_bytes",
    "build_info",
}


def read(text: str) -> dict[str, float]:
    """Sample -> value, without our prefix, its labels as they are written."""
    return {
        sample.name.removeprefix(PREFIX)
        + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics(service: Service) -> dict[str, float]:
    answer = service.request("/metrics", seconds=5)
    assert answer.status == 200, answer.body
    return read(answer.body.decode())


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """A service that has made one complete backup, and refused one parameter."""
    folder = tmp_path_factory.mktemp("metrics")
    make_database(folder / "data" / "events.db")
    make_database(folder / "data" / "nodes.db", journal="delete", rows=100)
    (folder / "data" / "floor_plan").mkdir()
    (folder / "data" / "floor_plan" / "ground.svg").write_text("<svg/>\n")
    with serving(folder, folder / "data") as service:
        archive = service.archive()
        assert service.request("/api/backup?colour=red").status == 400
        wait_until("its number", lambda: metrics(service)["backups_total{outcome=complete}"] == 1)
        assert metrics(service)["sent_bytes_total"] == len(archive.data)
        yield service


def test_a_backup_leaves_its_numbers(used: Service) -> None:
    """Outcome, bytes, times, pins: each of them from that one backup."""
    seen = metrics(used)

    assert seen["backups_total{outcome=failed}"] == 0
    assert seen["last_size_bytes"] == seen["sent_bytes_total"] > 0
    assert seen["last_success_timestamp_seconds"] > 1.7e9
    for name in ("backup_duration_seconds", "reader_start_seconds", "pin_seconds", "wal_growth_bytes"):
        assert seen[f"{name}_count"] == 1, name
    assert 0 < seen["pin_seconds_sum"] < seen["backup_duration_seconds_sum"]
    assert 0 < seen["reader_start_seconds_sum"] < seen["backup_duration_seconds_sum"]
    assert seen["running"] == 0


def test_each_name_of_the_interface_is_there(used: Service) -> None:
    """Dashboards are built on them."""
    text = used.request("/metrics").body.decode()

    for name in NAMES:
        assert re.search(rf"^{PREFIX}{name}(_count)?[ {{]", text, re.MULTILINE), name


def test_labels_hold_no_path_but_databases_names(used: Service) -> None:
    """Databases only, as the archive names them; nothing of where they are."""
    text = used.request("/metrics").body.decode()

    sources = set(re.findall(r'source="([^"]*)"', text))
    assert sources == {"events.db", "nodes.db"}
    values = set(re.findall(r'="([^"]*)"', text)) - sources
    assert [value for value in values if "/" in value or "\\" in value] == []
    assert "ground.svg" not in text


def test_not_everybody_may_see_them(used: Service) -> None:
    """Names of databases are in them: the rule of `/api/status` holds."""
    answer = used.request("/metrics", headers={"Host": "stranger.example"})

    assert (answer.status, answer.json()["code"]) == (403, "anonymous_refused")


def test_promtool_has_nothing_to_say(used: Service) -> None:
    """Prometheus' own lint: names, units, types, help."""
    text = used.request("/metrics").body

    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_alerts_fire_when_they_should() -> None:
    """Too old, incomplete, failing, never: by promtool's unit tests."""
    rules = RULES / "alerts.yml"
    done = run(tool("promtool"), "check", "rules", rules)
    assert done.returncode == 0, done.stdout + done.stderr

    done = run(tool("promtool"), "test", "rules", RULES / "alerts_test.yml", cwd=RULES)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_speak_of_metrics_that_there_are() -> None:
    """A rule on a misspelt metric never fires."""
    spoken_of = set(re.findall(rf"\b{PREFIX}([a-z_]+)", (RULES / "alerts.yml").read_text()))

    assert spoken_of <= NAMES
    assert spoken_of


def test_what_fails_and_what_is_refused_is_counted(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """A missing directory, then a slot that is taken: neither is a success."""
    running = service(
        tmp_path / "data", {"limits": {"concurrent_backups": 1, "read_bytes_per_second": 200_000}}
    )
    assert running.request().status == 500
    make_database(tmp_path / "data" / "big.db", rows=2_000, random_bytes=1000)

    with contextlib.closing(running.stream()):
        assert running.request().status == 503
        during = metrics(running)
    wait_until("the end of it", lambda: metrics(running)["running"] == 0)
    after = metrics(running)

    assert during["running"] == 1
    assert during["backups_total{outcome=failed}"] == 1
    assert during["backups_total{outcome=refused}"] == 1
    assert after["backups_total{outcome=client_left}"] == 1
    assert after["last_success_timestamp_seconds"] == 0
    assert after["source_size_bytes{source=big.db}"] > 2_000_000


@pytest.mark.live_engine
def test_what_a_pin_costs_is_told(tmp_path: Path, make_database: MakeDatabase, service: StartService) -> None:
    """A WAL that grows while a slow backup holds its database."""
    database = make_database(tmp_path / "data" / "big.db", rows=1_500, random_bytes=1000)
    running = service(tmp_path / "data", {"limits": {"read_bytes_per_second": 2_500_000}})

    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA wal_autocheckpoint=0")
        asked = "GET /api/backup?check=none HTTP/1.1\r\nHost: localhost\r\nConnection: close"
        with contextlib.closing(running.connect(asked)) as peer:
            assert peer.recv(4096).startswith(b"HTTP/1.1 200")
            db.execute("INSERT INTO reading(noise) VALUES (randomblob(300000))")
            drain(peer)
        wait_until("its number", lambda: metrics(running)["backups_total{outcome=complete}"] == 1)
        seen = metrics(running)

    assert 300_000 < seen["wal_growth_bytes_sum"] < 400_000
    assert 0.2 < seen["pin_seconds_sum"] <= seen["backup_duration_seconds_sum"]


async def test_mounted_the_host_gets_the_registry(data_dir: Path) -> None:
    """It serves it where it wants; two mounts share it; nothing is added to the library's global one."""
    from prometheus_client import REGISTRY, generate_latest

    app = web.Application()
    mothership_backup.setup(app, Settings(data=Data(dir=data_dir), auth=Auth(allow_anonymous=True)))
    mothership_backup.setup(app, Settings(data=Data(dir=data_dir)), prefix="/second")

    async with TestClient(TestServer(app)) as client:
        await (await client.get("/api/backup")).read()
        await (await client.get("/second/backup")).read()

    assert (
        read(generate_latest(app[mothership_backup.METRICS]).decode())["backups_total{outcome=complete}"] == 2
    )
    assert PREFIX not in generate_latest(REGISTRY).decode()


async def test_at_most_100_sources(tmp_path: Path, make_database: MakeDatabase) -> None:
    """The first by name: a label for each of 500 would be a burden."""
    from prometheus_client import generate_latest

    for number in range(103):
        make_database(tmp_path / f"n{number:03}.db", rows=1)
    app = web.Application()
    mothership_backup.setup(app, Settings(data=Data(dir=tmp_path)))

    async with TestClient(TestServer(app)) as client:
        await (await client.head("/api/backup")).read()

    names = re.findall(r'source="([^"]*)"', generate_latest(app[mothership_backup.METRICS]).decode())
    assert names == [f"n{number:03}.db" for number in range(100)]
