"""`check-config`: is the configuration good, and what comes of it here."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mothership_backup.backup import Options, make_plan, probe
from mothership_backup.cli.options import ConfigFile, DataDir, load_settings
from mothership_backup.cli.terminal import complain, count, human_bytes, printable, show
from mothership_backup.cli.tls import server_context
from mothership_backup.config import PREFIX, Settings, example
from mothership_backup.history import refuse_unsafe
from mothership_backup.manifest import Plan
from mothership_backup.web.auth import Auth


def check_config(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    show_example: Annotated[
        bool, typer.Option("--example", help="Print a configuration file with every key and its default.")
    ] = False,
) -> None:
    """Check the configuration, and show what it finds."""
    if show_example:
        show(example().rstrip())
        return
    settings = load_settings(config, data_dir)
    Auth(settings)  # reads auth.tokens_file
    server_context(settings.server)  # reads server.tls_cert and what belongs to it
    variables = sum(name.startswith(f"{PREFIX}__") for name in os.environ)
    show(printable(f"configuration: {config or 'no file'}, {count(variables, 'variable')}: good"))
    show(probe(settings).line())
    refuse_unsafe(settings)
    plan = make_plan(settings, Options.of(settings))
    files = sum(source.status == "ok" and source.kind != "database" for source in plan.sources)
    found = f"{count(plan.databases, 'database')}, {count(files, 'file')}, {human_bytes(plan.total_bytes)}"
    show(printable(f"data directory {settings.data.dir}: {found}"))
    for source in plan.sources:
        if source.status == "failed":
            complain(f"{source.name}: {source.error_message}")
    _warn_if_too_slow(settings, plan)


def _warn_if_too_slow(settings: Settings, plan: Plan) -> None:
    """All databases are pinned at one instant, so the last of them is held until all have been read."""
    rate, limit = settings.limits.read_bytes_per_second, settings.limits.max_hold_seconds
    if not rate or plan.total_bytes <= rate * limit:
        return
    complain(
        f"warning: at limits.read_bytes_per_second = {rate} a backup takes {plan.total_bytes / rate:.0f} s and is cut"
        f" off after limits.max_hold_seconds = {limit:g}: set the first to {int(plan.total_bytes / limit) + 1} or more"
    )
