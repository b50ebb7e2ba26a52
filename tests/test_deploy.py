"""Whatever stands in deploy/: its variables are keys, its commands have the options that it gives them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deployed import DEPLOY, options
from mothership_backup.cli.app import COMMANDS
from mothership_backup.config import PREFIX, SECTIONS, TOKEN_VARIABLE

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
VARIABLES = {TOKEN_VARIABLE} | {
    f"{PREFIX}__{section}__{key}".upper() for section, model in SECTIONS.items() for key in model.model_fields
}
WORD = r"(?:'[^'\n]*'|[^\s'\"`|;&()]+)"


def by_path(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def commands(text: str) -> list[list[str]]:
    """Each command line of ours in a file: after the program's name, up to the end of the (joined) line."""
    joined = re.sub(r"\\\n\s*", "", text)
    names = "|".join(map(re.escape, COMMANDS))
    # Words with one space between them: behind two comes a remark.
    lines = re.findall(rf"mothership-backup ((?:{names})\b(?: {WORD})*)", joined)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_every_variable_is_a_key(path: Path) -> None:
    """And may come from a file, if it ends so and is no key by itself."""
    found = set(re.findall(rf"\b{PREFIX}_[A-Z0-9_]*[A-Z0-9]", path.read_text("utf-8")))

    assert {
        name for name in found if name not in VARIABLES and name.removesuffix("_FILE") not in VARIABLES
    } == set()


@pytest.mark.parametrize("path", [path for path in FILES if commands(path.read_text("utf-8"))], ids=by_path)
def test_every_command_has_these_options(path: Path) -> None:
    """A command in running text may lack its arguments, but not have options that there are not."""
    for command, *words in commands(path.read_text("utf-8")):
        given = {word.split("=")[0] for word in words if word.startswith("--")}

        assert given <= options(command), command
