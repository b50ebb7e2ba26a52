"""Who gets what: every endpoint with every kind of credential, status by status, alone and mounted."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from clients import curl, wget
from harness import Archive, Config, MakeDatabase, Service, drain, hosting, run, serving
from mothership_backup import setup
from mothership_backup.config import Auth as AuthSettings
from mothership_backup.config import Settings
from mothership_backup.credentials import Credential, Scope, digest_of, new_token
from mothership_backup.web import problems
from mothership_backup.web.auth import Auth
from mothership_backup.web.problems import RequestError
from processes import wait_until

TODAY = datetime.now(UTC).date()
PROXY = "127.0.0.2"  # on the same host, trusted
LIAR = "127.0.0.3"  # another one, not trusted
TOKENS = {name: new_token() for name in ("right", "today", "status", "expired", "here", "away", "withdrawn")}
WRONG = new_token()

# Wrong credentials are counted by /24: each request of a test that is to see 401 comes from one of its own.
places = (f"127.{9 + number // 256}.{number % 256}.1" for number in itertools.count())


def stored(name: str, **limits: Any) -> str:
    return Credential(name, digest_of(TOKENS[name].encode()), **limits).stored()


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    scope: Scope
    good_status: int = 200


ENDPOINTS = (
    Endpoint("GET", "/api/backup", "backup"),
    Endpoint("HEAD", "/api/backup/", "backup"),
    Endpoint("POST", "/api/backup", "backup", 405),
    Endpoint("GET", "/api/status", "status"),
    Endpoint("GET", "/api/databases", "status"),
    Endpoint("GET", "/api/backups", "status"),
    Endpoint("GET", "/api/backups/none", "status", 404),
    Endpoint("DELETE", "/api/backups/none", "backup", 404),
    Endpoint("PUT", "/api/backups", "status", 405),
)
SPILLS = (  # where a token may come besides its header
    ("GET", "/api/backup"),
    ("GET", "/api/backup?token={}"),
    ("GET", "/api/backup?database={}"),
    ("GET", "/api/backups/{}"),
    ("GET", "/{}"),
    ("POST", "/api/backup?{}"),
)
MALFORMED = (  # answered by aiohttp's parser, which tells who sent it what it was
    "Authorization: Bearer {}\x01",
    "Authorization Bearer {}",
    "Authorization: Bearer {}\r\nX-Long: " + "x" * 9000,
    "X-API-Key: {}" + "x" * 9000,
)
ALONE = (Endpoint("GET", "/metrics", "status"),)
OPEN = ("/healthz", "/livez", "/readyz")
LINES = (
    stored("right"),
    stored("today", expires=TODAY),
    stored("status", scope="status"),
    stored("expired", expires=TODAY - timedelta(days=1)),
    stored("here", networks=(ip_network("127.0.0.0/8"),)),
    stored("away", networks=(ip_network("203.0.113.0/24"),)),
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"]) if self.status >= 400 and self.body else ""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def ask(
    service: Service,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    path: str = "/api/backup",
    source: str = "127.0.0.1",
) -> Answer:
    """One request from one of the addresses of this machine."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", service.port, timeout=30, source_address=(source, 0))
    ) as connection:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(password: str, user: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module", params=["alone", "mounted"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase
) -> Iterator[Service]:
    """A service with one credential in its configuration and the others in a file, one of them withdrawn by now."""
    folder = tmp_path_factory.mktemp(request.param)
    make_database(folder / "data" / "events.db")
    tokens_file = folder / "tokens"
    tokens_file.write_text("\n".join([*LINES[1:], stored("withdrawn")]) + "\n")
    config: Config = {
        "server": {"trusted_proxies": [PROXY]},
        "auth": {"tokens": [LINES[0]], "tokens_file": str(tokens_file)},
    }
    start = (
        serving(folder, folder / "data", config)
        if request.param == "alone"
        else hosting(folder, "mothership.py", folder / "data", config)
    )
    with start as running:
        assert ask(running, bearer(TOKENS["withdrawn"])).status == 200
        tokens_file.write_text("\n".join(LINES[1:]) + "\n")
        withdrawn = bearer(TOKENS["withdrawn"])
        wait_until("the withdrawal", lambda: ask(running, withdrawn, "HEAD").status == 401, 5)
        yield running
        log = running.log()
        for token in (*TOKENS.values(), WRONG):
            assert token not in log
            assert basic(token).removeprefix("Basic ") not in log
        assert "Traceback" not in log


def is_alone(service: Service) -> bool:
    """A host has no probes of ours."""
    return ask(service, path="/healthz").status == 200


