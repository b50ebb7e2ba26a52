"""What deploy/ gives to Home Assistant, Node-RED, openHAB and cron: each request and each command of it, for real.

The programs themselves are not here: their files are read, and what they would ask or start is asked and started.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bad_servers import BadServer, status
from deployed import DEPLOY
from harness import Answer, Archive, MakeDatabase, Service, run, serving, tool
from mothership_backup.credentials import Credential, digest_of, new_token
from processes import wait_until

WRITTEN = "http://backup.lan:8080"  # the service's URL in these files
TOKENS = {"status": new_token(), "backup": new_token()}
LINES = [
    Credential("status", digest_of(TOKENS["status"].encode()), scope="status").stored(),
    Credential("backup", digest_of(TOKENS["backup"].encode())).stored(),
]
STATUS_HEADERS = {"Authorization": f"Bearer {TOKENS['status']}"}
OPENHAB_PATIENCE_SECONDS = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """With a credential for each scope, and one backup that it has made."""
    folder = tmp_path_factory.mktemp("service")
    make_database(folder / "data" / "events.db")
    with serving(folder, folder / "data", {"auth": {"tokens": LINES}}) as running:
        headers = {"Authorization": f"Bearer {TOKENS['backup']}"}
        assert running.request(headers=headers).archive().manifest["complete"] is True
        wait_until("the status", lambda: ask_status(running).json()["last_outcome"] == "complete", 5)
        yield running


def ask_status(service: Service) -> Answer:
    return service.request("/api/status", headers=STATUS_HEADERS)


def read(file: str) -> str:
    return (DEPLOY / file).read_text("utf-8")


def placed(text: str, places: Mapping[str, object]) -> str:
    """The text with this machine's places; each of those that are written must be there."""
    for written, real in places.items():
        assert written in text, written
        text = text.replace(written, str(real))
    return text


def target_of(url: str) -> str:
    """Path and query of a URL of the service."""
    assert url.startswith(WRITTEN), url
    return url.removeprefix(WRITTEN)


