"""The README tells the truth: its commands run, its keys exist, its curl lines ask for strict=true.

A fence that begins with ``sh run`` or ``python run`` is run here; the shell ones in their order in the file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from harness import Archive, Service, tool
from mothership_backup.config import Settings, load

README = Path(__file__).resolve().parents[1] / "README.md"
URL = "http://127.0.0.1:8080"
Client = TestClient[web.Request, web.Application]


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after its fence, and its text."""

    words: str
    text: str


def blocks(words: str) -> list[Block]:
    fences = re.finditer(r"^```([^\n]*)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*fence.groups()) for fence in fences if fence[1] == words]


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the first table with this first heading, without the header."""
    lines = README.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def downloads() -> list[str]:
    """Each command that fetches a backup, its continuation lines joined."""
    lines = README.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r".*\b(curl|wget) .*http", line)]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Service]:
    service = Service(["-m", "mothership_backup", "demo", "--port", "0"], tmp_path / "demo.log")
    try:
        yield service
        assert service.stop() == 0, service.log()
    finally:
        service.kill()
        service.assert_nothing_left()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Stands for what a test machine has not: a service manager, a cluster, a container engine.

    What they would run in a container runs here; everything else that they are asked for is noted.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> '{tmp_path}/asked'
[ "$1" != apply ] || cat > '{tmp_path}/pod.yaml'
while [ $# -gt 0 ] && [ "$1" != mothership-backup ]; do shift; done
[ $# -eq 0 ] || exec "$@"
"""
    for name in ("systemctl", "kubectl", "docker"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def test_the_shell_blocks_run(demo: Service, elsewhere: Path, tmp_path: Path) -> None:
    """Each block ends with 0 against the demo; the last ones verify and restore what the first ones fetched."""
    for name in ("curl", "wget", "unzip", "sha256sum"):
        tool(name)
    found = blocks("sh run")
    data_dir, kept, work = tmp_path / "data", tmp_path / "backups", tmp_path / "work"
    for folder in (data_dir, kept, work, tmp_path / "wget"):
        folder.mkdir()
    places = {URL: demo.url, "/srv/backups": str(kept), " /data": f" {data_dir}", '"/data': f'"{data_dir}'}
    path = os.pathsep.join([str(elsewhere), str(Path(sys.executable).parent), os.environ["PATH"]])

    for text in (block.text for block in found):
        for written, real in places.items():
            text = text.replace(written, real)
        if "restore" in text or "rm -f" in text:
            (data_dir / "spaxel.db-wal").write_bytes(b"of the old database")
        # wget makes a second name where curl has made the first
        folder = tmp_path / "wget" if "wget" in text else work
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        assert not (data_dir / "spaxel.db-wal").exists()

    assert len(found) == 10
    names = [path.name for path in data_dir.iterdir() if not path.name.startswith(".before-restore-")]
    assert sorted(names) == ["floor_plan", "spaxel.db", "telemetry.db"]
    asked = (tmp_path / "asked").read_text()
    assert asked.index("stop spaxel") < asked.index("start spaxel")
    assert "claimName: spaxel-data" in (tmp_path / "pod.yaml").read_text()
    fetched = [*(tmp_path / "wget").iterdir(), *work.glob("spaxel-*.zip"), *kept.iterdir()]
    assert len(fetched) == 4
    assert all(Archive(path.read_bytes()).manifest["complete"] for path in fetched)


async def test_the_python_block_mounts_the_backup(
    aiohttp_client: Callable[[web.Application], Awaitable[Client]], data_dir: Path
) -> None:
    """The three lines are enough."""
    [block] = blocks("python run")
    app = web.Application()

    exec(compile(block.text, str(README), "exec"), {"app": app, "data_dir": data_dir})

    answer = await (await aiohttp_client(app)).get("/api/backup?strict=true")
    assert Archive(await answer.read()).manifest["complete"] is True


def test_the_configuration_block_loads(tmp_path: Path) -> None:
    """What the README shows as a configuration file is one."""
    [block] = blocks("toml")
    (tmp_path / "config.toml").write_text(block.text, "utf-8")

    assert load(tmp_path / "config.toml", {}).archive.strict is True


def test_each_variable_is_one_that_load_knows(tmp_path: Path) -> None:
    """Every MOTHERSHIP_BACKUP__… in the text sets a key."""
    variables = set(re.findall(r"MOTHERSHIP_BACKUP__[A-Z_]+[A-Z]", README.read_text("utf-8")))

    for variable in variables:
        load(None, {variable: "/srv"})

    assert variables


def test_each_download_asks_for_strict() -> None:
    """A plain 200 may lack a database: people copy these lines."""
    found = downloads()

    assert len(found) >= 3
    assert [line for line in found if "strict=true" not in line] == []


def test_the_table_of_keys_is_the_settings() -> None:
    """Each key of Settings stands there with its default, and no other key does."""
    documented = {
        row[0].strip("`"): tomllib.loads(f"value = {row[1].strip('`')}")["value"] for row in table_rows("key")
    }
    defaults = {
        f"{section}.{key}": value
        for section, keys in Settings().model_dump(mode="json").items()
        for key, value in keys.items()
    }

    assert documented == defaults


def test_the_table_of_commands_is_the_command_line() -> None:
    """Each command in the table has a --help, and --help knows no other command."""
    documented = [row[0].strip("`").split()[1] for row in table_rows("command")]
    done = subprocess.run(
        [sys.executable, "-m", "mothership_backup", "--help"],
        env=os.environ | {"COLUMNS": "100", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = re.findall(r"^[ │]*([a-z][a-z-]+)  +\S", done.stdout, re.MULTILINE)

    assert sorted(documented) == sorted(listed)