CASES = {
    "no credential": ({}, "", 401, "unauthorized"),
    "a wrong one": (bearer(WRONG), "", 401, "unauthorized"),
    "a wrong one by Basic": ({"Authorization": basic(WRONG)}, "", 401, "unauthorized"),
    "a wrong one by key": ({"X-API-Key": WRONG}, "", 401, "unauthorized"),
    "the token as the user": ({"Authorization": basic("", TOKENS["right"])}, "", 401, "unauthorized"),
    "Basic of nothing": ({"Authorization": "Basic !"}, "", 401, "unauthorized"),
    "Bearer of nothing": ({"Authorization": "Bearer"}, "", 401, "unauthorized"),
    "another scheme": ({"Authorization": "Digest " + TOKENS["right"]}, "", 401, "unauthorized"),
    "the stored form": (bearer(LINES[0]), "", 401, "unauthorized"),
    "withdrawn": (bearer(TOKENS["withdrawn"]), "", 401, "unauthorized"),
    "expired": (bearer(TOKENS["expired"]), "", 401, "expired"),
    "of the wrong scope": (bearer(TOKENS["status"]), "", 403, "forbidden_scope"),
    "of the wrong network": (bearer(TOKENS["away"]), "", 403, "forbidden_network"),
    "right": (bearer(TOKENS["right"]), "", 200, ""),
    "right by Basic": ({"Authorization": basic(TOKENS["right"])}, "", 200, ""),
    "right by key": ({"X-API-Key": TOKENS["right"]}, "", 200, ""),
    "right in small letters": ({"authorization": f"bearer {TOKENS['right']}"}, "", 200, ""),
    "on its last day": (bearer(TOKENS["today"]), "", 200, ""),
    "from its network": (bearer(TOKENS["here"]), "", 200, ""),
    "beside a proxy's own": (
        {"Authorization": basic("proxy's"), "X-API-Key": TOKENS["right"]},
        "",
        200,
        "",
    ),
    "joined by a proxy": ({"Authorization": f"{basic('proxy')}, Bearer {TOKENS['right']}"}, "", 200, ""),
    "right and expired": (bearer(TOKENS["expired"]) | {"X-API-Key": TOKENS["right"]}, "", 200, ""),
    "through a plain proxy, without": ({}, PROXY, 401, "unauthorized"),
    "through a plain proxy, right": (bearer(TOKENS["right"]), PROXY, 200, ""),
    "through a proxy, from its network": (
        bearer(TOKENS["away"]) | {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"},
        PROXY,
        200,
        "",
    ),
    "through a proxy, from elsewhere": (
        bearer(TOKENS["away"]) | {"X-Forwarded-For": "198.51.100.1"},
        PROXY,
        403,
        "forbidden_network",
    ),
    "through a proxy, as if from its network": (
        bearer(TOKENS["away"]) | {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"},
        PROXY,
        403,
        "forbidden_network",
    ),
    "through a proxy, as if from here": ({"X-Forwarded-For": "127.0.0.1"}, PROXY, 401, "unauthorized"),
    "through a proxy, malformed": (
        bearer(TOKENS["right"]) | {"X-Forwarded-For": "unknown"},
        PROXY,
        400,
        "bad_forwarded",
    ),
    "through a liar, without": ({"X-Forwarded-For": "127.0.0.1"}, LIAR, 401, "unauthorized"),
    "through a liar, as if from its network": (
        bearer(TOKENS["away"]) | {"X-Forwarded-For": "203.0.113.9"},
        LIAR,
        403,
        "forbidden_network",
    ),
    "through a liar, malformed": (bearer(TOKENS["right"]) | {"X-Forwarded-For": "unknown"}, LIAR, 200, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_every_endpoint_with_every_credential(service: Service, case: str) -> None:
    """Who may is answered; who may not gets the status that says why, and both challenges if it is a 401."""
    headers, source, status, code = CASES[case]

    answers = {
        endpoint: ask(service, headers, endpoint.method, endpoint.path, source or next(places))
        for endpoint in ENDPOINTS + (ALONE if is_alone(service) else ())
    }

    for endpoint, answer in answers.items():
        is_open = status == 200 or (code, endpoint.scope) == ("forbidden_scope", "status")
        assert answer.status == (endpoint.good_status if is_open else status), endpoint
        challenges = [value.split()[0] for value in answer.all("WWW-Authenticate")]
        assert challenges == (["Bearer", "Basic"] if answer.status == 401 else []), endpoint
        if not is_open and endpoint.method != "HEAD":
            assert answer.code == code, endpoint
        assert not [token for token in (*TOKENS.values(), WRONG) if token.encode() in answer.body]


def test_a_wrong_one_many_times(service: Service) -> None:
    """After twenty within a minute it is 429 for the network; a right one is not slowed, nor is who shows none."""
    source, neighbour = "127.8.8.1", "127.8.8.2"

    answers = [ask(service, bearer(WRONG), "HEAD", source=source).status for _ in range(21)]
    last = ask(service, {"X-API-Key": WRONG}, source=neighbour)

    assert answers == [401] * 20 + [429]
    assert (last.status, last.code) == (429, "throttled")
    assert 1 <= int(last.all("Retry-After")[0]) <= 60
    assert ask(service, bearer(TOKENS["right"]), "HEAD", source=source).status == 200
    assert ask(service, source=source).status == 401
    assert ask(service, bearer(WRONG), source=next(places)).status == 401


def test_the_network_behind_a_proxy_is_counted(service: Service) -> None:
    """Not the proxy, through which others come too."""
    attacker = bearer(WRONG) | {"X-Forwarded-For": "192.0.2.77"}
    answers = [ask(service, attacker, "HEAD", source=PROXY).status for _ in range(21)]

    assert answers[-1] == 429
    assert ask(service, bearer(WRONG) | {"X-Forwarded-For": "192.0.3.1"}, "HEAD", source=PROXY).status == 401


@pytest.mark.parametrize("query", ["?token={}", "?{}", "?strict={}", "?database={}"])
def test_no_token_in_a_query(service: Service, query: str) -> None:
    """Without a header it counts nothing; with one the query is refused, and does not repeat it."""
    path = "/api/backup" + query.format(TOKENS["right"])

    assert ask(service, path=path, source=next(places)).status == 401
    refused = ask(service, bearer(TOKENS["right"]), path=path)
    assert refused.status in (400, 404)
    assert TOKENS["right"].encode() not in refused.body


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_repeats_a_token(log_format: str, tmp_path: Path, data_dir: Path) -> None:
    """Neither log nor metrics, neither an answer, an error's too, nor the history, as a list and as a file."""
    config: Config = {
        "auth": {"tokens": LINES},
        "log": {"format": log_format, "level": "debug"},
        "history": {"path": str(tmp_path / "history.db")},
    }
    secrets = [TOKENS["right"], TOKENS["status"], TOKENS["expired"], WRONG]
    forms = [*secrets, *(basic(token).split()[1] for token in secrets), basic("", TOKENS["right"]).split()[1]]
    with serving(tmp_path / "service", data_dir, config) as service:
        answers = [
            ask(service, bearer(token), method, path.format(token), next(places))
            for token in secrets
            for method, path in SPILLS
        ]
        answers += [
            ask(service, headers)
            for token in secrets
            for headers in ({"Authorization": basic(token)}, {"X-API-Key": token})
        ]
        answers += [ask(service, bearer(WRONG)) for _ in range(21)]
        for line in MALFORMED:
            with service.connect(f"GET /api/backup HTTP/1.1\r\n{line.format(TOKENS['right'])}") as peer:
                assert drain(peer)[0].split()[1] == b"400"
        right = bearer(TOKENS["right"])
        made = json.loads(ask(service, right, path="/api/backups?limit=100").body)["backups"]
        answers += [ask(service, right, path=f"/api/backups/{backup['id']}") for backup in made]
        answers += [ask(service, right, path=path) for path in ("/api/backups?limit=100", "/metrics")]

    assert {200, 400, 401, 403, 404, 405, 429} <= {answer.status for answer in answers}
    assert [backup["credential"] for backup in made] == ["right"] * len(made) != []
    shown = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown += [f"{answer.headers}".encode() + answer.body for answer in answers]
    for form in forms:
        assert not [text for text in shown if form.encode() in text]


def test_too_many_at_once(service: Service) -> None:
    """Each is compared with every stored one: so nine are none."""
    many = {"Authorization": ", ".join([f"Bearer {WRONG}"] * 8), "X-API-Key": TOKENS["right"]}

    assert ask(service, many, source=next(places)).status == 401


@pytest.mark.parametrize(
    "options",
    [("-H", "Authorization: Bearer {}"), ("-u", "me:{}"), ("-H", "X-API-Key: {}")],
    ids=["bearer", "basic", "key"],
)
def test_curl(service: Service, tmp_path: Path, options: tuple[str, str]) -> None:
    """A whole backup in each of the three ways."""
    target = tmp_path / "x.zip"
    words = [word.format(TOKENS["right"]) for word in options]

    assert run(*curl(service, target, "?strict=true", *words)).returncode == 0
    assert Archive(target.read_bytes()).manifest["complete"] is True


def test_curl_without(service: Service, tmp_path: Path) -> None:
    """An error status, which `-f` makes an exit code."""
    assert run(*curl(service, tmp_path / "x.zip")).returncode == 22


@pytest.mark.parametrize("options", [("--user=me", "--password={}"), ("--header=Authorization: Bearer {}",)])
def test_wget(service: Service, tmp_path: Path, options: tuple[str, ...]) -> None:
    """By Basic it asks without first, and then answers the challenge."""
    target = tmp_path / "x.zip"
    words = [word.format(TOKENS["right"]) for word in options]

    assert run(*wget(service, target, "?strict=true", "--tries=1", *words)).returncode == 0
    assert Archive(target.read_bytes()).manifest["complete"] is True
    assert run(*wget(service, target, "", "--tries=1", "--user=me", "--password=x")).returncode == 6


def test_fetch(service: Service, tmp_path: Path) -> None:
    """Our own client takes it from a file."""
    (tmp_path / "token").write_text(TOKENS["right"] + "\n")
    command = ("-m", "mothership_backup", "fetch", service.backup_url, tmp_path / "x.zip")

    assert run(sys.executable, *command, "--token-file", tmp_path / "token").returncode == 0
    assert Archive((tmp_path / "x.zip").read_bytes()).manifest["complete"] is True


@pytest.mark.parametrize(
    ("name", "scope", "status"),
    [
        ("status", "status", 200),
        ("right", "status", 200),
        ("status", "backup", 403),
        ("expired", "status", 401),
        ("away", "status", 403),
    ],
)
async def test_scopes(name: str, scope: Scope, status: int) -> None:
    """`status` opens what is for `status`; `backup` opens that too."""
    auth = Auth(Settings(auth=AuthSettings(tokens=LINES)))

    async def handler(request: web.Request) -> web.Response:
        try:
            identity = auth.admit(request, scope)
        except RequestError as error:
            return problems.respond(request, "cafe", error)
        return web.Response(text=f"{identity.name} from {identity.client}")

    app = web.Application()
    app.router.add_get("/", handler)
    async with (
        TestClient(TestServer(app)) as client,
        client.get("/", headers=bearer(TOKENS[name])) as response,
    ):
        assert response.status == status
        if status == 200:
            assert await response.text() == f"{name} from 127.0.0.1"


def test_reachable_and_behind_a_proxy(tmp_path: Path, data_dir: Path) -> None:
    """With a credential it starts; start line, health, paths and log are what the configuration says."""
    config: Config = {
        "server": {"trusted_proxies": [PROXY], "base_path": "/rover/x/"},
        "auth": {"tokens": [LINES[0]]},
    }
    with serving(tmp_path, data_dir, config, "--host", "0.0.0.0") as running:
        path = "/rover/x/api/backup"
        for probe in OPEN:
            assert ask(running, path="/rover/x" + probe).status == 200
            assert ask(running, bearer(WRONG), path="/rover/x" + probe).status == 200
        assert [ask(running, path=path).status for path in ("/api/backup", *OPEN)] == [404] * 4
        assert ask(running, bearer(TOKENS["right"]), path=path).status == 200
        assert ask(running, {"X-Forwarded-For": "192.0.2.55"}, path=path, source=PROXY).status == 401
        for header in (f"Authorization Bearer {WRONG}", f"A {basic(WRONG)}"):  # no colon: aiohttp's own error
            with running.connect(f"GET / HTTP/1.1\r\nHost: a\r\n{header}") as peer:
                assert b" 400 " in peer.recv(65536)
        wait_until("both lines", lambda: running.log().count("not understood: Invalid header") == 2, 5)
        log = running.log()

    assert "only who shows a credential of auth.tokens is answered" in log
    assert f'-H "Authorization: Bearer $TOKEN" \'http://127.0.0.1:{running.port}{path}?strict=true' in log
    assert "from 192.0.2.55: unauthorized" in log
    assert not [
        secret for secret in (WRONG, basic(WRONG)[6:], TOKENS["right"], LINES[0][-64:]) if secret in log
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("host", "can be reached from other machines"),
        ("tokens_file", "auth.tokens_file: /nowhere/tokens: No such"),
    ],
)
def test_a_start_that_is_refused(tmp_path: Path, key: str, message: str) -> None:
    """Exit code 2 and one line with the remedy."""
    (tmp_path / "config.toml").write_text(
        "[auth]\ntokens_file = '/nowhere/tokens'" if key == "tokens_file" else ""
    )
    options = ("--config", "config.toml", "--data-dir", "data", "--host", "0.0.0.0", "--port", "0")

    done = run(sys.executable, "-m", "mothership_backup", "serve", *options, cwd=tmp_path)

    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"server": {"trusted_proxies": ["10.0.0.0/8"]}}, 403, "anonymous_refused"),
        ({"auth": {"tokens_file": "tokens"}}, 401, "unauthorized"),
    ],
    ids=["proxies", "an empty file"],
)
async def test_the_end_of_anonymity(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Mapping[str, object],
    status: int,
    code: str,
) -> None:
    """Also for who comes from this machine: the request may have come through a proxy on it."""
    monkeypatch.chdir(tmp_path)
    Path("tokens").touch()
    app = web.Application()
    setup(app, Settings.model_validate(settings))

    async with TestClient(TestServer(app)) as client, client.get("/api/backup") as response:
        assert response.status == status
        assert (await response.json())["code"] == code
