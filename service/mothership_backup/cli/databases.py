"""`databases`: what a backup would hold if it began now."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from mothership_backup.backup import Options, Plan, Source, make_plan
from mothership_backup.cli import INCOMPLETE
from mothership_backup.cli.options import ConfigFile, DataDir, load_settings
from mothership_backup.cli.terminal import complain, count, human_bytes, printable


def databases(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Show what a backup would hold now."""
    settings = load_settings(config, data_dir)
    # What failed is shown here, strict or not.
    plan = make_plan(settings, dataclasses.replace(Options.of(settings), strict=False))
    if as_json:
        print(json.dumps(_document(plan), indent=2))
    else:
        _print_table(plan)
    if plan.failed:
        complain(f"{count(plan.failed, 'source')} of {settings.data.dir} failed")
        raise typer.Exit(INCOMPLETE)


def _document(plan: Plan) -> dict[str, object]:
    """The words of the manifest."""
    return {
        "app_version": plan.app_version,
        "complete": not plan.failed,
        "databases": plan.databases,
        "failed": plan.failed,
        "total_bytes": plan.total_bytes,
        "sources": [_describe(source) for source in plan.sources],
    }


def _describe(source: Source) -> dict[str, object]:
    known: dict[str, object] = {"name": source.name, "kind": source.kind, "status": source.status}
    if source.status == "ok":
        return {**known, "size_bytes": source.size_bytes, "engine": source.engine}
    return {**known, "error": {"code": source.error_code, "message": source.error_message}}


def _print_table(plan: Plan) -> None:
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
        status = source.status if taken else f"{source.status}: {source.error_message}"
        size = human_bytes(source.size_bytes) if taken else ""
        engine = source.engine if taken else ""
        cells = (source.name, source.kind, size, engine, status)
        # As Text: a name is input, and no markup.
        table.add_row(
            *(Text(printable(cell)) for cell in cells), style="red" if source.status == "failed" else None
        )
    console = Console()
    console.print(table)
    total = f"{count(plan.databases, 'database')}, {human_bytes(plan.total_bytes)} in all"
    console.print(Text(total))
