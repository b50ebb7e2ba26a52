"""One name for a request, in its answer and its log lines; and the audit line of a backup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import mothership_backup
from harness import MakeDatabase, Service, serving, sha256
from mothership_backup.config import Data, Settings
from mothership_backup.credentials import parse
from mothership_backup.web.request_id import HEADER
from processes import wait_until

NEW = re.compile(r"[0-9a-f]{16}")
TOKEN = "mb_" + "A" * 43
GOOD = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def logging_json(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """With a credential, and lines of JSON."""
    folder = tmp_path_factory.mktemp("ids")
    make_database(folder / "data" / "events.db")
    stored = parse(f"nas:sha256:{sha256(TOKEN.encode())}").stored()
    with serving(
        folder, folder / "data", {"log": {"format": "json"}, "auth": {"tokens": [stored]}}
    ) as service:
        yield service


def lines(service: Service, request_id: str) -> list[dict[str, Any]]:
    """The log's objects of one request."""
    found = [json.loads(line) for line in service.log().splitlines() if line.startswith("{")]
    return [line for line in found if line.get("request_id") == request_id]


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/metrics", "/api/status", "/nowhere"])
def test_each_answer_has_one(logging_json: Service, path: str) -> None:
    """Given back, or new."""
    given = logging_json.request(path, headers={**GOOD, HEADER: "from-a_proxy.7"})
    new = logging_json.request(path, headers=GOOD)

    assert given.headers["x-request-id"] == "from-a_proxy.7"
    assert NEW.fullmatch(new.headers["x-request-id"])


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "é", "a;b", "<x>", '"'])
def test_one_that_could_harm_a_log_is_replaced(logging_json: Service, given: str) -> None:
    """Nothing but letters, digits, dots, dashes and underscores, 64 of them."""
    answer = logging_json.request("/livez", headers={HEADER: given.encode().decode("latin-1")})

    assert NEW.fullmatch(answer.headers["x-request-id"])


def test_two_are_none(logging_json: Service) -> None:
    """Which one would it be."""
    head = f"GET /livez HTTP/1.1\r\nHost: localhost\r\n{HEADER}: a\r\n{HEADER}: b"
    with logging_json.connect(head) as peer:
        found = re.search(rb"(?i)x-request-id: (\S+)", peer.recv(65536))

    assert found
    assert NEW.fullmatch(found[1].decode())


def test_an_error_has_it_in_body_header_and_log(logging_json: Service) -> None:
    """The same word in all three."""
    answer = logging_json.request("/api/backup?colour=red", headers={**GOOD, HEADER: "wrong-1"})

    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "wrong-1"
    wait_until("its line", lambda: lines(logging_json, "wrong-1"))
    assert [line["code"] for line in lines(logging_json, "wrong-1")] == ["bad_parameter"]


def test_a_backup_has_one_audit_line(logging_json: Service) -> None:
    """Who, what, how it ended, how much, how long; and each other line of it has the request's name too."""
    path = "/api/backup?strict=true&database=ev*"
    answer = logging_json.request(path, headers={**GOOD, HEADER: "audit-1"})
    wait_until("its line", lambda: any("outcome" in line for line in lines(logging_json, "audit-1")))

    found = lines(logging_json, "audit-1")
    [audit] = [line for line in found if "outcome" in line]
    assert answer.headers["x-request-id"] == "audit-1"
    assert audit["client"] == "127.0.0.1"
    assert audit["credential"] == "nas"
    assert audit["parameters"]["strict"] is True
    assert audit["parameters"]["database"] == ["ev*"]
    assert audit["outcome"] == "complete"
    assert audit["sent_bytes"] == len(answer.body)
    assert audit["duration_seconds"] > 0
    assert audit["backup_id"] == answer.headers["x-backup-id"]
    assert [line["source"] for line in found if "source" in line] == ["events.db"]


def test_a_failed_backup_has_the_requests_name_too(logging_json: Service) -> None:
    """Its error body and its audit line."""
    answer = logging_json.request("/api/backup?database=nothing*", headers={**GOOD, HEADER: "fail-1"})
    wait_until("its line", lambda: lines(logging_json, "fail-1"))

    assert answer.json()["request_id"] == "fail-1"
    [audit] = lines(logging_json, "fail-1")
    assert audit["outcome"] == "refused"


def test_no_token_stands_in_the_log(logging_json: Service) -> None:
    """Wherever a client puts it."""
    for target in (f"/api/backup?database={TOKEN}", f"/api/backup?{TOKEN}=1", f"/{TOKEN}"):
        logging_json.request(target, headers={**GOOD, HEADER: "leak-1"})
    wait_until("its lines", lambda: len(lines(logging_json, "leak-1")) >= 2)

    assert TOKEN not in logging_json.log()


async def test_mounted_only_ours_have_one(data_dir: Path) -> None:
    """The host's own answers stay as they are."""

    async def theirs(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/theirs", theirs)
    mothership_backup.setup(app, Settings(data=Data(dir=data_dir)))

    async with TestClient(TestServer(app)) as client:
        ours = await client.head("/api/backup", headers={HEADER: "host-1"})
        host = await client.get("/theirs", headers={HEADER: "host-1"})

    assert ours.headers[HEADER] == "host-1"
    assert HEADER not in host.headers
