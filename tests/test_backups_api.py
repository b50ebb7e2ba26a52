"""`/api/backups`: the list, one of them, and how to cancel it, over real sockets."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import Answer, Config, MakeDatabase, Service, StartService, drain, run, serving
from mothership_backup import setup
from mothership_backup.config import Settings
from mothership_backup.errors import SetupError
from processes import wait_until

SLOW: Config = {"limits": {"read_bytes_per_second": 300_000}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """One service for all that does not depend on the configuration."""
    folder = tmp_path_factory.mktemp("api")
    for name in ("events.db", "nodes.db"):
        make_database(folder / "data" / name, rows=10)
    (folder / "data" / "link.db").symlink_to("events.db")
    with serving(folder, folder / "data") as service:
        yield service


def listed(service: Service, query: str = "") -> dict[str, Any]:
    return service.request(f"/api/backups{query}").json()


def ids(document: dict[str, Any]) -> list[str]:
    return [backup["id"] for backup in document["backups"]]


def record_of(service: Service, backup_id: str) -> dict[str, Any]:
    """Once it has ended, which its client hears a moment earlier."""
    path = f"/api/backups/{backup_id}"
    wait_until("the record", lambda: service.request(path).json().get("running") is False)
    return service.request(path).json()


def test_a_record_says_it_all(api: Service) -> None:
    """Who, when, what was asked, what came of each source."""
    answer = api.request("/api/backup?check=full&database=e*&database=link.db&files=false")

    record = record_of(api, answer.headers["x-backup-id"])

    assert record["outcome"] == "incomplete"
    assert record["reason"]
    assert record["client"] == "127.0.0.1"
    assert record["credential"] == ""
    assert record["parameters"] == {
        "compression": "deflate",
        "check": "full",
        "strict": False,
        "database": ["e*", "link.db"],
        "files": False,
    }
    assert record["sent_bytes"] == len(answer.body)
    assert record["total_bytes"] == int(answer.headers["x-backup-size"])
    assert record["started_at"] <= record["ended_at"]
    assert (record["database_count"], record["failed_sources"]) == (1, 1)
    first, *others = record["sources"]
    assert (first["name"], first["status"], first["error"]["code"]) == ("link.db", "failed", "symlink")
    assert [(source["name"], source["status"]) for source in others] == [
        ("events.db", "ok"),
        ("nodes.db", "skipped"),
    ]


def test_pages_and_a_restart(service: StartService, data_dir: Path, tmp_path: Path) -> None:
    """Newest first, page by page, and the same from a file after a restart; no more than `keep`."""
    config: Config = {"history": {"path": str(tmp_path / "history.db"), "keep": 5}}
    first = service(data_dir, config)
    made = [first.request("/api/backup?check=none").headers["x-backup-id"] for _ in range(6)]
    record_of(first, made[-1])
    assert ids(listed(first)) == made[:0:-1]

    page = listed(first, "?limit=2")
    rest = listed(first, f"?limit=100&cursor={page['next']}")
    assert ids(page) + ids(rest) == made[:0:-1]
    assert len(ids(page)) == 2
    assert rest["next"] is None
    assert "sources" not in page["backups"][0]
    assert first.stop() == 0

    second = service(data_dir, config)
    assert listed(second, "?limit=2") == page
    assert record_of(second, made[-1])["sources"]


def test_refused_requests_are_no_backups(api: Service) -> None:
    """A typo leaves no record; a backup that began and found nothing does."""
    before = ids(listed(api))
    api.request("/api/backup?colour=red")
    assert ids(listed(api)) == before

    api.request("/api/backup?database=nothing.db")

    wait_until("the record", lambda: len(ids(listed(api))) > len(before))
    record, *others = listed(api)["backups"]
    assert [other["id"] for other in others] == before
    assert (record["outcome"], record["sent_bytes"]) == ("refused", 0)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "limit=", "cursor=0", "cursor=-1", "limit=1&limit=2", "colour=1"],
)
def test_a_bad_parameter_is_named(api: Service, query: str) -> None:
    """As with a backup."""
    answer = api.request(f"/api/backups?{query}")

    assert (answer.status, answer.json()["code"]) == (400, "bad_parameter")
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("backup_id", ["0", "f" * 32, "%ff%fe", "%00", "..%2Fstatus", "%7Bid%7D"])
def test_an_unknown_one_is_404(api: Service, backup_id: str) -> None:
    """For GET and for DELETE, whatever stands there."""
    for method in ("GET", "DELETE"):
        answer = api.request(f"/api/backups/{backup_id}", method)
        assert (answer.status, answer.json()["code"]) == (404, "not_found")


def test_the_methods_of_one(api: Service) -> None:
    """405 names them."""
    answer = api.request("/api/backups/0/", "PUT")

    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, DELETE")


def test_progress_and_cancel(service: StartService, big_dir: Path) -> None:
    """A running one shows how far it is; DELETE ends it, its client sees a reset, its reader is gone."""
    running = service(big_dir, SLOW)
    with running.stream("/api/backup?compression=stored") as peer:
        [entry] = listed(running)["running"]
        path = f"/api/backups/{entry['id']}"
        progress = running.request(path).json()
        wait_until("progress", lambda: running.request(path).json()["sent_bytes"] > progress["sent_bytes"])
        answer = running.request(path, "DELETE")
        _, is_reset = drain(peer)

    assert progress["running"] is True
    assert progress["started_at"] == entry["started_at"]
    assert progress["total_bytes"] == (big_dir / "events.db").stat().st_size
    assert progress["content_length"] > progress["total_bytes"]
    assert answer.status == 202
    assert is_reset
    record = record_of(running, entry["id"])
    assert (record["outcome"], record["reason"]) == ("cancelled", "cancelled by 127.0.0.1")
    wait_until("its reader to end", lambda: not running.readers())
    again = running.request(path, "DELETE")
    assert (again.status, again.json()["code"]) == (409, "backup_ended")
    assert running.request("/api/status").json()["last_outcome"] == "cancelled"


def test_cancel_before_the_first_byte(service: StartService, data_dir: Path) -> None:
    """Its client gets an error that curl does not repeat."""
    running = service(data_dir, {"snapshot": {"busy_timeout_seconds": 60}})
    answers: list[Answer] = []
    with closing(sqlite3.connect(data_dir / "nodes.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        client = threading.Thread(target=lambda: answers.append(running.request()))
        client.start()
        wait_until("a backup", lambda: listed(running)["running"])
        [entry] = listed(running)["running"]
        assert running.request(f"/api/backups/{entry['id']}", "DELETE").status == 202
        client.join()

    assert (answers[0].status, answers[0].json()["code"]) == (409, "cancelled")
    assert record_of(running, entry["id"])["outcome"] == "cancelled"


def test_a_locked_history_hurts_no_backup(service: StartService, data_dir: Path, tmp_path: Path) -> None:
    """Somebody holds its lock: backups are whole, the log says it once, and the records come later."""
    file = tmp_path / "history.db"
    running = service(data_dir, {"history": {"path": str(file)}})
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        made = [running.archive("check=none").manifest["backup_id"] for _ in range(2)]
        wait_until("the log", lambda: "history: " in running.log())
        assert running.request("/api/status").json()["last_outcome"] == "complete"
        other.execute("ROLLBACK")

    wait_until("the records", lambda: ids(listed(running)) == made[::-1])
    assert running.log().count("is locked") == 1


def test_a_history_in_the_data_directory_is_no_start(data_dir: Path, tmp_path: Path) -> None:
    """The command ends with 2 and the reason; nothing is made there."""
    file = data_dir / "history.sqlite"
    config = tmp_path / "config.toml"
    config.write_text(f'[data]\ndir = "{data_dir}"\n[history]\npath = "{file}"\n')
    for command in ("serve", "check-config"):
        done = run(sys.executable, "-m", "mothership_backup", command, "--config", config)

        assert done.returncode == 2, done.stderr
        assert "history.path" in done.stderr
        assert "inside the data directory" in done.stderr
    assert not file.exists()


@pytest.mark.parametrize("path", ["/api/status", "/api/databases/", "/api/backups", "/api/backups/{name}"])
def test_a_taken_path_is_told(path: str) -> None:
    """As for /api/backup: aiohttp would be silent."""

    async def theirs(_: web.Request) -> web.Response:
        raise AssertionError

    app = web.Application()
    app.router.add_get(path, theirs)

    with pytest.raises(SetupError, match=r"/api/.* theirs|theirs"):
        setup(app, Settings())
