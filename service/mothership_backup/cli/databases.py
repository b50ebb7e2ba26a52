"""`databases`: what a backup would hold if it began now."""

from __future__ import annotations

import io
import json
import sys
from typing import Annotated

import typer

from mothership_backup.backup import Options, app_version_of, make_plan
from mothership_backup.cli import INCOMPLETE
from mothership_backup.cli.options import ConfigFile, DataDir, load_settings
from mothership_backup.cli.terminal import complain, count, human_bytes, printable, show
from mothership_backup.config import Settings
from mothership_backup.manifest import Plan, describe_plan


def databases(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Show what a backup would hold now."""
    settings = load_settings(config, data_dir)
    plan = make_plan(settings, Options.of(settings))
    show(_json(settings, plan) if as_json else _table(plan))
    if plan.failed:
        complain(f"{count(plan.failed, 'source')} of {settings.data.dir} failed")
        raise typer.Exit(INCOMPLETE)


def _json(settings: Settings, plan: Plan) -> str:
    return json.dumps(describe_plan(plan, app_version_of(settings, plan)), indent=2)


def _table(plan: Plan) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("kind")
    table.add_column("size", justify="right")
    table.add_column("engine")
    table.add_column("status", overflow="fold")
    for source in plan.sources:
        taken = source.status == "ok"
        status = source.status if taken else f"{source.status}: {source.error_message or source.error_code}"
        size = human_bytes(source.size_bytes) if taken else ""
        engine = source.engine or "" if taken else ""
        cells = (source.name, source.kind, size, engine, status)
        # As Text: a name is input, and no markup.
        table.add_row(
            *(Text(printable(cell)) for cell in cells), style="red" if source.status == "failed" else None
        )
    lines = io.StringIO()
    is_terminal = sys.stdout.isatty()  # in a pipe each source is one line, however long
    Console(file=lines, force_terminal=is_terminal, width=None if is_terminal else 10_000).print(table)
    return f"{lines.getvalue()}{count(plan.databases, 'database')}, {human_bytes(plan.total_bytes)} in all"
