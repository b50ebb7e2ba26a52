"""A monitor hears of start, success and failure, and never decides what becomes of the backup."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from bad_servers import BadServer, problem, status, until_left, whole
from harness import MakeDatabase
from mothership_backup.errors import FetchError
from mothership_backup.fetch.ping import Ping, watched
from support import archive_of
from test_cli import command

TLS = ssl.create_default_context()
GOOD = status(200, "OK")


@pytest.fixture
def monitor() -> Iterator[BadServer]:
    with BadServer(GOOD) as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    folder = tmp_path_factory.mktemp("data")
    make_database(folder / "a.db", rows=10)
    return archive_of(folder).data


def base(monitor: BadServer, path: str) -> str:
    return monitor.url.replace("/api/backup", path)


def lines(monitor: BadServer) -> list[str]:
    """What was asked for, and with what body."""
    parts = [request.partition("\r\n\r\n") for request in monitor.requests]
    return [f"{head.split(' HTTP/')[0]} {body}".strip() for head, _, body in parts]


def say_good(url: str) -> list[str]:
    told: list[str] = []
    with watched(Ping(url, TLS), told.append) as ended:
        ended(True, "all is well")
    return told


class TestHealthchecks:
    def test_start_and_success(self, monitor: BadServer) -> None:
        """The query stands behind the added path."""
        assert say_good(base(monitor, "/uuid/?create=1")) == []

        assert lines(monitor) == ["POST /uuid/start?create=1", "POST /uuid/?create=1 all is well"]

    def test_an_incomplete_backup_is_a_failure(self, monitor: BadServer) -> None:
        """With the reason as its body."""
        with watched(Ping(base(monitor, "/uuid"), TLS), print) as ended:
            ended(False, "home.zip.incomplete: incomplete")

        assert lines(monitor)[1:] == ["POST /uuid/fail home.zip.incomplete: incomplete"]

    @pytest.mark.parametrize(
        ("error", "body"),
        [
            (FetchError("nobody listens"), "nobody listens"),
            (KeyboardInterrupt(), "interrupted"),
            (ZeroDivisionError("secret"), "a defect: ZeroDivisionError"),
        ],
    )
    def test_an_error_is_a_failure(self, monitor: BadServer, error: BaseException, body: str) -> None:
        """It goes on to whoever handles it."""
        with pytest.raises(type(error)), watched(Ping(base(monitor, "/uuid"), TLS), print):
            raise error

        assert lines(monitor) == ["POST /uuid/start", f"POST /uuid/fail {body}"]


class TestKuma:
    URL = "/api/push/abc?status=up&msg=OK&ping=&via=cron%20job"

    def test_success(self, monitor: BadServer) -> None:
        """Once, at the end; its own example values are replaced, what else stands there stays."""
        assert say_good(base(monitor, self.URL)) == []

        (line,) = lines(monitor)
        query = parse_qs(urlsplit(line).query)
        assert line.startswith("GET /api/push/abc?")
        assert int(query.pop("ping")[0]) < 10_000
        assert query == {"status": ["up"], "msg": ["all is well"], "via": ["cron job"]}

    def test_failure(self, monitor: BadServer) -> None:
        """Down, and why."""
        with pytest.raises(FetchError), watched(Ping(base(monitor, self.URL), TLS), print):
            raise FetchError("50 % & more = less")

        (line,) = lines(monitor)
        query = parse_qs(urlsplit(line).query)
        assert (query["status"], query["msg"]) == (["down"], ["50 % & more = less"])


class TestMonitorFails:
    def test_it_answers_an_error(self) -> None:
        """Told by host and status; the address is a secret of its own."""
        with BadServer(status(404)) as monitor:
            told = say_good(base(monitor, "/s3cret"))

        assert told == ["--ping: 127.0.0.1: it answers 404"] * 2

    def test_nobody_listens(self) -> None:
        """Told, and no more than that."""
        with BadServer() as monitor:
            url = base(monitor, "/s3cret")

        told = say_good(url)

        assert len(told) == 2
        assert all("cannot be reached" in line and "s3cret" not in line for line in told)

    def test_it_does_not_answer(self) -> None:
        """It is not waited for longer than its time."""
        told: list[str] = []

        with BadServer(GOOD, until_left) as monitor:
            url = base(monitor, "/uuid")
            with (
                pytest.raises(KeyboardInterrupt),
                watched(Ping(url, TLS), told.append, timeout_seconds=0.2),
            ):
                raise KeyboardInterrupt

        assert told == ["--ping: 127.0.0.1: no answer within 0.2 s"]

    def test_the_exit_code_is_the_backups(self, archive: bytes, tmp_path: Path) -> None:
        """A good backup stays one."""
        with BadServer(whole(archive)) as server, BadServer(status(500)) as monitor:
            result = command("fetch", server.url, tmp_path / "home.zip", "--ping", base(monitor, "/uuid"))

        assert result.returncode == 0
        assert (tmp_path / "home.zip").read_bytes() == archive
        assert result.stderr.count(b"--ping: 127.0.0.1: it answers 500\n") == 2


def test_the_command_says_the_end_once(archive: bytes, tmp_path: Path, monitor: BadServer) -> None:
    """The line that stands on stderr."""
    with BadServer(whole(archive)) as server:
        result = command("fetch", server.url, tmp_path / "home.zip", "--ping", base(monitor, "/uuid"))

    start, success = lines(monitor)
    assert start == "POST /uuid/start"
    assert success.startswith(f"POST /uuid {tmp_path}/home.zip: ")
    assert result.stderr.decode() == f"mothership-backup: {success.removeprefix('POST /uuid ')}\n"


def test_the_token_goes_to_the_service_only(tmp_path: Path, monitor: BadServer) -> None:
    """Not to the monitor, nor to stderr, even if the service says it back."""
    token = f"s3cret-{os.getpid()}"
    (tmp_path / "token").write_text(f"  {token} \nand more\n")

    with BadServer(problem(401, f"Bearer {token} is unknown")) as server:
        result = command(
            *("fetch", server.url, tmp_path / "home.zip", "--token-file", tmp_path / "token"),
            *("--ping", base(monitor, "/uuid")),
        )

    assert result.returncode == 1
    assert f"\r\nAuthorization: Bearer {token}\r\n" in server.requests[0]
    assert b"401 Unauthorized: Bearer (the token) is unknown" in result.stderr
    assert token.encode() not in result.stderr
    assert token not in "".join(monitor.requests)
    assert lines(monitor)[1].endswith("401 Unauthorized: Bearer (the token) is unknown")
