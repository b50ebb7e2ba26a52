"""The commands by name. Each module is imported only when its command is asked for: some are slow to import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer

from mothership_backup import __version__
from mothership_backup.cli.terminal import show

#: Command -> its module in this folder, and the function there; in the order of --help.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("serve", "serve"),
    "backup": ("backup", "backup"),
    "databases": ("databases", "databases"),
    "fetch": ("fetch", "fetch"),
    "verify": ("verify", "verify"),
    "inspect": ("inspect_archive", "inspect"),
    "restore": ("restore", "restore"),
    "check-config": ("check_config", "check_config"),
    "token": ("token", "token"),
    "healthcheck": ("healthcheck", "healthcheck"),
    "demo": ("demo", "demo"),
}


def build(words: Sequence[str]) -> typer.Typer:
    """The application for this command line: with the one command that it names, else with all."""
    app = typer.Typer(
        help="Back up every SQLite database of a directory, consistent while others write.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    wanted = words[:1] if words and words[0] in COMMANDS else COMMANDS
    for name in wanted:
        module, function = COMMANDS[name]
        command = getattr(importlib.import_module(f"mothership_backup.cli.{module}"), function)
        app.command(name)(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"mothership-backup {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    pass
