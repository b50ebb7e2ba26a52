"""The description of the HTTP interface is the interface: paths, methods, statuses, headers and bodies."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as conformance

from harness import Answer, Config, MakeDatabase, Service, StartService, drain, serving
from mothership_backup import __version__, setup
from mothership_backup.config import Data, Server, Settings
from mothership_backup.credentials import Credential, digest_of, new_token
from mothership_backup.web.app import build_app
from mothership_backup.web.problems import STATUSES
from processes import wait_until

Client = TestClient[web.Request, web.Application]
Connect = Callable[[web.Application], Awaitable[Client]]
Document = dict[str, Any]  # JSON
FILE: Final = Path(__file__).resolve().parents[1] / "service/mothership_backup/web/openapi.json"
PACKAGED: Final[Document] = json.loads(FILE.read_bytes())
OPERATIONS: Final = [
    (method.upper(), path)
    for path, item in PACKAGED["paths"].items()
    for method in item
    if method not in ("parameters", "servers")
]
MODES: Final = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS: Final = [
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
]
TOKEN: Final = new_token()
LOCKED: Final[Config] = {"auth": {"tokens": [Credential("one", digest_of(TOKEN.encode())).stored()]}}


def resolve(value: Document) -> Document:
    """What a reference refers to."""
    if "$ref" not in value:
        return value
    found: Any = PACKAGED
    for word in value["$ref"].removeprefix("#/").split("/"):
        found = found[word]
    return resolve(found)


def assert_valid(value: object, schema: Document) -> None:
    jsonschema_rs.Draft202012Validator({**schema, "components": PACKAGED["components"]}).validate(value)


def assert_described(method: str, path: str, answer: Answer) -> None:
    """Its status, media type, headers and body are those of the document."""
    operation = PACKAGED["paths"][path][method.lower()]
    described = resolve(operation["responses"][str(answer.status)])
    for name, header in described.get("headers", {}).items():
        text = answer.headers.get(name.lower())
        if text is None:
            assert name in ("Content-Length", "Retry-After"), name
            continue
        schema = resolve(header)["schema"]
        assert_valid(int(text) if schema.get("type") == "integer" else text, schema)
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media_type].get("schema")
    if schema is not None and method != "HEAD" and media_type.endswith("json"):
        assert_valid(answer.json(), schema)


def described_routes(document: Document) -> set[tuple[str, str]]:
    return {
        (method.upper(), item.get("servers", document["servers"])[0]["url"].rstrip("/") + path)
        for path, item in document["paths"].items()
        for method in item
        if method not in ("parameters", "servers")
    }


def real_routes(app: web.Application) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical.rstrip("/"))
        for route in app.router.routes()
        if route.resource is not None and route.method != "*"
    }


def alone(data_dir: Path, base_path: str) -> web.Application:
    return build_app(Settings(data=Data(dir=data_dir), server=Server(base_path=base_path)))


def mounted(data_dir: Path, prefix: str) -> web.Application:
    app = web.Application()
    setup(app, Settings(data=Data(dir=data_dir)), prefix=prefix)
    return app


@pytest.mark.parametrize(
    ("make", "prefix", "path"),
    [
        (alone, "", "/api"),
        (alone, "/rover", "/rover/api"),
        (mounted, "/x", "/x"),
        (mounted, "", ""),
    ],
)
async def test_the_document_has_the_routes_and_no_others(
    aiohttp_client: Connect,
    data_dir: Path,
    make: Callable[[Path, str], web.Application],
    prefix: str,
    path: str,
) -> None:
    """With the addresses of the very mount; probes and metrics only where they are."""
    app = make(data_dir, prefix)
    client = await aiohttp_client(app)

    document = await (await client.get(path + "/openapi.json")).json()
    twin = await (await client.get(path + "/openapi.json/")).json()

    assert described_routes(document) == real_routes(app)
    assert twin == document
    assert document["servers"] == [{"url": path or "/"}]
    assert document["info"]["version"] == __version__


async def test_below_an_outer_application(aiohttp_client: Connect, data_dir: Path) -> None:
    """What that one puts before our paths is part of the address."""
    outer = web.Application()
    outer.add_subapp("/outer", mounted(data_dir, "/x"))
    client = await aiohttp_client(outer)

    document = await (await client.get("/outer/x/openapi.json")).json()

    assert document["servers"] == [{"url": "/outer/x"}]


def test_the_document_is_whole() -> None:
    """Each reference leads somewhere, each part is referred to, each schema is one, each operation has a name."""
    text = FILE.read_text("utf-8")
    parts = {
        f"#/components/{kind}/{name}"
        for kind, named in PACKAGED["components"].items()
        for name in named
        if kind != "securitySchemes"
    }

    assert {reference.partition('"')[0] for reference in text.split('"$ref": "')[1:]} == parts
    for schema in PACKAGED["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    names = [PACKAGED["paths"][path][method.lower()]["operationId"] for method, path in OPERATIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_each_code_is_described_at_its_status(code: str) -> None:
    """By name."""
    described = [
        response["description"]
        for item in PACKAGED["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
        for status, response in ((s, resolve(r)) for s, r in operation["responses"].items())
        if int(status) == STATUSES[code]
    ]

    assert any(f"`{code}`" in description for description in described)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """One service over a directory that has a bit of everything."""
    folder = tmp_path_factory.mktemp("openapi")
    make_database(folder / "data" / "events.db", rows=10)
    make_database(folder / "data" / "nodes.db", journal="delete", rows=10)
    (folder / "data" / "link.db").symlink_to("events.db")
    (folder / "data" / "notes.txt").write_text("not asked for")
    with serving(folder, folder / "data") as running:
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """One where nothing fails, so that `strict` is no error."""
    folder = tmp_path_factory.mktemp("whole")
    make_database(folder / "data" / "events.db", rows=10)
    with serving(folder, folder / "data") as running:
        yield running


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_good_and_bad_requests(varied: Service, method: str, path: str) -> None:
    """Before and after a backup; refused, forwarded, by a wrong method."""
    backup_id = varied.request("/api/backup").headers["x-backup-id"]
    wait_until("its end", lambda: varied.request("/api/status").json()["running"] == 0)
    target = ("" if "servers" in PACKAGED["paths"][path] else "/api") + path.replace("{id}", backup_id)
    requests: list[tuple[str, Mapping[str, str]]] = [
        (target, {}),
        (target + "?colour=red", {}),
        (target + "?database=nothing", {"Accept": "application/problem+json"}),
        (target, {"X-Forwarded-For": "203.0.113.7"}),
        (target, {"Range": "bytes=5-"}),
    ]

    answers = [varied.request(target, method, headers) for target, headers in requests]

    assert answers[0].status == (409 if method == "DELETE" else 200)
    for answer in answers:
        assert_described(method, path, answer)
    refused = varied.request(target, "PATCH")
    assert refused.status == 405
    assert_described(method, path, refused)


def test_a_running_one_and_its_end(service: StartService, big_dir: Path) -> None:
    """In the list, by itself, cancelled, remembered; and busy meanwhile."""
    running = service(big_dir, {"limits": {"read_bytes_per_second": 300_000, "concurrent_backups": 1}})
    with running.stream("/api/backup?compression=stored") as peer:
        listed = running.request("/api/backups")
        path = f"/api/backups/{listed.json()['running'][0]['id']}"
        one = running.request(path)
        busy = running.request("/api/backup")
        cancelled = running.request(path, "DELETE")
        drain(peer)
    wait_until("its record", lambda: running.request(path).json()["running"] is False)

    assert (busy.status, cancelled.status) == (503, 202)
    assert_described("GET", "/backups", listed)
    assert_described("GET", "/backups/{id}", one)
    assert_described("GET", "/backup", busy)
    assert_described("DELETE", "/backups/{id}", cancelled)
    assert_described("GET", "/backups/{id}", running.request(path))
    assert_described("GET", "/status", running.request("/api/status"))


def test_who_may_not(service: StartService, data_dir: Path) -> None:
    """401, and 429 after too many; the probes stay open."""
    running = service(data_dir, LOCKED)
    wrong = {"Authorization": "Bearer wrong"}

    for method, path in OPERATIONS:
        item = PACKAGED["paths"][path]
        target = ("" if "servers" in item else "/api") + path.replace("{id}", "0")
        answers = [running.request(target, method), running.request(target, method, wrong)]
        expected = {200} if "security" in item[method.lower()] else {401, 429}
        assert {answer.status for answer in answers} <= expected
        for answer in answers:
            assert_described(method, path, answer)
    for _ in range(20):
        throttled = running.request("/api/status", headers=wrong)
    assert throttled.status == 429
    assert_described("GET", "/status", throttled)
    document = running.request("/api/openapi.json", headers={"X-API-Key": TOKEN}).json()
    assert document["paths"] == PACKAGED["paths"]


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_schemathesis_makes_of_it(whole: Service, method: str, path: str, mode: GenerationMode) -> None:
    """Requests as described and others: no 5xx but 503, and no answer that is not described."""
    schema = schemathesis.openapi.from_dict(PACKAGED)
    operation = schema[path][method]
    base_url = whole.url + ("" if "servers" in PACKAGED["paths"][path] else "/api")

    @hypothesis.settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        answer = case.call(base_url=base_url)

        assert answer.status_code < 500 or answer.status_code == 503, answer.content
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert "Traceback" not in whole.log()
