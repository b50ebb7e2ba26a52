"""The demo: a mothership with the backup in its own process, driven as its users drive it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from harness import Answer, Archive, MakeDatabase, Service
from mothership_backup import demo
from processes import wait_until

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]
NODE = {"name": "attic", "x_m": 3.5, "y_m": 7}


@contextlib.contextmanager
def running(folder: Path, data_dir: Path) -> Iterator[Service]:
    """The demo over a directory, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    code = "import pathlib, sys; from mothership_backup.demo import main; sys.exit(main(0, pathlib.Path(sys.argv[1])))"
    service = Service(["-c", code, str(data_dir)], folder / "demo.log")
    try:
        yield service
        assert service.stop() == 0, service.log()
    finally:
        service.kill()
        service.assert_nothing_left()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "process", tmp_path / "live") as service:
        yield service


def post(service: Service, node: object, content_type: str = "application/json") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        connection.request("POST", "/api/nodes", json.dumps(node), {"Content-Type": content_type})
        response = connection.getresponse()
        return Answer(response.status, {}, response.read())
    finally:
        connection.close()


def nodes(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(service.request("/api/nodes").body)
    return found


def listen(service: Service) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A listener who has heard one event."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/api/events")
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {")
    assert response.readline() == b"\n"
    return connection, response


def drain(peer: socket.socket) -> None:
    while peer.recv(1 << 20):
        pass


def rows(archive: Archive, name: str, query: str, folder: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(archive.database(name, folder))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute(query).fetchall()


def test_a_node_that_was_added_is_listed(live: Service) -> None:
    """What POST takes, GET gives back."""
    added = post(live, NODE)

    assert added.status == 201
    expected = {**NODE, "id": added.json()["id"]}
    assert [node for node in nodes(live) if expected.items() <= node.items()]


@pytest.mark.parametrize(
    ("node", "word"),
    [
        ([], ""),
        ({**NODE, "name": ""}, "name"),
        ({**NODE, "name": 7}, "name"),
        ({**NODE, "x_m": 99}, "x_m"),
        ({**NODE, "x_m": float("nan")}, "x_m"),
        ({**NODE, "x_m": True}, "x_m"),
        ({**NODE, "z_m": 1}, "z_m"),
        ({"name": "attic"}, "x_m"),
    ],
)
async def test_a_bad_node_is_refused_by_name(
    aiohttp_client: MakeClient, tmp_path: Path, node: object, word: str
) -> None:
    """A 400 names what is wrong, and nothing was added."""
    client = await aiohttp_client(demo.make_app(tmp_path))
    before = await (await client.get("/api/nodes")).json()

    answer = await client.post(
        "/api/nodes", data=json.dumps(node), headers={"Content-Type": "application/json"}
    )

    assert answer.status == 400
    assert word in (await answer.json())["error"]
    assert len(await (await client.get("/api/nodes")).json()) == len(before)


async def test_what_a_foreign_page_can_post_is_refused(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    """A body that is not declared as JSON is a 415: browsers send those across sites."""
    client = await aiohttp_client(demo.make_app(tmp_path))

    answer = await client.post("/api/nodes", data=json.dumps(NODE), headers={"Content-Type": "text/plain"})

    assert answer.status == 415


async def test_a_second_node_of_the_same_name_is_refused(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    """Names are unique."""
    client = await aiohttp_client(demo.make_app(tmp_path))

    answers = [await client.post("/api/nodes", json=NODE) for _ in range(2)]

    assert [answer.status for answer in answers] == [201, 409]


def test_readings_cannot_outgrow_their_ring() -> None:
    """A reading takes the place of the one that is MAX_READINGS older."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(demo.READINGS_SCHEMA)
        for sequence in (1, 2, demo.MAX_READINGS + 1):
            db.execute(
                demo.STORE_READING,
                {"sequence": sequence, "node_id": 1, "rssi_dbm": -60.0, "taken_at": "2026-11-23"},
            )

        assert db.execute("SELECT sequence FROM reading ORDER BY slot").fetchall() == [
            (demo.MAX_READINGS + 1,),
            (2,),
        ]


async def test_health_says_when_the_writer_has_stopped(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    """After an error of its databases the demo is not healthy."""
    app = demo.make_app(tmp_path)
    client = await aiohttp_client(app)
    assert (await client.get("/healthz")).status == 200

    await app[demo.READINGS].execute("DROP TABLE reading")
    await asyncio.wait_for(app[demo.WRITER], 10)

    assert (await client.get("/healthz")).status == 503


def test_events_end_at_shutdown(live: Service) -> None:
    """A listener gets readings as they come, and the proper end of the stream when the demo stops."""
    connection, response = listen(live)

    live.process.terminate()
    rest = response.read()  # raises IncompleteRead without the last chunk
    connection.close()

    assert live.process.wait(5) == 0
    assert rest.count(b"data: ") == rest.count(b"}\n\n")


def test_a_backup_is_complete_while_the_demo_writes(live: Service, tmp_path: Path) -> None:
    """Every archive is whole, of one instant, and restores; the next one has more readings."""
    newest = []
    for i in range(5):
        archive = live.archive("strict=true&check=full")
        folder = tmp_path / f"restored-{i}"
        [(count, last)] = rows(
            archive, "telemetry.db", "SELECT max(sequence), max(taken_at) FROM reading", folder
        )
        [(seen,)] = rows(archive, "spaxel.db", "SELECT max(seen_at) FROM node", folder)
        earlier = f"SELECT taken_at FROM reading WHERE sequence >= {count - 1}"

        assert archive.manifest["complete"] is True
        assert archive.zip.testzip() is None
        assert archive.manifest["app_version"].startswith("demo ")
        if archive.manifest["instant"]["exact"]:
            # A reading is stored first and seen then: at one instant the two differ by one at most.
            assert seen in [time for (time,) in rows(archive, "telemetry.db", earlier, folder)], last
        newest.append(count)
        wait_until("more readings", lambda: nodes(live)[0]["seen_at"] > last)  # noqa: B023  # called at once

    assert newest == sorted(set(newest))
    assert archive.names == [
        "spaxel.db",
        "telemetry.db",
        "floor_plan/demo.svg",
        "floor_plan/floor_plan.json",
        "VERSION",
        "MANIFEST.json",
        "SHA256SUMS",
    ]
    assert json.loads(archive.read("floor_plan/floor_plan.json"))["image"] == "demo.svg"


def test_the_demo_runs_on_what_was_restored(live: Service, tmp_path: Path) -> None:
    """An unpacked archive is a data directory."""
    assert post(live, NODE).status == 201
    live.archive("strict=true").zip.extractall(tmp_path / "restored")

    with running(tmp_path / "second", tmp_path / "restored") as restored:
        names = [node["name"] for node in nodes(restored)]

    assert NODE["name"] in names


def test_other_endpoints_answer_during_a_backup(
    live: Service, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """While a client holds up a backup, the demo answers and writes on."""
    make_database(tmp_path / "live" / "big.db", rows=20_000, random_bytes=1500)
    peer = live.stream("/api/backup?compression=stored")
    with peer:
        before = nodes(live)[0]["seen_at"]
        wait_until("the writer's next reading", lambda: nodes(live)[0]["seen_at"] > before, 2)
        added = post(live, NODE)
        health = live.request("/healthz", seconds=2)
        assert live.readers(), "the backup ended too early to show anything"

    assert (added.status, health.status) == (201, 200)


def test_shutdown_takes_seconds_with_a_listener_and_a_backup(
    live: Service, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Neither a listener nor a client that reads nothing keeps the demo from ending; the backup is cut visibly."""
    make_database(tmp_path / "live" / "big.db", rows=20_000, random_bytes=1500)
    connection, response = listen(live)
    with live.stream("/api/backup?compression=stored") as peer:
        assert live.reader()
        live.process.terminate()

        response.read()
        assert live.process.wait(8) == 0
        with pytest.raises(ConnectionResetError):
            drain(peer)
    connection.close()


async def test_make_app_is_an_application_like_any_other(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    """aiohttp's test client gets a backup of it."""
    client = await aiohttp_client(demo.make_app(tmp_path))

    answer = await client.get("/api/backup", params={"strict": "true"})

    assert answer.status == 200
    assert Archive(await answer.read()).manifest["complete"] is True


def run_demo(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from mothership_backup.demo import main\n"
        "port, *home = sys.argv[1:]; sys.exit(main(int(port), Path(home[0]) if home else None))",
    ]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=30, check=False, env=environ
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("mothership-backup: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """It names the port, ends with 2, and has made nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_demo(port, str(tmp_path / "home"))

    assert_one_line(done, port, "--port")
    assert not (tmp_path / "home").exists()


def test_a_directory_of_somebody_elses_is_left_alone(data_dir: Path) -> None:
    """The demo never writes into the databases of a real mothership."""
    before = sorted(data_dir.rglob("*"))

    done = run_demo("0", str(data_dir))

    assert_one_line(done, str(data_dir))
    assert sorted(data_dir.rglob("*")) == before


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "home").touch()

    assert_one_line(run_demo("0", str(tmp_path / "home")), str(tmp_path / "home"))


def test_the_command_leaves_nothing_behind(tmp_path: Path) -> None:
    """By default the data lives in a temporary directory, which goes at the end."""
    (tmp_path / "tmp").mkdir()
    service = Service(
        ["-m", "mothership_backup", "demo", "--port", "0"],
        tmp_path / "log",
        {"TMPDIR": str(tmp_path / "tmp")},
    )
    try:
        homes = [path.name for path in (tmp_path / "tmp").iterdir()]
        curl = f"curl -fOJ 'http://127.0.0.1:{service.port}/api/backup?strict=true'"
        wait_until("the curl line", lambda: curl in service.log())

        assert len(homes) == 1
        assert service.stop() == 0
        assert list((tmp_path / "tmp").iterdir()) == []
    finally:
        service.kill()
        service.assert_nothing_left()
