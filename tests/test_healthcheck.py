"""The command for containers without curl: 0 or 1, from the standard library alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Done, StartService

COMMAND = [sys.executable, "-m", "mothership_backup", "healthcheck"]


def healthcheck(*words: str, **variables: str) -> Done:
    return subprocess.run(
        [*COMMAND, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_ready_service_is_0(data_dir: Path, service: StartService) -> None:
    """By its variable, as in its container, and by a URL; nothing is said."""
    running = service(data_dir)

    for done in (
        healthcheck(MOTHERSHIP_BACKUP__SERVER__PORT=str(running.port)),
        healthcheck(f"{running.url}/readyz"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_service_below_a_path_is_found(data_dir: Path, service: StartService) -> None:
    """The variables of the service are those of the check."""
    running = service(data_dir, {"server": {"base_path": "/rover"}})

    done = healthcheck(
        MOTHERSHIP_BACKUP__SERVER__PORT=str(running.port), MOTHERSHIP_BACKUP__SERVER__BASE_PATH="/rover"
    )

    assert done.returncode == 0, done.stderr


def test_a_service_that_is_not_ready_is_1(tmp_path: Path, service: StartService) -> None:
    """With the status on stderr, where `docker inspect` shows it."""
    running = service(tmp_path / "missing")

    done = healthcheck(f"{running.url}/readyz")

    assert done.returncode == 1
    assert "503" in done.stderr


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1/", "http://127.0.0.1:port/"])
def test_whatever_is_no_url_is_1(url: str) -> None:
    """No other code, and no traceback."""
    done = healthcheck(url)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_nobody_there_is_1() -> None:
    """A port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))

        done = healthcheck(MOTHERSHIP_BACKUP__SERVER__PORT=str(taken.getsockname()[1]))

    assert done.returncode == 1
    assert "refused" in done.stderr


def test_two_urls_are_1_and_help_is_0() -> None:
    """2 is reserved by container engines."""
    assert healthcheck("http://a/", "http://b/").returncode == 1
    assert healthcheck("--help").returncode == 0


def test_it_starts_without_the_libraries() -> None:
    """It runs every few seconds beside the service: no typer, no aiohttp, no pydantic."""
    code = (
        "import json, sys; sys.argv = ['x', 'healthcheck', 'nonsense']\n"
        "from mothership_backup.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(json.dumps([end.code, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    status, modules = json.loads(done.stdout)
    assert status == 1
    assert not {"typer", "aiohttp", "pydantic", "rich", "asyncio"} & set(modules)
