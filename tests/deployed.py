"""What the tests of deploy/ share: its folder, and whether a command line in it is one of ours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer.main
import yaml

from harness import tool
from mothership_backup.cli.app import build

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The parameters of ``mothership-backup WORDS``, by the parser that the command has; an unknown one raises."""
    command, *arguments = words
    group = typer.main.get_command(build([command]))
    context = group.make_context("mothership-backup", [command, *arguments])
    name, found, rest = group.resolve_command(context, [command, *arguments])  # type: ignore[attr-defined]  # a group
    parameters: dict[str, Any] = found.make_context(name, rest, parent=context).params
    return parameters


def options(command: str) -> set[str]:
    """Every option that ``command`` has."""
    group = typer.main.get_command(build([command]))
    found = group.commands[command]  # type: ignore[attr-defined]  # a group
    return {name for parameter in found.params for name in parameter.opts}


def beside_python(name: str) -> str:
    """A program that a package of this environment brought."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or tool(name)


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))
