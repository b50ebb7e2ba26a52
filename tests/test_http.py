"""DESIGN 5's table, request by request, as curl and other programs see it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Archive, MakeDatabase, Service, StartService, serving
from writers import writing


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """One service for all that does not depend on the configuration."""
    folder = tmp_path_factory.mktemp("http")
    make_database(folder / "data" / "events.db")
    make_database(folder / "data" / "nodes.db", journal="delete", rows=100)
    (folder / "data" / "floor_plan").mkdir()
    (folder / "data" / "floor_plan" / "ground.svg").write_text("<svg/>\n")
    with serving(folder, folder / "data") as service:
        yield service


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """A service whose only slot is taken by a slow backup as long as the tests of this file run."""
    folder = tmp_path_factory.mktemp("busy")
    make_database(folder / "data" / "big.db", rows=20_000, random_bytes=1000)
    limits = {"concurrent_backups": 1, "read_bytes_per_second": 300_000}
    with serving(folder, folder / "data", {"limits": limits}) as service, service.stream():
        yield service


def head_of(peer: socket.socket) -> tuple[bytes, bytes]:
    """The head of a response and what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = peer.recv(65536)
        assert piece, received
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def test_the_headers_of_a_backup(running: Service) -> None:
    """Those that keep proxies and browsers from touching it, and those that say what is in it."""
    answer = running.request()

    assert {"no-store", "no-transform"} <= set(re.split(r",\s*", answer.headers["cache-control"]))
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-backup-databases"] == "2"
    assert answer.headers["x-backup-failed"] == "0"
    archive = answer.archive()
    assert answer.headers["x-backup-id"] == archive.manifest["backup_id"]
    assert int(answer.headers["x-backup-size"]) == sum(s["size_bytes"] for s in archive.manifest["sources"])
    assert "content-length" not in answer.headers


def test_a_trailing_slash_is_the_same(running: Service) -> None:
    """`/api/backup/` is no redirect and no 404."""
    assert running.request("/api/backup/?files=false").archive().zip.testzip() is None


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("compression=zip", "compression"),
        ("compression=", "compression"),
        ("compression=Deflate", "compression"),
        ("check=fast", "check"),
        ("strict=yes", "strict"),
        ("strict=", "strict"),
        ("strict", "strict"),
        ("files=1", "files"),
        ("colour=red", "colour"),
        ("Strict=true", "Strict"),
        ("strict=true&strict=false", "strict"),
        ("compression=stored&check=none&level=9", "level"),
        ("database=", "database"),
    ],
)
def test_a_bad_query_parameter_is_400_and_named(running: Service, query: str, named: str) -> None:
    """A typo must never give a weaker backup than was asked for."""
    for method in ("GET", "HEAD"):
        assert running.request(f"/api/backup?{query}", method).status == 400

    problem = running.request(f"/api/backup?{query}").json()
    assert named in problem["detail"]
    assert problem["status"] == 400


@pytest.mark.parametrize(
    "query", ["compression=stored", "check=none", "check=full", "strict=true", "files=true"]
)
def test_a_good_query_parameter_is_taken(running: Service, query: str) -> None:
    """Each of them alone gives a whole archive."""
    assert running.archive(query).zip.testzip() is None


def test_check_stands_in_the_manifest_as_it_was_asked(running: Service) -> None:
    """The proof says how strong it is."""
    assert running.archive("check=full").source("events.db")["check"] == {"kind": "full", "verdict": "ok"}
    assert running.archive("check=quick").source("events.db")["check"] == {"kind": "quick", "verdict": "ok"}
    assert running.archive("check=none").source("events.db").get("check", {}).get("verdict") is None


def test_database_globs_choose(running: Service) -> None:
    """Repeatable; what nothing matches is 404, and says so."""
    assert [n for n in running.archive("database=ev*").names if n.endswith(".db")] == ["events.db"]
    both = running.archive("database=events.db&database=n?des.db")
    assert [n for n in both.names if n.endswith(".db")] == ["events.db", "nodes.db"]

    answer = running.request("/api/backup?database=nothing*")
    assert answer.status == 404
    assert answer.json()["code"] == "no_match"
    assert "nothing*" in answer.json()["detail"]


def test_files_false_leaves_the_files_out(running: Service) -> None:
    """Only the databases and what speaks of them."""
    archive = running.archive("files=false")

    assert archive.names == ["events.db", "nodes.db", "VERSION", "MANIFEST.json", "SHA256SUMS"]


def test_head_then_get_on_one_connection(running: Service) -> None:
    """HEAD has the headers and not one byte of body, so that what follows it can be read."""
    with running.connect("HEAD /api/backup?compression=stored HTTP/1.1\r\nHost: localhost") as peer:
        head, rest = head_of(peer)
        peer.sendall(b"GET /api/backup?compression=stored HTTP/1.1\r\nHost: localhost\r\n\r\n")
        again, body = head_of(peer)
        length = re.search(rb"(?im)^Content-Length: (\d+)\r?$", again)
        assert length
        while len(body) < int(length[1]) and (piece := peer.recv(65536)):
            body += piece

    assert rest == b""
    assert Archive(body).zip.testzip() is None
    assert head.startswith(b"HTTP/1.1 200")
    assert again.startswith(b"HTTP/1.1 200")
    for name in (b"Content-Type", b"Content-Disposition", b"Content-Length", b"X-Backup-Size"):
        lines = [re.search(rb"(?im)^%s: (.*)\r?$" % name, h + b"\r\n") for h in (head, again)]
        assert lines[0], name
        assert lines[1], name
        assert lines[0][1] == lines[1][1]


def test_head_takes_no_slot(one_slot: Service) -> None:
    """A monitor's question is answered while all slots are taken."""
    assert one_slot.request(method="HEAD", seconds=5).status == 200