def shell(command: str, *, seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a program with next to no environment runs it; it must let go of the output, too."""
    return subprocess.run(
        ["sh", "-c", command],
        env={"PATH": "/usr/bin:/bin", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def complete(path: Path) -> bool:
    return bool(Archive(path.read_bytes()).manifest["complete"])


def token_file(folder: Path) -> Path:
    path = folder / "token"
    path.write_text(TOKENS["backup"] + "\n")
    return path


@pytest.mark.parametrize("folder", ["home-assistant", "node-red", "openhab"])
def test_every_url(service: Service, folder: str) -> None:
    """A status is read with the smaller scope and is exactly `application/json`; an archive needs the other."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((DEPLOY / folder).iterdir()))
    targets = {target_of(url) for url in re.findall(r"https?://backup\.[^\s\"']+", text)}
    assert "/api/status" in targets

    for target in targets:
        small, large = (
            service.request(target, headers={"Authorization": f"Bearer {token}"}) for token in TOKENS.values()
        )
        is_archive = target.startswith("/api/backup")
        assert (small.status, large.status) == (403 if is_archive else 200, 200)
        if is_archive:
            assert large.archive().manifest["complete"] is True
        else:
            assert large.headers["content-type"].split(";")[0] == "application/json"


class TestHomeAssistant:
    FILE = "home-assistant/mothership_backup.yaml"

    @pytest.fixture
    def package(self) -> Any:
        class Loader(yaml.SafeLoader):
            """With the one tag that this file uses."""

        Loader.add_constructor("!secret", lambda _, node: f"secret {node.value}")
        return yaml.load(read(self.FILE), Loader)

    def test_the_sensor(self, service: Service, package: Any) -> None:
        """It asks with the secret, and every member that it or a template names is in the answer."""
        (rest,) = package["rest"]
        (sensor,) = rest["sensor"]
        named = set(re.findall(r"state_attr\('sensor\.mothership_backup', '(\w+)'\)", read(self.FILE)))
        in_value = set(re.findall(r"value_json\.(\w+)", sensor["value_template"]))
        assert rest["headers"] == {"Authorization": "secret mothership_backup_authorization"}
        assert 'mothership_backup_authorization: "Bearer mb_' in read(self.FILE)

        answer = service.request(target_of(rest["resource"]), headers=STATUS_HEADERS, seconds=rest["timeout"])

        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert named <= set(sensor["json_attributes"])
        assert in_value | set(sensor["json_attributes"]) <= set(answer.json())

    def test_the_command(self, service: Service, package: Any, tmp_path: Path) -> None:
        """It returns at once, and the archive comes after it; a failed one leaves the last good one alone."""
        for name in ("setsid", "flock", "curl"):
            tool(name)
        (tmp_path / "mothership_backup.header").write_text(f"Authorization: Bearer {TOKENS['backup']}\n")
        share = tmp_path / "share"
        lock = tmp_path / "lock"
        places = {
            "/tmp/mothership_backup.lock": lock,
            WRITTEN: service.url,
            "/share/backups": share,
            "/config": tmp_path,
        }
        command = placed(package["shell_command"]["mothership_backup_fetch"], places)
        assert "{{" not in command, "with a template it would be run without a shell"

        share.mkdir()
        old = share / "mothership_backup-2020-01-01.zip"
        old.touch()
        os.utime(old, (0, 0))

        began = time.monotonic()
        assert shell(command, seconds=5).returncode == 0
        returned = time.monotonic() - began
        wait_until("the old archive to go, the last thing that it does", lambda: not old.exists())

        assert returned < 1
        (archive,) = share.iterdir()
        assert complete(archive)
        assert archive.stat().st_mode & 0o077 == 0

        before = archive.read_bytes()
        (tmp_path / "mothership_backup.header").write_text("Authorization: Bearer none\n")
        once = placed(command, {"--retry 5": "--retry 0"}).removesuffix("&")
        assert shell(once, seconds=20).returncode == 22
        assert archive.read_bytes() == before

    def test_what_it_starts(self, package: Any) -> None:
        """The automations name what the package has."""
        actions = {step["action"] for automation in package["automation"] for step in automation["actions"]}
        assert "shell_command." + next(iter(package["shell_command"])) in actions
        assert "binary_sensor.mothership_backup_problem" in json.dumps(package["automation"])


RUN_FUNCTION = """
const {code, messages, environment} = JSON.parse(require("fs").readFileSync(0));
const env = {get: name => environment[name]};
const results = messages.map(msg => {
    const result = {};
    const node = {status: status => { result.shown = status.fill; }};
    result.msg = new Function("msg", "env", "node", code)(msg, env, node);
    return result;
});
console.log(JSON.stringify(results));
"""


class TestNodeRed:
    @pytest.fixture
    def flow(self) -> dict[str, Any]:
        return {node["id"]: node for node in json.loads(read("node-red/mothership-backup.json"))}

    def call(self, function: Mapping[str, Any], *messages: Mapping[str, Any]) -> list[Any]:
        """What a function node makes of each message, in the JavaScript that it is written in."""
        environment = {"MOTHERSHIP_STATUS_TOKEN": TOKENS["status"]}
        words = {"code": function["func"], "messages": messages, "environment": environment}
        done = subprocess.run(
            [tool("node"), "-e", RUN_FUNCTION],
            input=json.dumps(words),
            capture_output=True,
            text=True,
            check=True,
        )
        return list(json.loads(done.stdout))

    def test_the_wires(self, flow: dict[str, Any]) -> None:
        """Every wire leads to a node of the flow, and no archive is asked for by a node with a time limit."""
        nodes = [node for node in flow.values() if node["type"] != "tab"]
        assert {end for node in nodes for wires in node["wires"] for end in wires} <= set(flow)
        assert {node["z"] for node in nodes} == {"mb-flow"}
        assert [target_of(node["url"]) for node in nodes if node["type"] == "http request"] == ["/api/status"]
        assert [node["timer"] for node in nodes if node["type"] == "exec"] == [""]

    def test_the_poll(self, service: Service, flow: dict[str, Any]) -> None:
        """From the credential to the verdict: good as things are, and a problem in every other case."""
        (asking,) = self.call(flow["mb-ask"], {})
        target = target_of(flow["mb-status"]["url"])
        answer = service.request(target, headers=asking["msg"]["headers"])
        refused = service.request(target)
        status = answer.json()
        cases: dict[str, tuple[int | str, object]] = {
            "": (answer.status, status),
            "no status: 401": (refused.status, refused.json()),
            "no complete backup yet": (200, status | {"last_success_age_seconds": None}),
            f"the last complete backup is of {status['last_success']}": (
                200,
                status | {"last_success_age_seconds": 100_000},
            ),
            "the last backup: cut, stall": (200, status | {"last_outcome": "cut", "last_error": "stall"}),
            "no status: ECONNREFUSED": ("ECONNREFUSED", "RequestError"),
        }

        messages = [{"statusCode": code, "payload": payload} for code, payload in cases.values()]
        results = self.call(flow["mb-judge"], *messages)

        assert [result["msg"]["payload"]["problem"] for result in results] == list(cases)
        assert [result["shown"] for result in results] == ["green"] + ["red"] * (len(cases) - 1)

    def test_the_command(self, service: Service, flow: dict[str, Any], tmp_path: Path) -> None:
        """A proved archive, by a shell as the exec node has one."""
        places = {
            WRITTEN: service.url,
            "/srv/backups": tmp_path,
            "/etc/mothership-backup/token": token_file(tmp_path),
        }
        done = shell(
            placed(flow["mb-fetch"]["command"], places),
            seconds=60,
            PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin",
        )

        assert done.returncode == 0, done.stderr
        (archive,) = tmp_path.glob("spaxel-*.zip")
        assert complete(archive)


class TestOpenhab:
    def test_the_thing(self, service: Service) -> None:
        """Its request, by Basic from the start and within its patience, has all that its channels take."""
        text = read("openhab/mothership-backup.things")
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', text.partition("{")[0]))
        members = re.findall(r"JSONPATH:\$\.(\w+)", text)
        assert parameters["authMode"] == "BASIC_PREEMPTIVE"
        assert parameters["password"].startswith("mb_")
        credential = base64.b64encode(f"{parameters['username']}:{TOKENS['status']}".encode()).decode()

        answer = service.request(
            target_of(parameters["baseURL"]),
            headers={"Authorization": f"Basic {credential}"},
            seconds=OPENHAB_PATIENCE_SECONDS,
        )

        assert answer.status == 200
        assert "timeout=3000" in text
        assert members
        assert not [member for member in members if answer.json()[member] is None]

    def test_the_names(self) -> None:
        """Items name channels of the thing, and rules name items; the script is the one of deploy/cron."""
        channels = re.findall(r"Type \w+ +: (\w+)", read("openhab/mothership-backup.things"))
        items = read("openhab/mothership-backup.items")
        rules = read("openhab/mothership-backup.rules")

        assert re.findall(r'channel="http:url:mothership_backup:(\w+)"', items) == channels
        assert set(re.findall(r"\bBackup_\w+", rules)) <= set(re.findall(r"\bBackup_\w+", items))
        (script,) = re.findall(r'executeCommandLine\("([^"]+)"\)', rules)
        assert (DEPLOY / "cron" / Path(script).name).is_file()


class TestCron:
    def test_the_line(self) -> None:
        """Five fields, a user, and the script, which may be executed."""
        (line,) = [
            line for line in read("cron/mothership-backup.cron").splitlines() if not line.startswith("#")
        ]

        *times, user, command = line.split()
        assert (len(times), user) == (5, "backup")
        assert os.access(DEPLOY / "cron" / Path(command).name, os.X_OK)

    @pytest.mark.parametrize("is_good", [True, pytest.param(False, marks=pytest.mark.long)])
    def test_the_script(self, service: Service, tmp_path: Path, is_good: bool) -> None:
        """With cron's environment and `set -e`: an archive and a ping, or an exit code and a ping of failure."""
        token = token_file(tmp_path)
        if not is_good:
            token.write_text("mb_wrong\n")
        with BadServer(status(200, "OK")) as monitor:
            places = {
                "https://backup.example.org": service.url,
                "/srv/backups": tmp_path,
                "/etc/mothership-backup/token": token,
                "/opt/mothership-backup/bin": Path(sys.executable).parent,
                "https://hc-ping.com": monitor.url.removesuffix("/api/backup"),
            }
            script = tmp_path / "mothership-backup-fetch"
            script.write_text(placed(read("cron/mothership-backup-fetch"), places))
            done = shell(f"sh -e {script}", seconds=60, HOME=str(tmp_path), LOGNAME="backup", SHELL="/bin/sh")
            pinged = [request.split()[1] for request in monitor.requests]

        archives = list(tmp_path.glob("spaxel-*.zip"))
        assert done.returncode == (0 if is_good else 1), done.stderr
        assert pinged == ["/your-check/start", "/your-check" if is_good else "/your-check/fail"]
        assert [complete(archive) for archive in archives] == [True] * is_good

    def test_it_is_a_good_script(self) -> None:
        """For the plain shell, too."""
        assert run("sh", "-n", DEPLOY / "cron" / "mothership-backup-fetch").returncode == 0
