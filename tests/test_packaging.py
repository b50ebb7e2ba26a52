"""What is shipped is whole: the files beside the code, one truth for each requirement, the two commands."""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

import mothership_backup

ROOT: Final = Path(__file__).resolve().parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MAKEFILE: Final = (ROOT / "Makefile").read_text("utf-8")


def make(*arguments: str, folder: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    # Of a surrounding make nothing is taken over.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as far as the Makefile looks at it."""
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def python(folder: Path, script: str) -> str:
    """An interpreter that is none: the shell script ``script``."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_types_and_example_are_packaged() -> None:
    """`mypy` of a host sees our types, and check-config finds the example."""
    files = importlib.resources.files("mothership_backup")

    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("config.example.toml").is_file()


def test_the_example_at_the_top_is_the_packaged_one() -> None:
    """One file under two names."""
    packaged = Path(mothership_backup.__file__).with_name("config.example.toml")

    assert (ROOT / "config.example.toml").samefile(packaged)


@pytest.mark.parametrize("requirement", PROJECT["project"]["optional-dependencies"]["fast"])
def test_the_makefile_asks_for_what_the_extra_names(requirement: str) -> None:
    """It installs each by itself, and cannot ask for the extra as a whole."""
    assert f":= {requirement}\n" in MAKEFILE


def test_make_run_starts_the_demo_or_a_directory_of_yours() -> None:
    """And no test tools are installed for it."""
    demo = make("-n", "run")
    serve = make("-n", "run", "DATA=/some where", "PORT=9000")

    assert "mothership-backup demo --port '8080'" in demo.stdout
    assert "mothership-backup serve --data-dir '/some where' --port '9000'" in serve.stdout
    assert "[test]" not in demo.stdout + serve.stdout


def test_an_old_python_is_told_in_one_line(copy: Path) -> None:
    """With the package to install, and no traceback."""
    old = python(copy, 'case "$2" in *3,*11*) exit 1;; *) echo 3.9.2;; esac')

    result = make("run", f"PYTHON={old}", folder=copy)

    line, verdict = result.stderr.splitlines()
    assert line == (
        f"Python 3.11 or newer is needed, {old} is 3.9.2: install python3.11 and python3.11-venv,"
        " then: make PYTHON=python3.11"
    )
    assert verdict.startswith("make: ***")
    assert result.returncode != 0


def test_a_python_without_ensurepip_is_told_in_one_line(copy: Path) -> None:
    """As Debian's is without python3-venv."""
    poor = python(copy, 'case "$2" in *ensurepip*) exit 1;; *version_info\\[*) echo python3.12-venv;; esac')

    result = make("run", f"PYTHON={poor}", folder=copy)

    assert result.stderr.splitlines()[0] == (
        f"{poor} has no ensurepip: install python3-venv (Debian, Ubuntu: apt-get install python3.12-venv)"
    )


def test_no_python_at_all_is_told_in_one_line(copy: Path) -> None:
    """As on a bare image."""
    result = make("run", "PYTHON=python-of-nowhere", folder=copy)

    assert result.stderr.startswith("There is no python-of-nowhere: install Python 3.11 or newer")


def test_a_half_made_environment_is_removed(copy: Path) -> None:
    """An interrupted one is not taken for whole, and a failed one does not stay."""
    (copy / ".venv").mkdir()
    (copy / ".venv" / "left over").touch()
    failing = python(copy, 'case "$1" in -m) mkdir -p .venv/bin; exit 1;; esac')

    result = make("run", f"PYTHON={failing}", folder=copy)

    assert result.returncode != 0
    assert not (copy / ".venv").exists()
