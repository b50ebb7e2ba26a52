"""The image: its Dockerfile is clean, its steps work in a folder without Docker, and it does not start open."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployed import DEPLOY, ROOT, beside_python, documents, parse
from harness import run
from mothership_backup.config import load

FILE = DEPLOY / "docker" / "Dockerfile"
FAST = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["fast"]
HOME = "/opt/mothership-backup"


def instructions(keyword: str) -> list[str]:
    """What stands behind each ``keyword`` of the Dockerfile, its lines joined."""
    joined = re.sub(r"\\\n\s*", "", FILE.read_text("utf-8"))
    return re.findall(rf"^{keyword} (.*)$", joined, re.MULTILINE)


def environment() -> dict[str, str]:
    """What the image sets, without PATH."""
    return dict(word.split("=", 1) for word in instructions("ENV")[0].split() if not word.startswith("PATH="))


def service() -> Mapping[str, Any]:
    """The backup's part of compose.yaml."""
    [compose] = documents(FILE.with_name("compose.yaml"))
    part: Mapping[str, Any] = compose["services"]["backup"]
    return part


def test_hadolint_has_nothing_to_say() -> None:
    """Not even a hint."""
    done = run(beside_python("hadolint"), FILE)

    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("requirement", FAST)
def test_each_of_the_extra_by_itself_and_never_from_source(requirement: str) -> None:
    """And after the project, which does not need it."""
    project, *steps = instructions("RUN")
    [step] = [step for step in steps if f"'{requirement}'" in step]

    assert project.endswith("pip install --no-cache-dir .")
    assert "--only-binary :all:" in step
    assert "|| echo 'No wheel of " in step


def test_its_environment_and_commands_are_ours() -> None:
    """Reachable, and with a grace below the 10 seconds of `docker stop`."""
    ours = {name: value for name, value in environment().items() if name.startswith("MOTHERSHIP")}
    settings = load(None, ours)

    assert settings.server.host == "0.0.0.0"
    assert settings.server.shutdown_grace_seconds < 10
    assert instructions("ENTRYPOINT") == ['["mothership-backup"]']
    assert instructions("CMD") == ['["serve"]']
    assert '["mothership-backup", "healthcheck"]' in instructions("HEALTHCHECK")[0]
    assert parse(["serve"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[0])


def test_without_a_credential_it_ends_with_2_and_says_what_to_run(tmp_path: Path) -> None:
    """Never open by mistake: a container is reachable."""
    done = subprocess.run(
        [sys.executable, "-m", "mothership_backup", "serve", "--data-dir", str(tmp_path), "--port", "0"],
        env={"PATH": os.environ["PATH"], **environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "`mothership-backup token new NAME`" in done.stderr


def test_compose_has_the_application_s_user_and_volume() -> None:
    """A read-only root, no capability, and a credential from a secret."""
    [compose] = documents(FILE.with_name("compose.yaml"))
    application, backup = compose["services"]["spaxel"], service()

    assert backup["user"] == application["user"]
    assert application["volumes"][0] in backup["volumes"]
    assert (backup["read_only"], backup["cap_drop"], backup["mem_limit"]) == (True, ["ALL"], "128m")
    assert load(None, backup["environment"]).auth.tokens_file == "/run/secrets/tokens"
    assert {volume.split(":")[0] for volume in backup["volumes"]} == compose["volumes"].keys()
    assert f"scratch:{environment()['TMPDIR']}" in backup["volumes"]
    assert (FILE.parent / backup["build"]["context"] / backup["build"]["dockerfile"]).samefile(FILE)


def test_what_the_build_copies_is_in_its_context() -> None:
    """And nothing that it does not: no .git, no archive that lies about."""
    kept = re.findall(r"^!(.+)$", FILE.with_name("Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE)
    copied = {
        word for line in instructions("COPY") for word in line.split()[:-1] if not line.startswith("--from")
    }

    assert set(kept) == copied
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.long
def test_its_steps_work_in_a_folder(tmp_path: Path) -> None:
    """The same lines, of what the context has, with this Python."""
    source, home = tmp_path / "src", tmp_path / "opt"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "service", source / "service", ignore=shutil.ignore_patterns("__pycache__"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOTHERSHIP")}
    environ = kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    for step in instructions("RUN"):
        subprocess.run(step.replace(HOME, str(home)), shell=True, cwd=source, env=environ, check=True)
    shutil.rmtree(source)
    program = home / "bin" / "mothership-backup"
    version = run(program, "--version", cwd=tmp_path)
    example = run(program, "check-config", "--example", cwd=tmp_path)

    assert version.stdout.startswith("mothership-backup ")
    assert "[server]" in example.stdout
