"""The units: systemd takes them as they are, hardened, and their configuration is one."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from deployed import DEPLOY, parse
from harness import run, tool
from mothership_backup.config import Settings, load

UNITS = DEPLOY / "systemd"
SERVE = UNITS / "mothership-backup.service"
FETCH = UNITS / "mothership-backup-fetch.service"
PROGRAM = "/opt/mothership-backup/bin/mothership-backup"


def settings_of(unit: Path) -> Mapping[str, str]:
    """Its lines, the last of each key."""
    joined = re.sub(r"\\\n\s*", "", unit.read_text("utf-8"))
    return dict(re.findall(r"^(\w+)=(.*)$", joined, re.MULTILINE))


def configuration() -> Settings:
    return load(UNITS / "config.toml", {})


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """No unknown key, no value that is none; the program is this environment's."""
    program = tmp_path / "mothership-backup"
    program.symlink_to(sys.executable)
    copies = []
    for unit in (SERVE, FETCH, FETCH.with_suffix(".timer")):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text("utf-8").replace(PROGRAM, str(program)))
        copies.append(copy)

    done = run(tool("systemd-analyze"), "verify", "--man=no", *copies)

    ours = [
        line for line in done.stderr.splitlines() if "mothership" in line
    ]  # not what else the machine has
    assert (ours, done.returncode) == ([], 0)


@pytest.mark.parametrize("unit", [SERVE, FETCH], ids=lambda unit: str(unit.name))
def test_the_units_are_hardened(unit: Path) -> None:
    """An exposure of at most 1.5 of 10; what is left is the network, and the application's user."""
    done = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=15", unit)

    assert done.returncode == 0, done.stdout


def test_the_units_start_commands_of_ours() -> None:
    """Each with arguments that its parser takes."""
    (program, *serve), (also, *fetch) = (settings_of(unit)["ExecStart"].split() for unit in (SERVE, FETCH))

    assert (program, also) == (PROGRAM, PROGRAM)
    assert parse(serve)["config"] == Path("/etc/mothership-backup/config.toml")
    assert parse(fetch)["keep"] == 14


def test_the_unit_outlives_the_grace() -> None:
    """SIGKILL comes after the running backups have cut themselves, and only SIGTERM's target gets SIGTERM."""
    unit = settings_of(SERVE)

    assert int(unit["TimeoutStopSec"]) > configuration().server.shutdown_grace_seconds + 5
    assert (unit["KillMode"], unit["Type"], unit["RestartPreventExitStatus"]) == ("mixed", "notify", "2")


def test_the_unit_and_its_configuration_name_the_same_places() -> None:
    """All else is read-only."""
    unit, settings = settings_of(SERVE), configuration()

    assert settings.data.dir == Path(unit["ReadWritePaths"])
    assert settings.snapshot.staging_dir == f"/var/cache/{unit['CacheDirectory']}"
    assert Path(settings.history.path).parent == Path("/var/lib", unit["StateDirectory"])


@pytest.mark.parametrize(("unit", "name"), [(SERVE, "tokens"), (FETCH, "token")])
def test_the_secret_is_a_credential(unit: Path, name: str) -> None:
    """Read from the unit's own copy, so that its user cannot read the file."""
    text = unit.read_text("utf-8")

    assert settings_of(unit)["LoadCredential"] == f"{name}:/etc/mothership-backup/{name}"
    assert f"%d/{name}" in text


def test_the_application_keeps_its_ipc() -> None:
    """RemoveIPC would remove what the application of the same user has."""
    assert not {"RemoveIPC", "DynamicUser", "PrivateUsers"} & settings_of(SERVE).keys()