def test_stored_has_its_exact_length(running: Service) -> None:
    """Known before the first byte, and true."""
    answer = running.request("/api/backup?compression=stored&check=full")

    assert int(answer.headers["content-length"]) == len(answer.body)
    assert {info.compress_type for info in answer.archive().zip.infolist()} == {0}
    assert answer.archive().zip.testzip() is None


@pytest.mark.parametrize("query", ["", "?compression=deflate", "?compression=stored"])
def test_http_1_0_is_stored_with_its_exact_length(running: Service, query: str) -> None:
    """An HTTP/1.0 client has no other way to see that a body was cut."""
    received = b""
    with running.connect(f"GET /api/backup{query} HTTP/1.0\r\nHost: localhost") as peer:
        while piece := peer.recv(65536):
            received += piece

    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^Content-Length: (\d+)\r?$", head)
    assert head.split()[1] == b"200"
    assert length
    assert int(length[1]) == len(body)
    assert not re.search(rb"(?i)transfer-encoding", head)
    assert body.startswith(b"PK\x03\x04")


@pytest.mark.parametrize(
    "value",
    ["bytes=5-", "bytes=0-99", "bytes=-5", "bytes=0-1,5-6", "bytes=5-2", "bytes=abc", "bytes=", "bytes=-"],
)
def test_a_range_in_bytes_is_412(running: Service, one_slot: Service, value: str) -> None:
    """200 would be spliced by wget, 416 taken for the end: only 412 fails in both. Before admission, too."""
    answer = running.request(headers={"Range": value})

    assert answer.status == 412
    assert answer.json()["status"] == 412
    assert one_slot.request(headers={"Range": value}, seconds=5).status == 412


@pytest.mark.parametrize(
    "headers",
    [{"Range": "bytes=0-"}, {"Range": "lines=5-"}, {"Range": "bytes=5-", "If-Range": '"x"'}],
)
def test_a_range_that_asks_for_all_or_may_be_ignored_is_200(
    running: Service, headers: dict[str, str]
) -> None:
    """`bytes=0-` is what downloaders send first."""
    answer = running.request(headers=headers)

    assert answer.status == 200
    assert "content-range" not in answer.headers
    assert answer.archive().zip.testzip() is None


def test_busy_is_503_with_retry_after_at_once(one_slot: Service) -> None:
    """curl --retry obeys it."""
    answer = one_slot.request(seconds=5)

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "busy"


def test_strict_with_a_database_that_is_locked_is_an_error_status(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """Exclusively locked by another process: named, within about the busy timeout, never a ZIP."""
    make_database(tmp_path / "data" / "free.db")
    locked = make_database(tmp_path / "data" / "locked.db", journal="delete")
    running = service(tmp_path / "data", {"snapshot": {"busy_timeout_seconds": 0.3}})

    with writing("exclusive", locked):
        strict = running.request("/api/backup?strict=true", seconds=10)
        lenient = running.request(seconds=10)
        alone = running.request("/api/backup?database=locked.db", seconds=10)

    assert strict.status == 500
    assert strict.json()["code"] == "incomplete"
    assert "locked.db" in strict.json()["detail"]
    assert lenient.archive().statuses() == {"free.db": "ok", "locked.db": "failed"}
    assert alone.status == 500
    assert alone.json()["code"] == "none_readable"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/problem+json", "application/problem+json"),
        ("text/html, application/problem+json;q=0.9", "application/problem+json"),
    ],
)
def test_an_error_is_rfc_9457_in_the_type_that_was_asked_for(
    running: Service, accept: str | None, content_type: str
) -> None:
    """Plain JSON unless problem+json is named: Home Assistant parses nothing else."""
    answer = running.request("/api/backup?colour=red", headers={"Accept": accept} if accept else {})

    assert answer.headers["content-type"].partition(";")[0] == content_type
    problem = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "code", "error", "request_id"}
    assert problem["status"] == answer.status == 400
    assert "no-store" in answer.headers.get("cache-control", "no-store")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405_with_allow(running: Service, method: str) -> None:
    """Only GET and HEAD."""
    answer = running.request(method=method)

    assert answer.status == 405
    assert {"GET", "HEAD"} <= set(re.split(r",\s*", answer.headers["allow"]))


def test_a_path_that_is_not_there_is_404(running: Service) -> None:
    """And never a redirect."""
    assert running.request("/api/archives").status == 404
    assert running.request("/api/backup/x").status == 404


def test_healthz(running: Service) -> None:
    """Small, fast, and about the service only."""
    answer = running.request("/healthz")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    health = answer.json()
    assert set(health) == {"status", "uptime_s", "version"}
    assert health["status"] == "ok"
    assert isinstance(health["uptime_s"], (int, float))


def test_garbage_on_the_socket_leaves_no_traceback(running: Service) -> None:
    """What aiohttp's parser refuses stays its own answer."""
    for request in (
        "GET",
        "\x00\x01\x02",
        "GET /api/backup HTTP/9.9",
        "GET /api/backup HTTP/1.1\r\nHost: a\r\nHost",
    ):
        with running.connect(request) as peer, contextlib.suppress(ConnectionError):
            assert not peer.recv(65536).startswith(b"HTTP/1.1 2")

    assert "Traceback" not in running.log()


def test_keep_alive_serves_one_archive_after_another(running: Service) -> None:
    """Chunked and with a length, in turn, on one connection."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)) as connection:
        for query in ("", "?compression=stored", "?files=false"):
            connection.request("GET", "/api/backup" + query)
            response = connection.getresponse()
            assert response.status == 200
            assert response.read().startswith(b"PK\x03\x04")
        connection.request("GET", "/healthz")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
